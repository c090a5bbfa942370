"""Reads the camera move off the background by a least-squares fit of shift and zoom."""

from __future__ import annotations

import math

import cv2
import numpy as np

from .scene import CAMERAS, PAN, ZOOM

_SIDE = 64  # the fit runs at this size: dots stay several pixels wide, noise averages out
_MASK_BORDER = 3  # pixels at that size by which objects are widened, so that their edges stay out
_ITERATIONS = 5
# A move must explain this share of the difference between the frames, or none is reported: on a
# background without texture the fit has only noise to follow, and explains next to nothing.
_LEAST_GAIN = 0.4
_LEAST_CHANGE = 0.4  # variance in grey levels squared; the weakest real move changes about 20


def track_camera(gray: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Fit the view of every frame against the first.

    Args:
        gray: Luminance, float32 (F, H, W).
        background: Where no object is, bool (F, H, W).

    Returns:
        (F, 3): shift x, shift y (screen units, the frame spans [-1, 1]) and log zoom; what is seen
        at p in the first frame is seen at p * zoom + shift.
    """
    images = [
        cv2.GaussianBlur(cv2.resize(g, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), (0, 0), 1.0)
        for g in gray
    ]
    masks = [
        cv2.erode(
            cv2.resize(mask.astype(np.uint8), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA),
            np.ones((2 * _MASK_BORDER + 1, 2 * _MASK_BORDER + 1), np.uint8),
            borderType=cv2.BORDER_REPLICATE,
        )
        for mask in background
    ]
    rest = np.zeros((len(images), 3))
    change = _mean_square(images, masks, rest)
    if change < _LEAST_CHANGE:
        return rest
    views = rest.copy()
    for index in range(1, len(images)):
        # The moves are steady: starting where the last two frames point keeps the fit in its basin.
        guess = views[index - 1] + (views[index - 1] - views[index - 2] if index > 1 else 0.0)
        views[index] = _fit(images[0], masks[0], images[index], masks[index], guess)
    return views if _mean_square(images, masks, views) < (1 - _LEAST_GAIN) * change else rest


def name_camera(views: np.ndarray) -> str:
    """Return the camera move that a track of views (F, 3) shows."""
    last = views[-2:].mean(axis=0)
    pan, zoom = last[0] / PAN, last[2] / math.log(ZOOM)
    still, pan_left, pan_right, zoom_in, zoom_out = CAMERAS
    if max(abs(pan), abs(zoom)) < 0.4:
        return still
    if abs(pan) > abs(zoom):
        return pan_left if pan > 0 else pan_right
    return zoom_in if zoom > 0 else zoom_out


def _fit(
    first: np.ndarray,
    first_mask: np.ndarray,
    image: np.ndarray,
    mask: np.ndarray,
    guess: np.ndarray,
) -> np.ndarray:
    """Find, by Gauss-Newton, the (shift x, shift y, log zoom) that carries ``first`` to
    ``image``."""
    half = _SIDE / 2
    axis = (np.arange(_SIDE) + 0.5) / half - 1
    x, y = np.meshgrid(axis, axis)
    grad_y, grad_x = np.gradient(first, 1 / half)
    # The last column lets the brightness drift.
    columns = np.stack([grad_x, grad_y, grad_x * x + grad_y * y, np.ones_like(x)], axis=-1)
    ridge = np.eye(4)  # negligible; keeps a flat picture solvable
    view = guess.copy()
    for _ in range(_ITERATIONS):
        error, rows = _difference(first, first_mask, image, mask, view)
        if rows.sum() < _SIDE:
            break
        slopes = columns[rows]
        step = np.linalg.solve(slopes.T @ slopes + ridge, slopes.T @ error[rows])[:3]
        zoom = math.exp(view[2])
        view = view + step * np.array([zoom, zoom, 1.0])
        if np.abs(step).max() < 2e-4:
            break
    return np.clip(view, -1.0, 1.0)


def _difference(
    first: np.ndarray, first_mask: np.ndarray, image: np.ndarray, mask: np.ndarray, view: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``first`` less ``image`` carried back by ``view``, and where both show background."""
    zoom = math.exp(view[2])
    # The centre of pixel i lies at (i + 0.5) / half - 1.
    shift = _SIDE / 2 * (view[:2] + 1 - zoom) + 0.5 * zoom - 0.5
    matrix, side = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]]), (_SIDE, _SIDE)
    flags, border = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, cv2.BORDER_REPLICATE
    warped = cv2.warpAffine(image, matrix, side, flags=flags, borderMode=border)
    seen = cv2.warpAffine(mask, matrix, side, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    return first - warped, (seen > 0) & (first_mask > 0)


def _mean_square(images: list[np.ndarray], masks: list[np.ndarray], views: np.ndarray) -> float:
    """Return the mean variance of what differs between the first frame and the others under
    ``views``."""
    variances = [0.0]
    for image, mask, view in zip(images[1:], masks[1:], views[1:], strict=True):
        error, rows = _difference(images[0], masks[0], image, mask, view)
        variances.append(float(error[rows].var()) if rows.any() else 0.0)
    return sum(variances) / max(1, len(images) - 1)
