"""What one call of a CrossDiT costs, from counting: operations, bytes moved, and weights.

Operations are those of matrix products, which is where the time goes; norms, rotations, gates and
the making of NABLA's map are bytes. Numbers are for one row of a batch: guidance doubles them.
Letters: S visual tokens, L text tokens, D width, F feed-forward width, N heads, Q blocks per head.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..family.config import DiTConfig

OPERATIONS_PER_PRODUCT = 2
"""A multiplication and an addition."""
PASSES = 41
"""Times that a block reads or writes a tensor as large as the stream, where each of its operations
reads its input and writes its result once: 21 in self-attention, 13 in attention to text, 7 in the
feed-forward layers beside their hidden layer. Norm and modulation, norm and rotation, gate and
sum, layer and GELU are one operation each."""
SPARSE_PASSES = 8
"""More of them with NABLA: queries, keys and values in the order of tiles, and their means."""
INDEX = 8
"""Bytes of a place in a sorted row."""


@dataclass(frozen=True)
class StepCost:
    """Of one call of the network."""

    linear: float
    """Operations of all linear layers."""
    attention: float
    """Operations of self-attention among visual tokens, at the density that was asked for."""
    cross_attention: float
    """Operations of attention to text, and of the text refiner's own."""
    weights: int
    """Parameters that the call reads."""

    @property
    def operations(self) -> float:
        """All of them."""
        return self.linear + self.attention + self.cross_attention


def count_block_parameters(config: DiTConfig) -> int:
    """Return the parameters of one visual block."""
    d, f, t = config.model_dim, config.ff_dim, config.time_dim
    return 2 * (4 * (d * d + d) + 2 * config.head_dim) + 2 * d * f + 9 * (t * d + d)


def count_parameters(config: DiTConfig) -> int:
    """Return the parameters of a CrossDiT with these dimensions."""
    d, f, t = config.model_dim, config.ff_dim, config.time_dim
    norms = 2 * config.head_dim
    attention = 4 * (d * d + d) + norms
    modulated = t * d + d  # weight and bias of one modulation vector
    visual = count_block_parameters(config)
    text = attention + 2 * d * f + 6 * modulated
    patch_in = config.input_channels * config.patch_volume
    patch_out = config.latent_channels * config.patch_volume
    embeddings = (d * t + t) + (t * t + t)  # time
    embeddings += config.text_dim * d + 3 * d  # text, with its norm
    embeddings += config.pooled_dim * t + 3 * t  # pooled text, with its norm
    embeddings += patch_in * d + d
    out = 2 * modulated + d * patch_out + patch_out
    return config.num_visual_blocks * visual + config.num_text_blocks * text + embeddings + out


def step_cost(
    config: DiTConfig,
    tokens: int,
    *,
    text_tokens: int = 256,
    density: float = 1.0,
) -> StepCost:
    """Count one call.

    Args:
        config: Of the network.
        tokens: Visual tokens S.
        text_tokens: Text tokens L.
        density: Share of the pairs of visual tokens that attend to each other, in [0, 1].

    Returns:
        The counts.
    """
    d, f = config.model_dim, config.ff_dim
    visual_products = tokens * (6 * d * d + 2 * d * f) + text_tokens * 2 * d * d
    text_products = text_tokens * (4 * d * d + 2 * d * f)
    patches = config.input_channels + config.latent_channels
    linear = config.num_visual_blocks * visual_products + config.num_text_blocks * text_products
    linear += tokens * patches * config.patch_volume * d + text_tokens * config.text_dim * d
    attention = config.num_visual_blocks * 2 * density * tokens**2 * d
    cross = config.num_visual_blocks * 2 * tokens * text_tokens * d
    cross += config.num_text_blocks * 2 * text_tokens**2 * d
    return StepCost(
        OPERATIONS_PER_PRODUCT * linear,
        OPERATIONS_PER_PRODUCT * attention,
        OPERATIONS_PER_PRODUCT * cross,
        count_parameters(config),
    )


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that one call moves between the device's memory and its processors."""

    weights: float
    """Bytes of reading every parameter once."""
    activations: float
    """Input and result of every operation of the visual blocks, once."""
    maps: float
    """Bytes of making NABLA's maps."""
    gathers: float
    """Kept keys and values, once for every block of queries: what is moved where no two blocks of
    queries share a read. Caches save a part of it; dense kernels share nearly all."""

    @property
    def least(self) -> float:
        """All but the gathers."""
        return self.weights + self.activations + self.maps


def step_traffic(
    config: DiTConfig,
    tokens: int,
    *,
    density: float = 1.0,
    block_size: int | None = None,
    item: int = 2,
) -> StepTraffic:
    """Count the bytes of one call.

    Args:
        config: Of the network.
        tokens: Visual tokens S.
        density: Share of blocks that NABLA keeps, in [0, 1].
        block_size: Visual tokens of one of NABLA's blocks; None is dense attention.
        item: Bytes of a number.

    Returns:
        The counts.
    """
    layers, stream = config.num_visual_blocks, tokens * config.model_dim * item
    weights = item * count_parameters(config)
    activations = layers * (PASSES * stream + 2 * tokens * config.ff_dim * item)
    if block_size is None:
        return StepTraffic(weights, activations, 0.0, 0.0)
    activations += layers * SPARSE_PASSES * stream
    blocks = tokens // block_size
    # products, their scaling, softmax, sums and comparison; places and marks of the scatter
    entry = 8 * item + 1 + INDEX + 2
    entry += item * 2 * (item + INDEX)  # a radix sort, a byte of the number at a time
    maps = layers * config.num_heads * blocks**2 * entry
    return StepTraffic(weights, activations, maps, layers * density * blocks * 2 * stream)
