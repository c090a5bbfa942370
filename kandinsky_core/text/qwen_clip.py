"""The large models' text encoders: Qwen2.5-VL gives the tokens, CLIP ViT-L/14 the pooled vector.

Source: kandinskylab/kandinsky-5, `kandinsky/models/text_embedders.py` (commit 6e2a805). Tokens are
Qwen's states after its final norm, cropped as `templates.py` says; the pooled vector is CLIP's
pooler output of the bare prompt, without its projection. The prompt is not cleaned in any way.

Letters: B batch, L text tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import import_extra
from .protocol import Task, TextConditioning
from .templates import IMAGE_TAGS, TASK_TEMPLATES, TEMPLATES
from .vision import MAX_IMAGE_PIXELS, MIN_IMAGE_PIXELS
from .writing import CannotWriteError, TokenChooser, Written, write_with_transformers

CLIP_LENGTH = 77
"""Tokens that CLIP reads: the prompt, cut or padded."""
NO_VISION = (
    "an edit prompt is encoded together with its source image, and this Qwen2.5-VL was loaded "
    "without its vision tower"
)
"""What a user reads who edits with a text encoder that cannot see; the reason follows."""


class QwenClipTextEncoder(nn.Module):
    """Qwen2.5-VL and CLIP behind the `TextEncoder` protocol, and Qwen behind `Writer`.

    `load_qwen_clip` makes one from files. With `offload`, each of the two models is on `device`
    only while it encodes, so that the transformer finds the memory free; `release` drops both.
    """

    def __init__(
        self,
        qwen: nn.Module,
        qwen_tokenizer: Any,
        clip: nn.Module,
        clip_tokenizer: Any,
        *,
        device: torch.device | str | None = None,
        offload: bool = False,
        read_head: Callable[[], Tensor] | None = None,
        why_blind: str = "",
    ) -> None:
        """Take built models.

        Args:
            qwen: transformers' `Qwen2_5_VLModel` (the one without the language head).
            qwen_tokenizer: Its tokenizer.
            clip: transformers' `CLIPTextModel`.
            clip_tokenizer: Its tokenizer.
            device: Where to encode; None is where the weights are at the time.
            offload: Whether the weights stay where they are now except while they encode.
            read_head: Returns the weight (V, D) of Qwen's language head. Only writing needs it, so
                it is read then; without it the encoder cannot write.
            why_blind: Why `qwen` has no vision tower and what to do, a clause for messages.
        """
        super().__init__()
        self._why_blind = why_blind
        self._read_head = read_head
        self.qwen: nn.Module | None = qwen.eval().requires_grad_(False)
        self.clip: nn.Module | None = clip.eval().requires_grad_(False)
        self.qwen_tokenizer = qwen_tokenizer
        self.clip_tokenizer = clip_tokenizer
        self.device = None if device is None else torch.device(device)
        self.offload = offload
        if self.device is not None and not offload:
            self.to(self.device)

    def release(self) -> None:
        """Drop the weights of both models; encoding is not possible any more."""
        self.qwen = self.clip = None
        _empty_cache(self.device)

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], *, task: Task = "t2v", images: Tensor | None = None
    ) -> TextConditioning:
        """Encode prompts; see `TextEncoder.encode`.

        Args:
            prompts: B strings. What exceeds the template's cap is cut off, as in the reference.
            task: Chooses the template.
            images: For "i2i" the source images (B or 1, 3, H, W), float in [-1, 1], as the
                VAE gets them: Qwen sees each at half that size. Other tasks do not look at them.

        Returns:
            tokens (B, L, 3584), zero where masked, mask, and pooled (B, 768), in the dtype of the
            weights and on the device where they were encoded.

        Raises:
            ValueError: if there are no prompts, one holds a special token of Qwen, an edit has no
                image, or the numbers of prompts and images differ.
        """
        if self.qwen is None or self.clip is None:
            raise ValueError("the text encoder was released; load it again before encoding")
        if not prompts:
            raise ValueError("expected at least one prompt, got none")
        qwen_inputs = self._qwen_inputs(self.qwen, prompts, task, images)
        clip_inputs = self.clip_tokenizer(
            list(prompts),
            max_length=CLIP_LENGTH,
            truncation=True,
            padding="max_length",
            return_tensors="pt",
        )
        crop = TEMPLATES[TASK_TEMPLATES[task]].crop
        with self._placed(self.qwen) as device:
            qwen_inputs = {name: tensor.to(device) for name, tensor in qwen_inputs.items()}
            states = self.qwen(**qwen_inputs, use_cache=False).last_hidden_state  # after its norm
            tokens = states[:, crop:]  # (B, L, 3584)
            mask = qwen_inputs["attention_mask"][:, crop:].bool()  # (B, L)
        with self._placed(self.clip) as device:
            pooled = self.clip(**clip_inputs.to(device)).pooler_output  # (B, 768)
        return TextConditioning(tokens.masked_fill(~mask[..., None], 0), mask, pooled)

    def tokenize(
        self, prompts: Sequence[str], task: Task, image_tokens: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make Qwen's input ids, template included.

        Args:
            prompts: B strings.
            task: Chooses the template and its cap.
            image_tokens: For an edit, the number of tokens that each prompt's image takes.

        Returns:
            ids (B, L) int64 and mask (B, L) bool, padded at the end to the longest.
        """
        template = TEMPLATES[TASK_TEMPLATES[task]]
        images = [()] * len(prompts) if image_tokens is None else [(n,) for n in image_tokens]
        rows = [
            torch.tensor(template.tokenize(self.qwen_tokenizer, prompt, image))
            for prompt, image in zip(prompts, images, strict=True)
        ]
        ids = nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=self.qwen_tokenizer.pad_token_id
        )
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    def _qwen_inputs(
        self, qwen: nn.Module, prompts: Sequence[str], task: Task, images: Tensor | None
    ) -> dict[str, Tensor]:
        """Return what Qwen's forward takes, on the CPU."""
        image_inputs: dict[str, Tensor] = {}
        image_tokens = None
        if TASK_TEMPLATES[task] == "edit":
            if getattr(qwen, "visual", None) is None:
                raise ValueError(f"{NO_VISION}: {self._why_blind}")
            image_inputs, image_tokens = _look_at(self._halves(prompts, images))
        ids, mask = self.tokenize(prompts, task, image_tokens)
        return self._forward_inputs(qwen, ids, mask, image_inputs)

    @torch.no_grad()
    def write(
        self, chat: str, image: Tensor | None, choose: TokenChooser, max_tokens: int
    ) -> Written:
        """Continue a chat through transformers' `generate`; see `Writer.write`."""
        if self.qwen is None:
            raise ValueError("the text encoder was released; load it again before writing")
        if self._read_head is None:
            raise CannotWriteError("This text encoder was built without Qwen's language head")
        head = self._read_head()
        image_inputs: dict[str, Tensor] = {}
        if image is not None:
            if getattr(self.qwen, "visual", None) is None:
                raise CannotWriteError(
                    "This Qwen2.5-VL was loaded without its vision tower, with which it looks at "
                    f"the image ({self._why_blind})"
                )
            image_inputs, (count,) = _look_at(image)
            chat = chat.replace(IMAGE_TAGS[1], IMAGE_TAGS[1] * count, 1)
        ids = torch.tensor([self.qwen_tokenizer(chat)["input_ids"]])
        inputs = self._forward_inputs(self.qwen, ids, torch.ones_like(ids), image_inputs)
        with torch.device("meta"):
            transformers = import_extra("transformers", "text")
            model = transformers.Qwen2_5_VLForConditionalGeneration(self.qwen.config)
        model.model = self.qwen
        with self._placed(self.qwen) as device:
            # packed weights are bytes
            dtype = next(p.dtype for p in self.qwen.parameters() if p.is_floating_point())
            model.lm_head.weight = nn.Parameter(head.to(device, dtype), requires_grad=False)
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            return write_with_transformers(
                model.eval(), self.qwen_tokenizer, inputs, choose, max_tokens
            )

    def _forward_inputs(
        self, qwen: nn.Module, ids: Tensor, mask: Tensor, image_inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return what Qwen's forward takes for ids and mask (B, L)."""
        if image_inputs and "mm_token_type_ids" in inspect.signature(qwen.forward).parameters:
            # transformers 5 wants the image tokens pointed out; 4 finds them by their id
            patch_id = self.qwen_tokenizer.convert_tokens_to_ids(IMAGE_TAGS[1])
            image_inputs["mm_token_type_ids"] = (ids == patch_id).int()
        return {"input_ids": ids, "attention_mask": mask.long(), **image_inputs}

    @staticmethod
    def _halves(prompts: Sequence[str], images: Tensor | None) -> Tensor:
        """Check the images of edit prompts and return them as Qwen sees them."""
        if images is None:
            raise ValueError(
                "an edit prompt is encoded together with its source image, got no image; "
                "connect the image, to the negative prompt too"
            )
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] not in (1, len(prompts)):
            raise ValueError(
                f"source images must have shape ({len(prompts)} or 1, 3, height, width) for "
                f"{len(prompts)} prompts, got {tuple(images.shape)}"
            )
        return halve_images(images.expand(len(prompts), -1, -1, -1))

    @contextmanager
    def _placed(self, module: nn.Module) -> Iterator[torch.device]:
        """Yield the device where the module is now; with `offload` it is there only meanwhile."""
        if self.device is None or not self.offload:
            yield next(module.parameters()).device
            return
        home = next(module.parameters()).device
        weights = [(parameter, parameter.data) for parameter in module.parameters()]
        module.to(self.device)
        try:
            yield self.device
        finally:
            # weights are never written, so the copies can be dropped instead of moved back
            for parameter, data in weights:
                parameter.data = data
            module.to(home)  # the buffers; the parameters are there already
            _empty_cache(self.device)


def halve_images(images: Tensor) -> Tensor:
    """Halve images the way the reference shows them to Qwen: bilinear with antialiasing, 8 bits.

    Args:
        images: (B, 3, H, W) float in [-1, 1].

    Returns:
        (B, 3, H // 2, W // 2) uint8, on the CPU.
    """
    levels = ((images.float().cpu() + 1) * 127.5).round().clamp(0, 255)
    size = (max(1, images.shape[-2] // 2), max(1, images.shape[-1] // 2))
    halves = functional.interpolate(levels, size=size, mode="bilinear", antialias=True)
    return halves.round().to(torch.uint8)


def _look_at(images: Tensor) -> tuple[dict[str, Tensor], list[int]]:
    """Return Qwen's inputs for images (B, 3, H, W) uint8, and how many tokens each takes."""
    transformers = import_extra("transformers", "text")
    import_extra("torchvision", "text")  # transformers' own message is a page long
    # the reference uses the torchvision variant, whose name changed in transformers 5
    major = int(transformers.__version__.split(".")[0])
    name = "Qwen2VLImageProcessor" if major >= 5 else "Qwen2VLImageProcessorFast"
    processor = getattr(transformers, name)(
        min_pixels=MIN_IMAGE_PIXELS, max_pixels=MAX_IMAGE_PIXELS
    )
    inputs = processor(images=list(images), return_tensors="pt")
    merged = processor.merge_size**2
    counts = [int(grid.prod()) // merged for grid in inputs["image_grid_thw"]]
    return dict(inputs), counts


def _empty_cache(device: torch.device | None) -> None:
    """Give back to the driver what the allocator keeps, so that other models find it free."""
    if device is not None and device.type == "cuda":
        torch.cuda.empty_cache()
