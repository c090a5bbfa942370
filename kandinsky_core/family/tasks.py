"""What a task may do: which ones start from an image, which make one, and which a model knows."""

from __future__ import annotations

from collections.abc import Sequence

from .settings import EXAMPLE_FILES, Task

IMAGE_TASKS: tuple[Task, ...] = ("i2v", "i2i")
"""Tasks that start from an image."""
STILL_TASKS: tuple[Task, ...] = ("t2i", "i2i")
"""Tasks whose result is one frame."""


def default_task(tasks: Sequence[Task], *, with_image: bool) -> Task:
    """Return the first task of a model that starts from an image, or that does not.

    Where it has none, the one that was meant, which `check_task` refuses.
    """
    for task in tasks:
        if (task in IMAGE_TASKS) == with_image:
            return task
    if with_image:
        return "i2i" if tasks[0] in STILL_TASKS else "i2v"
    return tasks[0]


def check_task(task: Task, tasks: Sequence[Task]) -> None:
    """Refuse a task that a model was not trained for.

    Args:
        task: What is to be made from what.
        tasks: Those of the model.

    Raises:
        ValueError: It is none of them; the sentence names a file that does it.
    """
    if task not in tasks:
        raise ValueError(
            f"task {task} is not what this model was trained for; choose {' or '.join(tasks)}, or "
            f"load a file for it such as {EXAMPLE_FILES[task]}"
        )


def check_image(task: Task, *, is_given: bool, is_taken: bool) -> None:
    """Refuse a task without the image that it starts from, and an image that it does not take.

    Args:
        task: What is to be made from what.
        is_given: Whether there is an image to start from.
        is_taken: Whether the network has an input for one.

    Raises:
        ValueError: Task, image and network do not go together.
    """
    wants_image = task in IMAGE_TASKS
    if wants_image and not is_given:
        raise ValueError(f"task {task} starts from an image, got none; give one")
    if not wants_image and is_given:
        raise ValueError(
            f"task {task} takes no image, got one; leave it out, or choose i2v (video from "
            "an image) or i2i (edit)"
        )
    if wants_image and not is_taken:
        raise ValueError(
            f"task {task} needs a model with an image input, and this checkpoint makes "
            "images from text only; load a video or image-edit checkpoint"
        )
