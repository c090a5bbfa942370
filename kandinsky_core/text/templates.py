"""The chat templates around a prompt, and how much of the encoded text is kept.

They are part of the interface that the weights were trained with, so they are data and not to be
improved: spelling, newlines and all. Source: kandinskylab/kandinsky-5,
`kandinsky/models/text_embedders.py` (commit 6e2a805); checksums are in tests/core/test_text.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from .protocol import Task

TemplateKind = Literal["video", "image", "edit"]


@dataclass(frozen=True)
class Template:
    """A chat around a prompt."""

    text: str
    """The chat; {} stands for the prompt."""
    crop: int
    """Leading tokens that are encoded but not kept."""
    max_tokens: int | None
    """Most tokens kept after the crop, closing tag included; None keeps all."""

    @property
    def max_read(self) -> int | None:
        """Most tokens that Qwen reads, those that are not kept included; None for no limit."""
        return None if self.max_tokens is None else self.crop + self.max_tokens

    def fill(self, prompt: str, image_tokens: Sequence[int] = ()) -> str:
        """Put a prompt into the chat, and the places of images after it.

        Args:
            prompt: What was asked for.
            image_tokens: For an edit, how many tokens each image takes.

        Returns:
            The chat.

        Raises:
            ValueError: The prompt holds one of the chat's own tokens.
        """
        refuse_tags(prompt)
        chat = self.text.replace("{}", prompt, 1)
        if image_tokens:
            start, patch, end = IMAGE_TAGS
            chat += "".join(f"{start}{patch * count}{end}" for count in image_tokens) + END_TAG
        return chat

    def tokenize(self, tokenizer: Any, prompt: str, image_tokens: Sequence[int] = ()) -> list[int]:
        """Turn a prompt into what Qwen reads, cut at the limit as in the reference.

        Args:
            tokenizer: Qwen's, of transformers.
            prompt: As in `fill`.
            image_tokens: As in `fill`.

        Returns:
            Ids, the first `crop` of which are not kept once they are encoded.

        Raises:
            ValueError: The prompt holds one of the chat's own tokens.
        """
        return tokenizer(self.fill(prompt, image_tokens))["input_ids"][: self.max_read]


TEMPLATES: Mapping[TemplateKind, Template] = MappingProxyType(
    {
        "video": Template(
            "<|im_start|>system\n"
            "You are a promt engineer. Describe the video in detail.\n"
            "Describe how the camera moves or shakes, describe the zoom and view angle, "
            "whether it follows the objects.\n"
            "Describe the location of the video, main characters or objects and their action.\n"
            "Describe the dynamism of the video and presented actions.\n"
            "Name the visual style of the video: whether it is a professional footage, "
            "user generated content, some kind of animation, video game or scren content.\n"
            "Describe the visual effects, postprocessing and transitions if they are presented "
            "in the video.\n"
            "Pay attention to the order of key actions shown in the scene.<|im_end|>\n"
            "<|im_start|>user\n{}<|im_end|>",
            crop=129,
            max_tokens=256,
        ),
        "image": Template(
            "<|im_start|>system\n"
            "You are a promt engineer. Describe the image by detailing the color, shape, size, "
            "texture, quantity, text, spatial relationships of the objects and background:"
            "<|im_end|>\n"
            "<|im_start|>user\n{}<|im_end|>",
            crop=41,
            max_tokens=512,
        ),
        # Before the prompt there are 52 tokens, not 55: the reference drops the first three tokens
        # of every edit prompt, in training too. IMAGE_TAGS and END_TAG follow it.
        "edit": Template(
            "<|im_start|>system\n"
            "You are a promt engineer. Based on the provided source image (first image) and target "
            "image (second image), create an interesting text prompt that can be used together "
            "with the source image to create the target image:<|im_end|>\n"
            "<|im_start|>user\n{}",
            crop=55,
            max_tokens=None,
        ),
    }
)
"""Template kind -> template."""

TASK_TEMPLATES: Mapping[Task, TemplateKind] = MappingProxyType(
    {"t2v": "video", "i2v": "video", "t2i": "image", "i2i": "edit"}
)
"""Task -> template kind. Image-to-video uses the video template and does not see the image."""

IMAGE_TAGS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
"""What stands for an image after an edit prompt; the middle one is repeated for every patch."""
START_TAG = "<|im_start|>"
"""Opens each message of a chat."""
END_TAG = "<|im_end|>"
"""Closes each message; that of an edit prompt comes after the image."""
STOP_TAGS = (END_TAG, "<|endoftext|>")
"""What ends an answer."""


def refuse_tags(prompt: str) -> None:
    """Refuse a prompt that would change the chat around it, or be taken for an image.

    Raises:
        ValueError: It holds one of Qwen's special tokens.
    """
    for tag in (START_TAG, *STOP_TAGS, *IMAGE_TAGS):
        if tag in prompt:
            raise ValueError(
                f"prompt: found {tag}, a special token of Qwen2.5-VL, which a prompt cannot hold; "
                "remove it"
            )
