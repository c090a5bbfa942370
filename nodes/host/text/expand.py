"""Prompt expansion with the CLIP that is loaded anyway: Qwen2.5-VL writes token by token.

The layers of ComfyUI's Qwen are called as they are. They take the function that computes their
attention as an argument, and a hook hands them one that remembers the keys and values. So every
token after the prompt costs one pass of one token: an answer of 256 to a chat of 200 takes passes
of 455 tokens in all, 83 840 without that memory.
Letters: B batch, C channels, N heads, L text tokens, K head dim, V vocabulary, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....kandinsky_core.text import (
    CannotWriteError,
    Expansion,
    Language,
    Task,
    TokenChooser,
    Written,
    read_language_head,
    stop_ids,
)
from ....kandinsky_core.text import expand_prompt as expand_with
from ..run import Progress
from .qwen import QwenClipTokenizer
from .vision import picture_order


def expand_prompt(
    clip: comfy.sd.CLIP,
    prompt: str,
    *,
    task: Task,
    images: Tensor | None,
    language: Language,
    seed: int,
    max_tokens: int,
    temperature: float,
) -> Expansion:
    """Have the text encoder of a CLIP write a prompt out; see the core's `expand_prompt`.

    Args:
        clip: From `load_text_encoders`; other ones give the prompt back.
        prompt: The request.
        task: What the prompt is for.
        images: (B, 3, H, W) in [-1, 1], what "i2v" and "i2i" start from.
        language: Of the expansion.
        seed: Of the draws.
        max_tokens: Most tokens that are written.
        temperature: 0 takes the likeliest word each time.

    Returns:
        The expansion, or the prompt and why it is unchanged.

    Raises:
        InterruptProcessingException: The user pressed Cancel.
    """
    progress = Progress(max_tokens)
    result = expand_with(
        QwenWriter(clip) if isinstance(clip.tokenizer, QwenClipTokenizer) else None,
        prompt,
        task=task,
        image=images,
        language=language,
        seed=seed,
        max_tokens=max_tokens,
        temperature=temperature,
        on_token=progress.advance,
    )
    if not result.expanded:
        logging.warning("Kandinsky 5: %s", result.note)
    return result


class QwenWriter:
    """The Qwen2.5-VL inside a CLIP of ours, as the core's `Writer`."""

    def __init__(self, clip: comfy.sd.CLIP) -> None:
        self._clip = clip

    def write(
        self, chat: str, image: Tensor | None, choose: TokenChooser, max_tokens: int
    ) -> Written:
        """Continue a chat; see the core's `Writer.write`."""
        model, tokenizer = self._clip.cond_stage_model, self._clip.tokenizer
        if image is not None and not model.sees:
            raise CannotWriteError(
                f"{model.qwen_path.name} holds no vision tower, with which Qwen2.5-VL looks at "
                f"the image (disconnect the image, or load it with one: {model.why_blind})"
            )
        head = LanguageHead(read_language_head(model.qwen_path))
        own = self._clip.patcher
        patcher = ModelPatcher(head, load_device=own.load_device, offload_device=own.offload_device)
        ids, stops = tokenizer.tokenize_chat(chat, image), stop_ids(tokenizer.qwen)
        comfy.model_management.load_models_gpu([own, patcher])
        try:
            written = decode(model.qwen, head, ids, choose, max_tokens, stops, own.load_device)
        finally:
            patcher.detach()  # encoding, which comes next, does not need it
        return Written.from_ids(written, tokenizer.qwen)


class LanguageHead(nn.Module):
    """The layer that turns Qwen's states into words, a model of its own to the host."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        vocab_size, width = weight.shape
        self.lm_head = comfy.ops.manual_cast.Linear(width, vocab_size, bias=False, device="meta")
        self.lm_head.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, states: Tensor) -> Tensor:
        """Turn states (B, D) into logits (B, V)."""
        return self.lm_head(states)


def decode(
    qwen: Any,
    head: Callable[[Tensor], Tensor],
    ids: list[Any],
    choose: TokenChooser,
    max_tokens: int,
    stops: Iterable[int],
    device: torch.device,
) -> list[int]:
    """Continue tokens with one of the host's language models.

    Args:
        qwen: The host's text model (an SDClipModel), its weights loaded.
        head: States (B, D) after the final norm -> logits (B, V).
        ids: Token ids, and pictures as the host takes them among tokens.
        choose: How to choose tokens.
        max_tokens: Most tokens that are written.
        stops: Ids that end the answer.
        device: Where to compute; weights that are elsewhere are fetched layer by layer.

    Returns:
        Ids of the answer; the last may be a stop.
    """
    transformer = qwen.transformer
    embed = transformer.get_input_embeddings()
    dtype = torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32
    looks = any(isinstance(each, dict) for each in ids)
    with picture_order(transformer.visual) if looks else nullcontext():
        embeds, _mask, num_tokens, infos = qwen.process_tokens([ids], device)  # (1, L, D)
    # a picture takes as many positions as its longer side has tokens
    pictures = [info for info in infos if info.get("type") == "image"]
    position = embeds.shape[1] + sum(
        int(info["extra"].max()) // 2 - info["size"] for info in pictures
    )
    written: list[int] = []
    with _remembered(transformer.model.layers):
        states = transformer(
            None,
            None,
            embeds=embeds.to(dtype),
            num_tokens=num_tokens,
            dtype=dtype,
            embeds_info=infos,
        )[0]
        while True:
            written.append(choose(head(states[:, -1])[0]))
            if written[-1] in stops or len(written) == max_tokens:
                return written
            token = torch.tensor([[written[-1]]], device=device)
            states = transformer.model(
                None,
                embeds=embed(token, out_dtype=dtype),
                position_ids=torch.tensor([[position]], device=device),
            )[0]
            position += 1


@contextmanager
def _remembered(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let the attention of each layer see the keys and values of its former calls."""
    hooks = []
    for layer in layers:
        memory = _Memory(layer.self_attn.num_kv_heads)
        hooks.append(layer.self_attn.register_forward_pre_hook(memory.hand_over, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Memory:
    """Keys and values of one layer."""

    def __init__(self, num_kv_heads: int) -> None:
        self._num_kv_heads = num_kv_heads
        self._past: tuple[Tensor, Tensor] | None = None

    def hand_over(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Wrap the attention function among a layer's arguments."""
        attention = kwargs["optimized_attention"]

        def attend(
            q: Tensor, k: Tensor, v: Tensor, heads: int, *, mask: Tensor | None, **options: Any
        ) -> Tensor:
            # (1, N, L, K): the host may have repeated keys and values for their group of queries
            repeats = k.shape[1] // self._num_kv_heads
            k, v = k[:, ::repeats], v[:, ::repeats]
            if self._past is not None:
                k, v = (torch.cat(pair, dim=2) for pair in zip(self._past, (k, v), strict=True))
                mask = None  # the one new token sees all before it
            self._past = k, v
            k, v = (each.repeat_interleave(repeats, dim=1) for each in (k, v))
            return attention(q, k, v, heads, mask=mask, **options)

        return args, {**kwargs, "optimized_attention": attend}
