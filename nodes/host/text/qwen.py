"""Qwen2.5-VL and CLIP-L through ComfyUI's own text models, with the reference's templates.

Differs from ComfyUI's native Kandinsky 5 encoder: the tokens are Qwen's states after its final
norm, as the transformers were trained, and the cuts are the reference's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import comfy.sd1_clip
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.qwen_image
import torch
from torch import Tensor, nn

from ....kandinsky_core.text import (
    CLIP_LENGTH,
    IMAGE_TAGS,
    NO_VISION,
    TASK_TEMPLATES,
    TEMPLATES,
    fit_for_qwen,
    halve_images,
)
from ..packed import PackedOperations
from ..prompt import TEXT_MARK, prepare_prompt
from .vision import as_picture, picture_order
from .weights import (
    SCALED_MARK,
    VISION,
    QwenClipWeights,
    clip_config,
    fill,
    parameters_of,
    qwen_config,
)

QWEN = "qwen25_7b"
CLIP_L = "clip_l"
CROP = "k5_crop"
"""Entry of the token dictionary: tokens to drop from the front after encoding."""


class QwenClipTokenizer:
    """Prompt to tokens, template included."""

    def __init__(
        self,
        embedding_directory: Any = None,
        tokenizer_data: dict[str, Any] | None = None,
        *,
        packed_file: Path | None = None,
    ) -> None:
        """Make the tokenizers of both models.

        Args:
            embedding_directory: The host's.
            tokenizer_data: The host's.
            packed_file: The GGUF file from which the model keeps its weights packed.
        """
        self._packed_file = packed_file
        data = tokenizer_data or {}
        self.qwen = comfy.text_encoders.qwen_image.Qwen25_7BVLITokenizer(
            embedding_directory=embedding_directory, tokenizer_data=data
        ).tokenizer
        self._clip = comfy.sd1_clip.SDTokenizer(
            embedding_directory=embedding_directory, tokenizer_data=data
        ).tokenizer

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        *,
        tokenizer_options: dict[str, Any] | None = None,
        images: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Tokenize a prompt.

        Args:
            text: The prompt; it goes in as it is, weights of the form (word:1.2) aside.
            return_word_ids: Whether each pair gets a third, empty, entry.
            tokenizer_options: "task" chooses the template; `TRIGGERS` go before the prompt.
            images: Source images (B, 3, H, W) in [-1, 1], which an edit prompt needs.

        Raises:
            ValueError: An edit has no image, or the prompt holds a special token of Qwen.
        """
        text = prepare_prompt(text, tokenizer_options)
        kind = TASK_TEMPLATES[(tokenizer_options or {}).get("task", "t2v")]
        template = TEMPLATES[kind]
        pictures: list[dict[str, Any]] = []
        if kind == "edit":
            if images is None:
                raise ValueError(
                    "image: an edit prompt is encoded together with its source image, found "
                    "none; connect it, to the negative prompt too."
                )
            pictures = [as_picture(fit_for_qwen(half[None])) for half in halve_images(images)]
        # the host puts a picture, however large, in the place of one token
        ids = template.tokenize(self.qwen, text, [1] * len(pictures))
        ids = self._with_pictures(ids, pictures)
        clip_ids = self._clip(text, max_length=CLIP_LENGTH, truncation=True, padding="max_length")[
            "input_ids"
        ]
        tail = (0,) if return_word_ids else ()
        return {
            QWEN: [[(token, 1.0, *tail) for token in ids]],
            CLIP_L: [[(token, 1.0, *tail) for token in clip_ids]],
            CROP: template.crop,
        }

    def tokenize_chat(self, chat: str, image: Tensor | None) -> list[Any]:
        """Tokenize a whole chat for Qwen, with an image (1, 3, H, W) uint8 where its tag is."""
        pictures = [] if image is None else [as_picture(image)]
        return self._with_pictures(self.qwen(chat)["input_ids"], pictures)

    def _with_pictures(self, ids: list[Any], pictures: Sequence[dict[str, Any]]) -> list[Any]:
        """Put pictures where the image tags are."""
        patch_id = self.qwen.convert_tokens_to_ids(IMAGE_TAGS[1])
        places = [place for place, token in enumerate(ids) if token == patch_id]
        for place, picture in zip(places, pictures, strict=True):
            ids[place] = picture
        return ids

    def untokenize(self, pairs: list[tuple[Any, ...]]) -> list[tuple[Any, str]]:
        """Pair each of Qwen's tokens with its text."""
        return [(pair, self.qwen.decode([pair[0]])) for pair in pairs]

    def state_dict(self) -> dict[str, Tensor]:
        """Return nothing; the host asks for it only where it saves a CLIP.

        Raises:
            ValueError: The model's weights are packed, and the host would save them as bytes.
        """
        if self._packed_file is not None:
            raise ValueError(
                f"clip: the text encoder {self._packed_file.name} is in memory as its GGUF file "
                "packs it, and no other format holds that; keep the file itself, or save a CLIP "
                "that was loaded from a .safetensors file."
            )
        return {}


class QwenClipModel(nn.Module):
    """Both models behind ComfyUI's contract for text models.

    Raises:
        ValueError: A file lacks weights, or they are of another size.
    """

    def __init__(
        self,
        weights: QwenClipWeights,
        device: Any = "cpu",
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = model_options or {}
        qwen, clip = weights.qwen.shapes, weights.clip.shapes
        detected = comfy.text_encoders.hunyuan_video.llama_detect(qwen)
        stored = qwen["model.layers.0.self_attn.q_proj.weight"].dtype
        if stored.itemsize == 1 and SCALED_MARK not in qwen:
            # the host goes by a norm, which such files may keep in bf16
            detected["dtype_llama"] = stored
        factory = comfy.text_encoders.qwen_image.te
        taken = parameters_of(factory)
        build = factory(**{key: value for key, value in detected.items() if key in taken})
        qwen_options = {**options, f"{QWEN}_model_config": qwen_config(qwen)}
        if weights.qwen.stays_packed:
            qwen_options["custom_operations"] = PackedOperations
        self.qwen = getattr(build(device=device, dtype=dtype, model_options=qwen_options), QWEN)
        clip_options = {
            **options,
            "model_name": CLIP_L,
            f"{CLIP_L}_model_config": clip_config(clip),
        }
        clip_dtype = clip["text_model.final_layer_norm.weight"].dtype
        self.clip = comfy.sd1_clip.SDClipModel(
            device=device,
            dtype=clip_dtype,
            return_projected_pooled=False,
            model_options=clip_options,
        )
        self.sees = weights.sees
        self.dtypes = {clip_dtype, detected.get("dtype_llama", dtype)}
        self.qwen_path = weights.qwen_header.path
        self.why_blind = weights.qwen_header.why_blind
        fill(self.qwen.transformer, weights.qwen, () if self.sees else (VISION,))
        fill(self.clip.transformer, weights.clip)

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Pass on where to compute; see `set_device`."""
        set_device((self.qwen, self.clip), options)

    def reset_clip_options(self) -> None:
        """Go back to what both models were built with."""
        for model in (self.qwen, self.clip):
            model.reset_clip_options()

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Encode what `QwenClipTokenizer` made: tokens (1, L, 3584), pooled (1, 768).

        Raises:
            ValueError: There are images, and no vision tower was loaded.
        """
        if not self.sees and has_pictures(tokens):
            raise ValueError(f"qwen_name: {self.qwen_path.name}: {NO_VISION}: {self.why_blind}.")
        return encode_tokens(self.qwen, self.clip, tokens)

    def load_sd(self, sd: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        """Load either model's weights, told apart by their names."""
        is_clip = "text_model.final_layer_norm.weight" in sd
        return (self.clip if is_clip else self.qwen).load_sd(sd)


def set_device(models: Iterable[Any], options: dict[str, Any]) -> None:
    """Pass on where to compute (ComfyUI after 0.3.75), and not the layer that CLIP skip asks for:
    the reference always takes the last.

    Args:
        models: The host's text models.
        options: What the host asks a CLIP for.
    """
    placed = {key: value for key, value in options.items() if key == "execution_device"}
    for model in models if placed else ():
        model.set_clip_options(placed)


def has_pictures(tokens: dict[str, Any]) -> bool:
    """Return whether what `QwenClipTokenizer` made is more than text."""
    return any(not isinstance(pair[0], int) for pair in tokens[QWEN][0])


def encode_tokens(
    qwen: Any, clip: Any, tokens: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Encode what `QwenClipTokenizer` made, as the reference does.

    Args:
        qwen: The host's Qwen2.5-VL, set to give its states after the final norm.
        clip: The host's CLIP-L, set to give its pooled vector without the projection.
        tokens: Of both.

    Returns:
        Tokens (1, L, 3584), pooled (1, 768), and the mark of this encoder.
    """
    with picture_order(qwen.transformer.visual):
        states = qwen.encode_token_weights(tokens[QWEN])[0]
    pooled = clip.encode_token_weights(tokens[CLIP_L])[1]
    return states[:, tokens[CROP] :], pooled, {TEXT_MARK: True}
