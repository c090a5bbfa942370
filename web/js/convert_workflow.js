// @ts-check
/** Menu entry that maps the Kandinsky 5 nodes of other packs, and ComfyUI's own, onto this pack's. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const COMMAND = "Kandinsky5.ConvertWorkflow";
const LABEL = "Convert Kandinsky 5 nodes";
const ROUTE = "/kandinsky5/convert_workflow";
const SUCCESS_MS = 8000;

/**
 * @param {"success" | "warn" | "error"} severity
 * @param {string} summary
 * @param {string[]} lines
 */
function tell(severity, summary, lines) {
  app.extensionManager.toast.add({
    severity,
    summary,
    detail: lines.join("\n"),
    // what needs a hand stays until it is closed
    ...(severity === "success" ? { life: SUCCESS_MS } : {}),
  });
}

/** Convert the open workflow; the result opens beside it, and the original stays as it is. */
async function convert() {
  const workflow = (app.rootGraph ?? app.graph).serialize();
  const response = await api.fetchApi(ROUTE, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ workflow }),
  });
  const answer = await response
    .json()
    .catch(() => ({ error: `ComfyUI answered ${response.status} ${response.statusText}.` }));
  if (!response.ok) {
    tell("error", LABEL, [answer.error]);
    return;
  }
  const { mapped, lost } = answer.report;
  await app.loadGraphData(answer.workflow);
  if (lost.length > 0) {
    tell("warn", `${mapped.length} mapped, ${lost.length} could not be mapped`, lost);
  } else {
    tell("success", `${mapped.length} mapped`, mapped);
  }
}

app.registerExtension({
  name: COMMAND,
  commands: [{ id: COMMAND, label: LABEL, icon: "pi pi-sync", function: convert }],
  menuCommands: [{ path: ["Edit"], commands: [COMMAND] }],
  // pages that know this hook show it in the canvas menu too
  getCanvasMenuItems: () => [null, { content: LABEL, callback: convert }],
});
