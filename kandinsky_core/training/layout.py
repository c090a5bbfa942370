"""Where everything is in a rendered scene, latent frame by latent frame: targets of `alignment`.

The world is made by code, so what a feature extractor would have to find in real videos is known
here: for every object its place, size, turn, speed, shape and colour, and what the camera does.

Letters: B batch, T H W token grid, O objects at most, E entries of an object, F entries of a token.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .world import BACKGROUNDS, CAMERAS, COLORS, MOTIONS, SHAPES, SIZES, Scene
from .world.scene import ObjectSpec, poses, views

MAX_OBJECTS = 3
_REACH = max(shape.radius for shape in SHAPES.values())
_HALF_STEP = 0.1  # of the differences that give speeds, in clip lengths
_POSE_ENTRIES = 9  # x y, log size, orientation as a cosine and a sine, speeds of all four
OBJECT_ENTRIES = 1 + _POSE_ENTRIES + len(SHAPES) + len(COLORS) + len(BACKGROUNDS) + 2
"""Presence, pose and speeds, kind of the object; background and camera, the same for all."""
TOKEN_ENTRIES = OBJECT_ENTRIES
"""As many: how much of the token the object covers stands where its presence stood."""
TOKEN_SCALES: tuple[float, ...] = (
    0.27, 0.6, 0.6, 0.3, 0.5, 0.5, 0.3, 0.3, 0.3, 0.4,
    *[0.43] * len(SHAPES), *[0.33] * len(COLORS), *[0.37] * len(BACKGROUNDS), 0.15, 0.15,
)  # fmt: skip
"""About how much each entry of a token varies: errors count relative to it."""
LABELS: tuple[tuple[str, str], ...] = tuple(
    (what, name)
    for what, table in (
        ("shape", SHAPES), ("color", COLORS), ("motion", MOTIONS), ("size", SIZES),
        ("background", BACKGROUNDS), ("camera", CAMERAS),
    )
    for name in table
)  # fmt: skip
"""What a caption can be asked about."""


def latent_times(num_frames: int, num_latent_frames: int) -> np.ndarray:
    """Return the middle of each latent frame's frames, as a share of the clip (T,) in [0, 1]."""
    if num_frames == 1:
        return np.zeros(1)
    stride = (num_frames - 1) // (num_latent_frames - 1)
    middles = stride * np.arange(num_latent_frames) - (stride - 1) / 2
    return np.maximum(middles, 0.0) / (num_frames - 1)


def scene_layout(scene: Scene, num_frames: int, num_latent_frames: int) -> Tensor:
    """Describe a scene at the times of a clip's latent frames.

    Args:
        scene: At most three objects.
        num_frames: Frames of the clip; 1 for its first frame as an image, where nothing moves.
        num_latent_frames: T.

    Returns:
        (T, O, E) fp32 with world units on the screen; rows of absent objects are zero.
    """
    times = latent_times(num_frames, num_latent_frames)
    result = np.zeros((len(times), MAX_OBJECTS, OBJECT_ENTRIES), np.float32)
    for index, spec in enumerate(scene.objects):
        before, after = np.maximum(times - _HALF_STEP, 0), np.minimum(times + _HALF_STEP, 1)
        start, middle, end = (_on_screen(scene, spec, each) for each in (before, times, after))
        speed = (end - start) / (after - before)[:, None] * (num_frames > 1)
        x, y, log_size, angle = middle.T
        symmetry = SHAPES[spec.shape].symmetry
        order = math.tau / symmetry if symmetry else 0.0
        visible = float(symmetry > 0)
        pose = [x, y, log_size, visible * np.cos(order * angle), visible * np.sin(order * angle)]
        result[:, index, 0] = 1.0
        result[:, index, 1 : 1 + _POSE_ENTRIES] = np.stack([*pose, *speed.T], axis=1)
        kind = [
            *(name == spec.shape for name in SHAPES),
            *(name == spec.color for name in COLORS),
            *(name == scene.background for name in BACKGROUNDS),
        ]
        result[:, index, 1 + _POSE_ENTRIES : -2] = np.array(kind, np.float32)
        view = views(scene.camera, times)
        moves = num_frames > 1
        result[:, index, -2:] = np.stack([view.x, np.log(view.zoom)], axis=1) * moves
    return torch.from_numpy(result)


def _on_screen(scene: Scene, spec: ObjectSpec, times: np.ndarray) -> np.ndarray:
    """Place, logarithm of the size and angle (N, 4) as the camera sees them."""
    pose, view = poses(spec, times), views(scene.camera, times)
    size = SIZES[spec.size] * pose.scale * view.zoom / SIZES["medium"]
    x, y = (pose.x - view.x) * view.zoom, pose.y * view.zoom
    return np.stack([x, y, np.log(size), pose.angle], axis=1)


def scene_labels(scene: Scene, *, image: bool) -> Tensor:
    """Return which of `LABELS` a scene has, (len(LABELS),) of 0 and 1; an image has no motion."""
    present = {("background", scene.background)}
    for spec in scene.objects:
        present |= {("shape", spec.shape), ("color", spec.color), ("size", spec.size)}
        present |= set() if image else {("motion", spec.motion), ("camera", scene.camera)}
    return torch.tensor([float(label in present) for label in LABELS])


def near_objects(layout: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Return which cells of a latent grid hold an object or border on one.

    Args:
        layout: (B, T, O, E) from `scene_layout`.
        grid_hw: Cells per latent frame.

    Returns:
        (B, 1, T, H, W) in [0, 1].
    """
    distances = _offsets(layout, grid_hw).norm(dim=-1)  # (B, T, H, W, O)
    sizes = SIZES["medium"] * layout[..., 3].exp()  # (B, T, O)
    reach = _REACH * rearrange(sizes, "b t o -> b t 1 1 o")
    near = ((reach - distances) * (grid_hw[0] / 2) + 1).clamp(0, 1)
    present = rearrange(layout[..., 0], "b t o -> b t 1 1 o")
    return rearrange((near * present).amax(-1), "b t h w -> b 1 t h w")


def _offsets(layout: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Return from the middle of every cell to every object (B, T, H, W, O, 2): x, y in world
    units."""
    height, width = grid_hw
    y = (torch.arange(height, device=layout.device) + 0.5) * (2 / height) - 1
    x = (torch.arange(width, device=layout.device) + 0.5) * (2 / width) - 1
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flip(-1)  # (H, W, 2)
    return rearrange(layout[..., 1:3], "b t o c -> b t 1 1 o c") - places[:, :, None]


def token_targets(layout: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Return what each token should know: the object nearest to it, seen from the token.

    Args:
        layout: (B, T, O, E) from `scene_layout`.
        grid_hw: Tokens per latent frame.

    Returns:
        (B, S, F) in raster order: coverage of the token, offset to the object's centre, and the
        object's other entries.
    """
    height, width = grid_hw
    offsets = _offsets(layout, grid_hw)
    distances = offsets.norm(dim=-1)  # (B, T, H, W, O)
    absent = rearrange(layout[..., 0] == 0, "b t o -> b t 1 1 o")
    nearest = distances.masked_fill(absent, torch.inf).argmin(-1, keepdim=True)  # (B, T, H, W, 1)
    entries = rearrange(layout, "b t o e -> b t 1 1 o e").expand(-1, -1, height, width, -1, -1)
    index = nearest[..., None].expand(*nearest.shape, layout.shape[-1])
    chosen = entries.gather(-2, index).squeeze(-2).clone()  # (B, T, H, W, E)
    chosen[..., 1:3] = offsets.gather(-2, nearest[..., None].expand(*nearest.shape, 2)).squeeze(-2)
    radius = SIZES["medium"] * chosen[..., 3].exp()
    cell = 2 / height
    distance = distances.gather(-1, nearest).squeeze(-1)
    chosen[..., 0] = ((radius - distance) / cell + 0.5).clamp(0, 1)
    return rearrange(chosen, "b t h w f -> b (t h w) f")
