"""The nano family's text encoder: words of a small closed vocabulary and a tiny transformer.

It stands where Qwen2.5-VL and CLIP stand in the large models and answers the same protocol: the
token states after the final norm, and one pooled vector, which here is the state of a start token.
Its file holds its configuration and its vocabulary, so that loading needs nothing else.

Letters: B batch, L text tokens, D width, N heads, K head dim.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ..errors import CheckpointError
from ..family.config import METADATA_KEY, NanoTextConfig
from ..files import atomic_write
from .protocol import Task, TextConditioning

PAD_ID, UNKNOWN_ID, START_ID = 0, 1, 2
NUM_SPECIAL_IDS = 3
KIND = "nano_text_encoder"

_WORD = re.compile(r"[^\W_]+")  # letters and digits of any script


def split_words(prompt: str) -> list[str]:
    """Lower-case a prompt and cut it into runs of letters and digits, of any script."""
    # NFC joins a letter and its combining accent, so that both spellings of "й" are one letter
    return _WORD.findall(unicodedata.normalize("NFC", prompt).lower())


class NanoTokenizer:
    """Maps words to ids: 0 padding, 1 unknown, 2 start, and from 3 on the vocabulary in order.

    Raises:
        ValueError: if a word occurs twice or could never come out of `split_words`.
    """

    def __init__(self, vocabulary: Sequence[str], *, max_len: int = 64) -> None:
        """Take the known words, and the most words of a prompt that are read."""
        self.vocabulary = tuple(vocabulary)
        self.max_len = max_len
        unusable = [word for word in self.vocabulary if split_words(word) != [word]]
        if unusable:
            raise ValueError(
                "vocabulary entries must be single lower-case words of letters and digits, "
                f"got {unusable[:3]}"
            )
        self._ids = {word: i for i, word in enumerate(self.vocabulary, start=NUM_SPECIAL_IDS)}
        if len(self._ids) != len(self.vocabulary):
            raise ValueError(
                f"vocabulary has {len(self.vocabulary) - len(self._ids)} repeated words; "
                "give each word once"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids, the three special ones included."""
        return NUM_SPECIAL_IDS + len(self.vocabulary)

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokenize prompts; each begins with the start token and "" is the start token alone.

        Args:
            prompts: B strings; words after the first `max_len` are dropped.

        Returns:
            ids (B, L) int64 and mask (B, L) bool, padded to the longest.
        """
        rows = [
            [START_ID, *(self._ids.get(word, UNKNOWN_ID) for word in words[: self.max_len])]
            for words in map(split_words, prompts)
        ]
        length = max(map(len, rows), default=1)
        ids = torch.full((len(rows), length), PAD_ID)
        for row, words in zip(ids, rows, strict=True):
            row[: len(words)] = torch.tensor(words)
        return ids, ids != PAD_ID

    def unknown_words(self, prompt: str) -> list[str]:
        """List the words of a prompt that are not in the vocabulary, each once, in order."""
        return [word for word in dict.fromkeys(split_words(prompt)) if word not in self._ids]


class _Layer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, config: NanoTextConfig, ops: ModuleType, **factory: object) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.attention_norm = ops.LayerNorm(dim, **factory)
        self.to_qkv = ops.Linear(dim, 3 * dim, **factory)
        self.out_layer = ops.Linear(dim, dim, **factory)
        self.feed_forward_norm = ops.LayerNorm(dim, **factory)
        self.feed_forward_in = ops.Linear(dim, 4 * dim, **factory)
        self.feed_forward_out = ops.Linear(4 * dim, dim, **factory)

    def forward(self, x: Tensor, key_mask: Tensor) -> Tensor:
        q, k, v = rearrange(
            self.to_qkv(self.attention_norm(x)),
            "b l (three n k) -> three b n l k",
            three=3,
            n=self.num_heads,
        )
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
        x = x + self.out_layer(rearrange(attended, "b n l k -> b l (n k)"))  # (B, L, D)
        hidden = functional.gelu(self.feed_forward_in(self.feed_forward_norm(x)))  # (B, L, 4 D)
        return x + self.feed_forward_out(hidden)  # (B, L, D)


class NanoTextEncoder(nn.Module):
    """A small bidirectional transformer over words; answers the `TextEncoder` protocol."""

    def __init__(
        self,
        config: NanoTextConfig,
        vocabulary: Sequence[str],
        *,
        ops: ModuleType = torch.nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Build it with fresh weights.

        Args:
            config: Its dimensions; `vocab_size` counts the three special ids too.
            vocabulary: The known words; their order is part of the weights.
            ops: Module or class where Linear, LayerNorm and Embedding come from.
            dtype: Of the weights.
            device: Of the weights.

        Raises:
            ValueError: if the configuration and the vocabulary do not fit each other.
        """
        super().__init__()
        self.config = config
        self.tokenizer = NanoTokenizer(vocabulary, max_len=config.max_len)
        if config.vocab_size != self.tokenizer.vocab_size:
            raise ValueError(
                f"vocab_size is {config.vocab_size}, expected {self.tokenizer.vocab_size}: "
                f"{len(self.tokenizer.vocabulary)} words and {NUM_SPECIAL_IDS} special ids"
            )
        if config.dim % config.num_heads:
            raise ValueError(f"dim {config.dim} is not a multiple of num_heads {config.num_heads}")
        factory = {"dtype": dtype, "device": device}
        self.word_embeddings = ops.Embedding(config.vocab_size, config.dim, **factory)
        self.position_embeddings = ops.Embedding(config.max_len + 1, config.dim, **factory)
        self.layers = nn.ModuleList(
            _Layer(config, ops, **factory) for _ in range(config.num_layers)
        )
        self.final_norm = ops.LayerNorm(config.dim, **factory)
        for embeddings in (self.word_embeddings, self.position_embeddings):
            nn.init.normal_(embeddings.weight, std=config.dim**-0.5)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode token ids, with gradients.

        Args:
            ids: (B, L) int64, the start token first, L at most max_len + 1.
            mask: (B, L) bool, True for real tokens.

        Returns:
            tokens (B, L, D), zero where masked, and pooled (B, D), the start token's state.
        """
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.word_embeddings(ids) + self.position_embeddings(positions)  # (B, L, D)
        key_mask = rearrange(mask, "b l -> b 1 1 l")
        for layer in self.layers:
            x = layer(x, key_mask)
        tokens = self.final_norm(x) * mask[..., None]  # (B, L, D)
        return tokens, tokens[:, 0]

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str],
        *,
        task: Task = "t2v",  # noqa: ARG002  one template for all tasks
        images: Tensor | None = None,  # noqa: ARG002  this encoder does not see
    ) -> TextConditioning:
        """Encode prompts on the device of the weights; see `TextEncoder.encode`.

        The words that it does not know are read as one "unknown" word; ask `unknown_words`.
        """
        device = self.word_embeddings.weight.device
        ids, mask = (each.to(device) for each in self.tokenizer(prompts))
        tokens, pooled = self(ids, mask)
        return TextConditioning(tokens, mask, pooled)

    def unknown_words(self, prompt: str) -> list[str]:
        """List the words of a prompt that it never learnt, each once, in order."""
        return self.tokenizer.unknown_words(prompt)


def save_nano_text_encoder(path: str | Path, encoder: NanoTextEncoder) -> None:
    """Write the weights to a safetensors file, configuration and vocabulary in its metadata.

    Raises:
        OutputError: if the file cannot be written.
    """
    description = {
        "kind": KIND,
        "config": asdict(encoder.config),
        "vocabulary": encoder.tokenizer.vocabulary,
    }
    state = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    with atomic_write(path) as part:
        save_file(state, part, metadata={METADATA_KEY: json.dumps(description, ensure_ascii=False)})


def load_nano_text_encoder(
    path: str | Path,
    *,
    ops: ModuleType = torch.nn,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> NanoTextEncoder:
    """Read what `save_nano_text_encoder` wrote.

    Args:
        path: A safetensors file.
        ops: Module or class where Linear, LayerNorm and Embedding come from.
        dtype: Of the weights; None keeps the file's.
        device: Where the weights go.

    Returns:
        The encoder in evaluation mode.

    Raises:
        CheckpointError: if the file is not a whole nano text encoder.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).to(dtype=dtype) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    description = json.loads(metadata.get(METADATA_KEY, "{}"))
    if description.get("kind") != KIND:
        raise CheckpointError(
            f"{path} is not a nano text encoder: its metadata has no {METADATA_KEY!r} entry of "
            f"kind {KIND!r}; use the file that was trained with the transformer"
        )
    config = NanoTextConfig(**description["config"])
    if config.num_layers > len(state):  # building them would take as long as the file pleases
        raise CheckpointError(
            f"{path} does not hold the weights that it describes: {config.num_layers} layers in "
            f"{len(state)} tensors"
        )
    encoder = NanoTextEncoder(config, description["vocabulary"], ops=ops, device="meta")
    try:
        encoder.load_state_dict(state, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path} does not hold the weights that it describes: {reason}"
        ) from error
    return encoder.eval()
