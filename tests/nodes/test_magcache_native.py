"""MagCache on ComfyUI's own Kandinsky 5, which 0.3.75 has not: an imitation of how it calls its
blocks, around the core's layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kandinsky_core.attention import attend
from kandinsky_core.caching import MagRatios, released_ratios, save_ratios
from kandinsky_core.checkpoint import load_transformer
from kandinsky_core.flow import VisualCondition
from kandinsky_core.models.rope import rope_3d

STEPS = 10
UNEVEN = MagRatios((1.0,) * (STEPS - 1), (0.7, 1.0, 0.9) * 3, "uneven")
RELEASED = "k5_lite_t2v_5s_sft_sd"
TOLERANCE = 1e-4


class Block(torch.nn.Module):
    """A block with the native one's arguments."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(
        self,
        visual_embed,
        text_embed,
        time_embed,
        freqs,
        sparse_params=None,
        transformer_options=None,
    ):
        assert transformer_options["block_type"] == "double" and sparse_params is None
        return self.block(visual_embed, text_embed, time_embed, freqs, None, attend, attend)


class Network(torch.nn.Module):
    """Calls its blocks and what stands in place of them as the native network does, its mistake
    included: what it gives a patch as the original block takes no argument of that name."""

    def __init__(self, core, settings, extension):
        super().__init__()
        self.core, self.extension = core, extension
        self.rope_scale = settings.rope_scale_for(64, 64)
        self.dtype = torch.float32
        self.visual_transformer_blocks = torch.nn.ModuleList(
            Block(block) for block in core.visual_transformer_blocks
        )

    def forward(self, x, timestep, context, y, transformer_options, **_):
        kind = self.extension.WrappersMP.DIFFUSION_MODEL
        wrappers = self.extension.get_all_wrappers(kind, transformer_options)
        executor = self.extension.WrapperExecutor.new_class_executor(self._run, self, wrappers)
        return executor.execute(x, timestep, context, y, transformer_options=transformer_options)

    def _run(self, x, timestep, context, y, transformer_options):
        core = self.core
        x = VisualCondition().network_input(x, core.config.visual_cond)
        grid = core.token_grid(x)
        time_embed = core.time_embeddings(timestep / 1000) + core.pooled_text_embeddings(y)
        text = core.refine_text(context, time_embed, None, attend)
        freqs = rope_3d(grid, core.config.axes_dims, self.rope_scale, x.device)
        visual = core.visual_embeddings(x)
        replaced = transformer_options.get("patches_replace", {}).get("dit", {})
        transformer_options["block_type"] = "double"
        for index, block in enumerate(self.visual_transformer_blocks):
            transformer_options["block_index"] = index
            given = {"time_embed": time_embed, "freqs": freqs}
            given["transformer_options"] = transformer_options
            if ("double_block", index) in replaced:
                mistaken = {"original_block": lambda args, block=block: block(**args)}
                given |= {"x": visual, "context": text}
                visual = replaced["double_block", index](given, mistaken)["x"]
            else:
                visual = block(visual, text, **given)
        return core.out_layer(visual, time_embed, grid)


@pytest.fixture(scope="module")
def ours(load_model, save_tiny, tiny_config):
    """Three blocks."""
    config = replace(tiny_config, num_visual_blocks=3)
    return load_model(save_tiny("tiny_of_three.safetensors", config, "t2v"))


@pytest.fixture
def native(host, ours):
    """Return the same weights in the imitation."""
    conds, base = host.module("comfy.conds"), host.module("comfy.model_base")

    class Model(base.BaseModel):
        def extra_conds(self, **given):
            return {
                "c_crossattn": conds.CONDRegular(given["cross_attn"]),
                "y": conds.CONDRegular(given["pooled_output"]),
            }

    info = ours.model.info
    layers = host.module("comfy.ops").manual_cast
    core, _ = load_transformer(info.path, dtype=torch.float32, ops=layers)
    network = Network(core, info.settings, host.module("comfy.patcher_extension"))
    config = host.part("nodes.host.model.model").ModelConfig(info, ours.model.space)
    config.set_inference_dtype(torch.float32, None)
    kind = base.ModelType.FLOW
    built = Model(config, kind, device="cpu", unet_model=lambda **_: network)
    cpu = torch.device("cpu")
    return host.module("comfy.model_patcher").ModelPatcher(built, cpu, cpu)


@pytest.fixture
def cached(host, run):
    """Run K5_MagCache with a file of ratios or what `ratios` names."""
    folder = host.base / "models" / "kandinsky5"
    folder.mkdir(exist_ok=True)
    save_ratios(folder / "uneven.json", UNEVEN, {})

    def call(model, ratios="uneven.json", threshold=0.12):
        given = {"threshold": threshold, "max_skips": 2, "retention": 0.2}
        return run("K5_MagCache", model=model, ratios=ratios, **given)[0]

    return call


@pytest.fixture
def calls(native):
    """Numbers of the blocks that ran."""
    seen = []
    for index, block in enumerate(native.model.diffusion_model.visual_transformer_blocks):
        block.register_forward_hook(lambda *_, index=index: seen.append(index))
    return seen


@pytest.mark.parametrize(("ratios", "threshold"), [("uneven.json", 0.12), (RELEASED, 0.3)])
def test_a_native_model_gives_what_ours_gives(
    ours, native, cached, ksample, calls, ratios, threshold
):
    plain = ksample(native, steps=STEPS)
    assert (plain - ksample(ours, steps=STEPS)).abs().max() < TOLERANCE
    assert len(calls) == 3 * 2 * STEPS
    calls.clear()
    fast = cached(native, ratios, threshold)
    expected = ksample(cached(ours, ratios, threshold), steps=STEPS)
    found = ksample(fast, steps=STEPS)
    assert (found - expected).abs().max() < TOLERANCE
    assert (found - plain).abs().max() > 5 * TOLERANCE
    assert 0 < len(calls) < 3 * 2 * STEPS
    assert calls == [0, 1, 2] * (len(calls) // 3)
    # a run that ratios do not describe, and the model that went in
    part = ksample(fast, steps=STEPS, denoise=0.5)
    assert torch.equal(part, ksample(native, steps=STEPS, denoise=0.5))
    assert torch.equal(ksample(native, steps=STEPS), plain)
    assert torch.equal(ksample(cached(fast, ratios, 0.0), steps=STEPS), plain)


def test_a_native_model_skips_the_same_partially_loaded(native, cached, ksample, calls, partially):
    fast = cached(native)
    expected = ksample(fast, steps=STEPS)
    num_calls = len(calls)
    partially()
    assert torch.equal(ksample(fast, steps=STEPS), expected)
    partially.check(fast)
    assert len(calls) == 2 * num_calls


def test_patches_of_other_nodes_keep_their_blocks(native, cached, ksample, calls):
    def skip(given, _original):
        return given

    def run(given, original):
        assert given["transformer_options"]["block_index"] == 2
        return original["original_block"](given)

    skipping = native.clone()
    skipping.set_model_patch_replace(skip, "dit", "double_block", 1)
    expected = ksample(skipping, steps=4)
    assert (expected - ksample(native, steps=4)).abs().max() > 1e-3
    calls.clear()
    both = cached(skipping, threshold=0.0)
    both.set_model_patch_replace(run, "dit", "double_block", 2)
    assert torch.equal(ksample(both, steps=4), expected)
    assert calls == [0, 2] * (len(calls) // 2) and calls


def test_ratios_are_named_for_a_native_model_and_other_models_are_refused(native, cached):
    with pytest.raises(ValueError, match=rf"ratios: from checkpoint reads .* e\.g\. {RELEASED}"):
        cached(native, "from checkpoint")
    with pytest.raises(ValueError, match=r"ratios: there is no file 'k5_lite\.json'"):
        cached(native, "k5_lite")
    flat = native.clone()
    flat.model = torch.nn.Module()
    flat.model.diffusion_model = torch.nn.Module()
    with pytest.raises(ValueError, match=r"model: expected Kandinsky 5, .* found Module; other"):
        cached(flat)


def test_the_node_offers_what_was_published(host):
    schema = host.pack["K5_MagCache"].define_schema()
    (combo,) = (each for each in schema.inputs if each.id == "ratios")
    assert combo.options[0] == "from checkpoint"
    assert RELEASED in combo.options
    assert len(released_ratios(RELEASED).cond) == 49
    assert host.pack["K5_MagCache"].fingerprint_inputs(ratios=RELEASED) == RELEASED
