"""Reading LoRAs of every style, finding their layers, adding them to weights, converting them."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kandinsky_core.__main__ import main
from kandinsky_core.checkpoint import (
    LoraPair,
    fitting_variants,
    layer_shapes,
    match_lora,
    merge_loras,
    name_layers,
    read_lora,
    save_lora,
)
from kandinsky_core.errors import CheckpointError, OutputError
from kandinsky_core.family.variants import VARIANTS
from kandinsky_core.models import CrossDiT
from kandinsky_core.text import add_triggers

DEBUG = VARIANTS["debug"]
LAYERS = (
    "visual_transformer_blocks.1.self_attention.to_query",
    "visual_transformer_blocks.0.cross_attention.out_layer",
    "visual_transformer_blocks.0.feed_forward.in_layer",
    "text_transformer_blocks.0.feed_forward.out_layer",
    "out_layer.out_layer",
)
RANK, ALPHA = 4, 6.0
NAMES = {
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "peft with adapter": (
        "base_model.model.{}.lora_A.default.weight",
        "base_model.model.{}.lora_B.default.weight",
    ),
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
    "comfyui": ("diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight"),
    "bare": ("{}.lora_A.weight", "{}.lora_B.weight"),
    "kohya": ("lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight"),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def network() -> CrossDiT:
    network = CrossDiT(DEBUG)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(False)


@pytest.fixture
def shapes(network):
    return layer_shapes(network)


@pytest.fixture
def matrices(network):
    """Layer -> its random (down, up)."""
    weights = {name: network.get_submodule(name).weight for name in LAYERS}
    return {
        name: (torch.randn(RANK, weight.shape[1]), torch.randn(weight.shape[0], RANK))
        for name, weight in weights.items()
    }


@pytest.fixture
def write(tmp_path):
    """Write a LoRA in a style: `write(matrices, "kohya", alpha=6.0)` -> path."""

    def save(matrices, style, *, name="lora.safetensors", alpha=None, metadata=None):
        tensors = {}
        for layer, pair in matrices.items():
            spelled = layer.replace(".", "_") if style == "kohya" else layer
            for pattern, matrix in zip(NAMES[style], pair, strict=True):
                tensors[pattern.format(spelled)] = matrix.clone()
            if alpha is not None:
                base = NAMES[style][0].format(spelled).partition(".lora_")[0]
                tensors[f"{base}.alpha"] = torch.tensor(alpha)
        save_file(tensors, tmp_path / name, metadata=metadata)
        return tmp_path / name

    return save


def merged(network, path, strength=1.0):
    """State dict after adding one LoRA."""
    merge_loras(network, [(match_lora(read_lora(path), layer_shapes(network)), strength)])
    return network.state_dict()


def expected(network, matrices, factor):
    """State dict by the formula W + factor * B A."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for layer, (down, up) in matrices.items():
        state[f"{layer}.weight"] += factor * torch.einsum("or,ri->oi", up, down)
    return state


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)


def assert_adds(network, path, matrices, factor, *, strength=1.0):
    wanted = expected(network, matrices, factor)
    assert_close(merged(network, path, strength), wanted)


@pytest.mark.parametrize("style", list(NAMES))
def test_every_style_adds_the_scaled_product(network, matrices, write, style):
    path = write(matrices, style, alpha=ALPHA)
    assert_adds(network, path, matrices, 0.7 * ALPHA / RANK, strength=0.7)
    lora = read_lora(path)
    assert lora.style == style.split()[0]
    assert lora.ranks == [RANK]
    assert lora.left_over == ()


def test_alpha_that_nobody_states_is_the_rank(network, matrices, write):
    path = write(matrices, "peft")
    assert_adds(network, path, matrices, 1.0)
    assert read_lora(path).alpha_source.startswith("not stated")


@pytest.mark.parametrize("place", ["lora.json", "adapter_config.json", "metadata", "prefixed"])
def test_alpha_of_a_peft_configuration(tmp_path, network, matrices, write, place):
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "rank_pattern": {}}
    metadata = None
    if place == "metadata":
        metadata = {"lora_adapter_metadata": json.dumps(config)}
    elif place == "prefixed":
        prefixed = {f"transformer.{key}": value for key, value in config.items()}
        metadata = {"lora_adapter_metadata": json.dumps(prefixed)}
    else:
        (tmp_path / place).write_text(json.dumps(config))
    path = write(matrices, "peft", metadata=metadata)
    assert_adds(network, path, matrices, ALPHA / RANK)


def test_single_layers_and_rank_stabilized_scaling_as_in_peft(tmp_path, matrices, write):
    first, second, third, *_ = matrices
    matrices[first] = (torch.randn(2, 64), torch.randn(64, 2))
    config = {
        "r": RANK,
        "lora_alpha": 8,
        "rank_pattern": {"1.self_attention.to_query": 2},
        "alpha_pattern": {
            f"^{second}$": 3,
            "cross_attention.out_layer": 5,  # the first that fits counts
            third.partition(".")[2].replace(".", r"\."): 7,
            "attention.out_layer": 100,  # not from a dot on
            f"^{third.partition('.')[2]}": 100,  # not the whole name
        },
        "use_rslora": True,
    }
    (tmp_path / "lora.json").write_text(json.dumps(config))
    scales = {name: pair.scale for name, pair in read_lora(write(matrices, "peft")).pairs.items()}
    assert scales[first] == pytest.approx(8 / math.sqrt(2))
    assert scales[second] == pytest.approx(3 / math.sqrt(RANK))
    assert scales[third] == pytest.approx(7 / math.sqrt(RANK))


@pytest.mark.parametrize("pattern", ["(a+)+b", r"cross_attention\.\w+", "a|b", "", ".*"])
def test_expressions_of_a_file_are_not_run(write, pattern):
    """The first holds Python's `re` for ever at a name of 34 times "a"."""
    config = {"r": 1, "lora_alpha": 1, "alpha_pattern": {pattern: 1.0}}
    pair = torch.ones(1, 1), torch.ones(1, 1)
    stated = {"lora_adapter_metadata": json.dumps(config)}
    path = write({"a" * 34 + "!": pair}, "peft", metadata=stated)
    with pytest.raises(
        CheckpointError, match=r"names of layers in .* found the expression .* write the layers"
    ):
        read_lora(path)


def test_a_name_of_many_prefixes_or_parts_is_only_a_long_name(write):
    pair = torch.ones(1, 1), torch.ones(1, 1)
    config = {"r": 1, "lora_alpha": 2, "alpha_pattern": {"to_query": 4}}
    stated = {"lora_adapter_metadata": json.dumps(config)}
    names = ["lora_unet_" * 5000 + "x", "a." * 5000 + "to_query"]
    scales = read_lora(write(dict.fromkeys(names, pair), "peft", metadata=stated)).pairs
    assert [scales[name].scale for name in ("x", names[1])] == [2, 4]


def test_configuration_of_another_lora(tmp_path, matrices, write):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16, "lora_alpha": 32}))
    path = write(matrices, "peft")
    with pytest.raises(CheckpointError, match=r"says rank 16 .* the matrices have 4; it belongs"):
        read_lora(path)
    # among several files it speaks for none but PEFT's own
    write(matrices, "peft", name="another.safetensors")
    assert read_lora(path).alpha_source.startswith("not stated")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    own = read_lora(write(matrices, "peft", name="adapter_model.safetensors"))
    assert own.pairs[LAYERS[0]].scale == ALPHA / RANK


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        '{"lora_alpha": "much"}',
        "[1]",
        '{"lora_alpha": 8, "rank_pattern": {"a": "much"}}',
        '{"lora_alpha": 8, "alpha_pattern": [1]}',
    ],
)
def test_unreadable_configuration_is_one_sentence(tmp_path, matrices, write, text):
    (tmp_path / "lora.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"lora\.json is no configuration of a LoRA"):
        read_lora(write(matrices, "peft"))


def test_json_of_something_else_beside_a_lora_says_nothing(tmp_path, matrices, write):
    (tmp_path / "lora.json").write_text('{"description": "from a site"}')
    assert read_lora(write(matrices, "peft")).pairs[LAYERS[0]].scale == 1.0


def test_loras_add_up_and_are_rounded_once(network, matrices, shapes, write):
    first = match_lora(read_lora(write(matrices, "peft", alpha=ALPHA)), shapes)
    half = {name: (down, up * 1e-3) for name, (down, up) in matrices.items()}
    second = match_lora(
        read_lora(write(half, "kohya", name="second.safetensors", alpha=RANK)), shapes
    )
    wanted = expected(network, matrices, 0.5 * ALPHA / RANK + 2e-3)
    small = CrossDiT(DEBUG).requires_grad_(False)
    small.load_state_dict(network.state_dict())
    small.to(torch.bfloat16)
    exact = expected(small.float(), matrices, 0.5 * ALPHA / RANK + 2e-3)
    small.to(torch.bfloat16)
    loras = [(first, 0.5), (second, 2.0)]
    merge_loras(network, loras)
    assert_close(network.state_dict(), wanted)
    merge_loras(small, loras)
    for name, tensor in small.state_dict().items():
        # half a unit in the last of 8 bits, and no more
        error = (tensor.float() - exact[name]).abs()
        assert (error <= exact[name].abs() * 2.0**-8 + 1e-5).all(), name


def test_strength_zero_changes_nothing(network, matrices, write):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    after = merged(network, write(matrices, "peft"), 0.0)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_weight_that_is_no_float_is_refused(network, matrices, shapes, write):
    match = match_lora(read_lora(write(matrices, "peft")), shapes)
    layer = network.get_submodule(LAYERS[0])
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"stored as torch\.int8"):
        merge_loras(network, [(match, 1.0)])


def test_what_has_no_place_is_counted_and_named(matrices, shapes, write):
    far = {
        f"visual_transformer_blocks.{i}.self_attention.to_key": matrices[LAYERS[0]]
        for i in range(7, 11)
    }
    match = match_lora(read_lora(write(matrices | far, "kohya", alpha=1.0)), shapes)
    assert match.pairs.keys() == set(LAYERS)
    assert match.note.startswith("lora.safetensors: 4 of 9 entries have no place")
    assert match.note.count("to_key") == 3
    assert match_lora(read_lora(write(matrices, "peft")), shapes).note == ""


def test_tensors_beside_the_pairs_are_named(tmp_path, matrices, shapes, write):
    path = write(matrices, "comfyui")
    layer = f"diffusion_model.{LAYERS[0]}"
    lonely = "diffusion_model.text_embeddings.in_layer.lora_up.weight"
    extra = {f"{layer}.diff_b": torch.ones(64), lonely: torch.ones(64, 1)}
    save_file(load_file(path) | extra, tmp_path / "more.safetensors")
    match = match_lora(read_lora(tmp_path / "more.safetensors"), shapes)
    assert set(match.left_out) == set(extra)


def test_a_lora_of_another_model(matrices, shapes, write):
    wan = {"blocks.0.cross_attn.k": matrices[LAYERS[0]]}
    with pytest.raises(CheckpointError, match=r"none of its 1 layers .* is in a Kandinsky 5"):
        match_lora(read_lora(write(wan, "comfyui")), shapes)


def test_a_lora_of_another_size_is_named(write):
    layer = "visual_transformer_blocks.0.self_attention.to_query"
    path = write({layer: (torch.zeros(1, 4096), torch.zeros(4096, 1))}, "peft")
    lite = layer_shapes(CrossDiT(VARIANTS["video_lite"], device="meta"))
    with pytest.raises(CheckpointError) as error:
        match_lora(read_lora(path), lite)
    for words in ("is a LoRA for video_pro", "(4096, 4096)", "(1792, 1792)"):
        assert words in str(error.value)
    path = write({layer: (torch.zeros(1, 2560), torch.zeros(2560, 1))}, "kohya")
    assert fitting_variants(read_lora(path)) == ("image_lite", "image_edit")
    path = write({layer: (torch.zeros(1, 100), torch.zeros(100, 1))}, "peft")
    with pytest.raises(CheckpointError, match="is a LoRA for another model"):
        match_lora(read_lora(path), lite)


@pytest.mark.parametrize("whole", [0, 1])
def test_matrices_of_whole_numbers_are_refused(matrices, write, whole):
    pair = list(matrices[LAYERS[0]])
    pair[whole] = pair[whole].to(torch.int8)
    path = write({LAYERS[0]: tuple(pair)}, "peft")
    with pytest.raises(CheckpointError, match="holds no product of matrices"):
        read_lora(path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["x.lokr_w1", "x.lokr_w2"], "a LoKr adapter, which is not supported"),
        (["x.hada_w1_a"], "a LoHa adapter"),
        (["x.lora_A.weight", "x.lora_magnitude_vector"], "a DoRA"),
        (["out_layer.out_layer.weight"], "is no LoRA"),
        (["x.lora_A.weight", "y.lora_B.weight"], "is no LoRA"),
        (["x.lora_A.weight", "x.lora_B.weight"], "holds no product of matrices for x"),
    ],
)
def test_what_is_no_usable_lora_is_one_sentence(tmp_path, names, words):
    save_file({name: torch.ones(3, 2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=words):
        read_lora(tmp_path / "x.safetensors")


def test_an_alpha_that_is_no_number(tmp_path, matrices, write):
    tensors = load_file(write(matrices, "comfyui"))
    tensors[f"diffusion_model.{LAYERS[0]}.alpha"] = torch.ones(2)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"an alpha of shape \(2,\) for visual_"):
        read_lora(tmp_path / "x.safetensors")


def test_files_that_are_not_safetensors(tmp_path):
    torch.save({"x.lora_A.weight": torch.ones(1)}, tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match="is a pickle"):
        read_lora(tmp_path / "lora.pt")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_lora(tmp_path / "nothing.safetensors")


def test_triggers_stand_before_the_prompt():
    assert add_triggers("a cat", ["zorb style. "]) == "zorb style. a cat"
    assert add_triggers("a cat", ["zorb", "mip"]) == "zorb mip a cat"
    assert add_triggers("a zorb cat", ["zorb", ""]) == "a zorb cat"
    assert add_triggers("a zorba", ["zorb", "zorb"]) == "zorb a zorba"
    assert add_triggers("", ["zorb"]) == "zorb"
    assert add_triggers("a cat", []) == "a cat"


@pytest.mark.parametrize("key", ["trigger", "modelspec.trigger_phrase"])
def test_trigger_is_read_from_the_metadata(matrices, write, key):
    assert read_lora(write(matrices, "peft", metadata={key: "zorb"})).trigger == "zorb"
    assert read_lora(write(matrices, "peft")).trigger == ""


@pytest.mark.parametrize("source", ["peft", "kohya"])
@pytest.mark.parametrize("style", ["comfyui", "diffusers", "peft"])
def test_conversion_keeps_what_a_lora_does(tmp_path, network, matrices, write, source, style):
    metadata = {"trigger": "zorb", "ss_network_alpha": "3", "note": "mine"}
    path = write(matrices, source, alpha=ALPHA, metadata=metadata)
    out = tmp_path / "out.safetensors"
    assert main(["lora", "convert", str(path), str(out), "--style", style]) == 0
    again = read_lora(out)
    assert (again.style, again.trigger, again.metadata["note"]) == (style, "zorb", "mine")
    assert "ss_network_alpha" not in again.metadata
    down, up = (name.format(LAYERS[0]) for name in NAMES[style])
    assert {down, up} <= load_file(out).keys()
    assert (tmp_path / "out.json").exists() == (style == "peft")
    assert_adds(network, out, matrices, ALPHA / RANK)


@pytest.mark.parametrize("style", ["diffusers", "peft"])
def test_converted_files_need_no_alpha(matrices, shapes, tmp_path, style):
    """A reader that only multiplies B and A gets the LoRA as trained, in the file's own dtype."""
    pairs = {n: LoraPair(a.bfloat16(), b.bfloat16(), 0.5) for n, (a, b) in matrices.items()}
    pairs[LAYERS[0]] = LoraPair(torch.randn(2, 64), torch.randn(64, 2), 0.3)
    save_lora(tmp_path / "x.safetensors", pairs, style)
    down, up = NAMES[style]
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        for name, pair in pairs.items():
            a, b = (file.get_tensor(pattern.format(name)) for pattern in (down, up))
            assert b.dtype == pair.up.dtype
            wanted = pair.scale * (pair.up.float() @ pair.down.float())
            torch.testing.assert_close(b.float() @ a.float(), wanted)
        stated = json.loads(file.metadata()["lora_adapter_metadata"])
    prefix = "transformer." if style == "diffusers" else ""
    assert stated[f"{prefix}r"] == stated[f"{prefix}lora_alpha"] == RANK
    assert stated[f"{prefix}rank_pattern"] == {LAYERS[0]: 2}
    assert stated[f"{prefix}target_modules"] == sorted(LAYERS)
    assert match_lora(read_lora(tmp_path / "x.safetensors"), shapes).pairs[LAYERS[0]].scale == 1


def test_writing_to_nowhere(matrices, tmp_path):
    pairs = {name: LoraPair(*pair, 1.0) for name, pair in matrices.items()}
    with pytest.raises(OutputError, match="does not exist"):
        save_lora(tmp_path / "no" / "x.safetensors", pairs, "peft")


def test_names_without_dots_are_found_among_the_familys(matrices, write):
    lora = read_lora(write(matrices, "kohya"))
    assert set(lora.pairs) == {name.replace(".", "_") for name in LAYERS}
    assert set(name_layers(lora).pairs) == set(LAYERS)


def test_show_says_what_a_lora_is(write, matrices, capsys):
    path = write(matrices, "kohya", alpha=2.0, metadata={"trigger": "zorb"})
    assert main(["lora", "show", str(path)]) == 0
    text = capsys.readouterr().out
    for words in ("kohya names, 5 layers", "rank 4, alpha 2 (its tensors): scale 0.5", "'zorb'"):
        assert words in text
    assert "fits debug\n" in text
    assert "1 x self_attention.to_query" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "nothing.safetensors"], "does not exist"),
        (["convert", "lora.safetensors", "out.bin", "--style", "peft"], "give a .safetensors"),
    ],
)
def test_command_line_refuses_in_one_sentence(capsys, arguments, words):
    assert main(["lora", *arguments]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
