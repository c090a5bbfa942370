// @ts-check
/** Menu entry that queues a run of its own for every prompt of a list, so that each is saved once it is made. */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

/** @typedef {typeof app.graph.nodes[number]} GraphNode */

const COMMAND = "Kandinsky5.QueuePrompts";
const LABEL = "Queue Kandinsky 5 prompts one by one";
const NODE = "K5_PromptList";
const ROUTE = "/kandinsky5/count_prompts";
const SUCCESS_MS = 8000;

/**
 * @param {"success" | "error"} severity
 * @param {string} detail
 */
function tell(severity, detail) {
  const life = severity === "success" ? { life: SUCCESS_MS } : {};
  app.extensionManager.toast.add({ severity, summary: LABEL, detail, ...life });
}

/**
 * The list to run, where none was pointed at: the selected one, else the only one.
 *
 * @returns {GraphNode}
 */
function findList() {
  const lists = app.graph.nodes.filter((node) => node.type === NODE);
  const selected = Object.values(app.canvas.selected_nodes ?? {}).filter((node) =>
    lists.includes(node),
  );
  const [list, ...others] = selected.length > 0 ? selected : lists;
  if (list === undefined) {
    throw new Error("This workflow has no Prompt List (Kandinsky 5); add one.");
  }
  if (others.length > 0) {
    throw new Error("This workflow has several Prompt Lists (Kandinsky 5); select one of them.");
  }
  return list;
}

/**
 * @param {GraphNode} list
 * @param {string} name
 */
function findWidget(list, name) {
  const widget = list.widgets?.find((each) => each.name === name);
  if (widget === undefined) {
    throw new Error(`The Prompt List has no ${name}; remove the node and add it again.`);
  }
  return widget;
}

/**
 * Numbers of the prompts that the node would run, from its start and count.
 *
 * @param {GraphNode} list
 */
async function findNumbers(list) {
  const { output } = await app.graphToPrompt();
  const inputs = output[String(list.id)]?.inputs;
  if (inputs === undefined) {
    throw new Error("The Prompt List is muted or bypassed; switch it on.");
  }
  const linked = Object.keys(inputs).filter((name) => Array.isArray(inputs[name]));
  const wanted = ["text", "file", "split", "start", "count"].filter((name) => linked.includes(name));
  if (wanted.length > 0) {
    throw new Error(`${wanted.join(", ")}: expected a value on the Prompt List, found a connection.`);
  }
  const { text, file, split, start, count } = inputs;
  const response = await api.fetchApi(ROUTE, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ text, file, split }),
  });
  const answer = await response
    .json()
    .catch(() => ({ error: `ComfyUI answered ${response.status} ${response.statusText}.` }));
  if (!response.ok) {
    throw new Error(answer.error);
  }
  if (start > answer.count) {
    throw new Error(`start: expected at most ${answer.count}, the number of prompts, found ${start}.`);
  }
  const last = count > 0 ? Math.min(start + count - 1, answer.count) : answer.count;
  return Array.from({ length: last - start + 1 }, (_, index) => start + index);
}

/**
 * Queue the runs; the node's start and count are put back.
 *
 * @param {GraphNode} [pointed] the node whose menu was used
 */
async function queuePrompts(pointed) {
  let queued = 0;
  try {
    const list = pointed ?? findList();
    const numbers = await findNumbers(list);
    const [start, count] = [findWidget(list, "start"), findWidget(list, "count")];
    const before = [start.value, count.value];
    try {
      for (const number of numbers) {
        // in the widgets, so that each file brings back its own run
        [start.value, count.value] = [number, 1];
        await api.queuePrompt(0, await app.graphToPrompt());
        queued += 1;
      }
    } finally {
      [start.value, count.value] = before;
    }
    tell("success", `${queued} in the queue, a run for each prompt.`);
  } catch (error) {
    // as text: what ComfyUI refuses names the node there, not in its message
    const reason = String(error).replace(/^Error: /, "");
    tell("error", `${reason}${queued > 0 ? ` ${queued} are in the queue.` : ""}`);
  }
}

app.registerExtension({
  name: COMMAND,
  commands: [{ id: COMMAND, label: LABEL, icon: "pi pi-list", function: () => queuePrompts() }],
  menuCommands: [{ path: ["Edit"], commands: [COMMAND] }],
  // pages that know this hook show it in the node's menu too
  getNodeMenuItems: (node) =>
    node.type === NODE ? [null, { content: LABEL, callback: () => queuePrompts(node) }] : [],
});
