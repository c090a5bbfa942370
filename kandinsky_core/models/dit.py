"""CrossDiT, the diffusion transformer of every Kandinsky 5.0 model.

Text tokens pass through a small refiner; visual tokens attend to each other and then to the
text; every block is modulated by time and the pooled text. One class serves all sizes: the
rows are in `variants.py`. Source: arXiv 2511.14993, section 3, and kandinskylab/kandinsky-5
(commit 6e2a805). Attribute names are the checkpoint's keys.

Letters: B batch, C channels, T H W latent grid, S visual tokens, L text tokens, D model dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..attention import Attend, Nabla, Tiling, attend
from ..family.config import DiTConfig
from .layers import (
    OutLayer,
    TextBlock,
    TextEmbeddings,
    TimeEmbeddings,
    VisualBlock,
    VisualEmbeddings,
)
from .ops import Ops, TorchOps
from .rope import rope_1d, rope_3d
from .visual_stack import AroundBlock, AroundBlocks, VisualStack


class CrossDiT(nn.Module):
    """Predicts the velocity of a noisy latent from time and text."""

    def __init__(
        self,
        config: DiTConfig,
        *,
        ops: Ops = TorchOps,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Build the network.

        Args:
            config: Its dimensions.
            ops: Layer factory; its layers compute in the dtype of their input (see `ops.py`).
            dtype: Storage dtype of the weights; torch's default if None.
            device: Where the weights live; "meta" builds without memory.
        """
        super().__init__()
        self.config = config
        factory = {"dtype": dtype, "device": device}
        block = (config.model_dim, config.time_dim, config.ff_dim, config.head_dim)

        self.time_embeddings = TimeEmbeddings(config.model_dim, config.time_dim, ops, **factory)
        self.text_embeddings = TextEmbeddings(config.text_dim, config.model_dim, ops, **factory)
        self.pooled_text_embeddings = TextEmbeddings(
            config.pooled_dim, config.time_dim, ops, **factory
        )
        self.visual_embeddings = VisualEmbeddings(
            config.input_channels, config.model_dim, config.patch_thw, ops, **factory
        )
        self.text_transformer_blocks = nn.ModuleList(
            TextBlock(*block, ops, **factory) for _ in range(config.num_text_blocks)
        )
        self.visual_transformer_blocks = nn.ModuleList(
            VisualBlock(*block, ops, **factory) for _ in range(config.num_visual_blocks)
        )
        self.out_layer = OutLayer(
            config.model_dim,
            config.time_dim,
            config.latent_channels,
            config.patch_thw,
            ops,
            **factory,
        )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text_tokens: Tensor,
        text_pooled: Tensor,
        text_mask: Tensor | None = None,
        *,
        rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
        attend: Attend = attend,
        around_blocks: AroundBlocks | None = None,
        around_block: AroundBlock | None = None,
        nabla: Nabla | None = None,
    ) -> Tensor:
        """Predict velocity = noise - latents.

        Args:
            x: Network input (B, config.input_channels, T, H, W) in model space: noisy latents,
                then condition latents and mask where the config has visual_cond. Its dtype is the
                dtype the large matrices compute in.
            t: Times (B,) in [0, 1], 1 = noise.
            text_tokens: Text tokens (B, L, config.text_dim).
            text_pooled: Pooled text (B, config.pooled_dim).
            text_mask: Boolean (B, L), True where a token is real; None if all are.
            rope_scale: Divisor of the rotary angles per axis (t, h, w).
            attend: Attention backend for every attention of the network.
            around_blocks: Decides whether the visual blocks run; None always runs them.
            around_block: The same for each of them; with NABLA it sees tokens in tile order.
            nabla: Makes the attention among visual tokens sparse; None leaves it dense. Text is
                always attended to densely.

        Returns:
            Velocity (B, config.latent_channels, T, H, W), dtype of x.

        Raises:
            ValueError: If x has the wrong number of channels, or does not divide into patches or
                into NABLA's tiles.
        """
        grid_thw = self.token_grid(x)
        time_embed = self.time_embeddings(t) + self.pooled_text_embeddings(text_pooled.float())
        text = self.refine_text(text_tokens.to(x.dtype), time_embed, text_mask, attend)

        rope = rope_3d(grid_thw, self.config.axes_dims, rope_scale, x.device)
        stack = VisualStack(
            self.visual_transformer_blocks,
            text,
            time_embed,
            rope,
            text_mask,
            attend,
            around_blocks=around_blocks,
            around_block=around_block,
        )
        if nabla is not None:
            stack.sparsify(nabla, Tiling.of(grid_thw, nabla.tile_thw, self.config.patch_thw))
        # the embedded input has no name here, so that it is freed after the first block
        visual = stack.run(self.visual_embeddings(x))  # (B, S, D)
        return self.out_layer(visual, time_embed, grid_thw)

    def refine_text(
        self, tokens: Tensor, time_embed: Tensor, mask: Tensor | None, attend: Attend
    ) -> Tensor:
        """Project and refine text tokens (B, L, D_text) to (B, L, D)."""
        text = self.text_embeddings(tokens)
        rope = rope_1d(text.shape[1], self.config.head_dim, text.device)
        for block in self.text_transformer_blocks:
            text = block(text, time_embed, rope, mask, attend)
        return text

    def token_grid(self, x: Tensor) -> tuple[int, int, int]:
        """Return token counts (t, h, w) of an input (B, C, T, H, W).

        Raises:
            ValueError: If channels or sizes do not fit the network.
        """
        if x.ndim != 5 or x.shape[1] != self.config.input_channels:
            raise ValueError(
                f"the network takes (B, {self.config.input_channels}, T, H, W), got "
                f"{tuple(x.shape)}; condition and mask channels belong to x where visual_cond is on"
            )
        if any(
            size % patch for size, patch in zip(x.shape[2:], self.config.patch_thw, strict=True)
        ):
            raise ValueError(
                f"latent size {tuple(x.shape[2:])} (t, h, w) does not divide into patches of "
                f"{self.config.patch_thw}; choose a size that does"
            )
        t, h, w = (size // p for size, p in zip(x.shape[2:], self.config.patch_thw, strict=True))
        return t, h, w
