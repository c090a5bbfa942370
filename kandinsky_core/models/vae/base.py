"""What a caller sees of an autoencoder: encode, decode, stream; whole or by tiles.

Latents are in VAE space everywhere (neither scaled nor shifted).

Letters: B batch, C latent channels, F H W pixels, T h w latent grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Decoder, Encoder, Kit, VAEConfig, compression_thw
from .tiled_run import OnTile, Tile, run_tiles
from .tiling import DEFAULT_MEMORY_BUDGET, Direction, Tiles, fit_tiles


class Autoencoder(nn.Module):
    """Base of both autoencoders.

    A subclass maps one tile each way: `encode_tile`, `decode_tile`.

    Args:
        config: Dimensions.
        kit: Makes the layers.
    """

    def __init__(self, config: VAEConfig, kit: Kit) -> None:
        super().__init__()
        self.config: Any = config
        self.encoder = Encoder(config, kit)
        self.decoder = Decoder(config, kit)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, in which the network computes."""
        return next(self.parameters()).dtype

    def encode_tile(self, pixels: Tensor) -> Tensor:
        """Encode (B, 3, F, H, W) in one piece to posterior parameters (B, 2C, T, h, w)."""
        raise NotImplementedError

    def decode_tile(self, latents: Tensor) -> Tensor:
        """Decode (B, C, T, h, w) in one piece to pixels (B, 3, F, H, W)."""
        raise NotImplementedError

    def moments(
        self,
        pixels: Tensor,
        *,
        tiling: Tiles | None = None,
        memory_budget: int | None = None,
        on_tile: OnTile | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode to the mean and the log variance of the posterior.

        Args:
            pixels: (B, 3, F, H, W) in [-1, 1].
            tiling: Tiles to use; by default chosen from `memory_budget`.
            memory_budget: Bytes that the work may take, weights and result aside.
            on_tile: Called with (done, total) after every tile; may raise to cancel.

        Returns:
            Mean and log variance, each (B, C, T, h, w), in the dtype of `pixels`.

        Raises:
            ValueError: The shape does not fit, or the budget is too small.
        """
        grid = self._latent_grid(pixels)
        time, space, _ = compression_thw(self.config)
        tiling = tiling or self._fit_tiles((pixels.shape[0], *grid), memory_budget, "encode")

        def run(tile: Tile) -> Tensor:
            frames = slice(tile.time.start * time, (tile.time.stop - 1) * time + 1)
            rows, columns = (
                slice(span.start * space, span.stop * space) for span in (tile.height, tile.width)
            )
            part = pixels[:, :, frames, rows, columns].to(self.dtype)
            return self.encode_tile(part).to(pixels.dtype)

        chunks = run_tiles(run, tiling, (1, 1, 1), on_tile)
        parameters = _join(chunks, grid[0])  # (B, 2C, T, h, w)
        mean, logvar = parameters.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(
        self,
        pixels: Tensor,
        *,
        generator: torch.Generator | None = None,
        tiling: Tiles | None = None,
        memory_budget: int | None = None,
        on_tile: OnTile | None = None,
    ) -> Tensor:
        """Encode to latents: the posterior's mode, or a sample of it where a generator is given.

        Differs: the reference samples; without a generator the mode makes the result repeatable.

        Args:
            pixels: (B, 3, F, H, W) in [-1, 1].
            generator: Source of the sample.
            tiling: As in `moments`, and so are the other arguments.
            memory_budget: Bytes.
            on_tile: Progress.

        Returns:
            Latents (B, C, T, h, w), in the dtype of `pixels`.

        Raises:
            ValueError: The shape does not fit, or the budget is too small.
        """
        mean, logvar = self.moments(
            pixels, tiling=tiling, memory_budget=memory_budget, on_tile=on_tile
        )
        if generator is None:
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=generator.device)
        return mean + (0.5 * logvar).exp() * noise.to(mean)

    def decode_frames(
        self,
        latents: Tensor,
        *,
        tiling: Tiles | None = None,
        memory_budget: int | None = None,
        on_tile: OnTile | None = None,
    ) -> Iterator[Tensor]:
        """Decode latents, a few frames at a time.

        The work in progress never holds more than the tiles of one span of time, however long
        the clip is. Where memory runs out all the same, the rest goes on with smaller tiles.

        Args:
            latents: (B, C, T, h, w).
            tiling: Tiles to use; by default chosen from `memory_budget`.
            memory_budget: Bytes that the work may take, weights and result aside.
            on_tile: Called with (done, total) after every tile; may raise to cancel.

        Returns:
            Iterator of pixels (B, 3, f, H, W), about [-1, 1], in order and in the dtype of
            `latents`.

        Raises:
            ValueError: The shape does not fit, or the budget is too small.
        """
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}: this VAE expects "
                f"(batch, {self.config.latent_channels}, frames, height, width); "
                "use latents made for this kind of model."
            )
        batch, _, *grid = latents.shape
        tiling = tiling or self._fit_tiles((batch, *grid), memory_budget, "decode")

        def run(tile: Tile) -> Tensor:
            part = latents[:, :, tile.time.slice, tile.height.slice, tile.width.slice]
            return self.decode_tile(part.to(self.dtype)).to(latents.dtype)

        return run_tiles(run, tiling, compression_thw(self.config), on_tile)

    def decode(
        self,
        latents: Tensor,
        *,
        tiling: Tiles | None = None,
        memory_budget: int | None = None,
        on_tile: OnTile | None = None,
    ) -> Tensor:
        """Decode latents to one tensor; see `decode_frames`.

        Args:
            latents: (B, C, T, h, w).
            tiling: Tiles to use.
            memory_budget: Bytes.
            on_tile: Progress.

        Returns:
            Pixels (B, 3, F, H, W), about [-1, 1], F = 4 (T - 1) + 1 for video.

        Raises:
            ValueError: The shape does not fit, or the budget is too small.
        """
        chunks = self.decode_frames(
            latents, tiling=tiling, memory_budget=memory_budget, on_tile=on_tile
        )
        return _join(chunks, (latents.shape[2] - 1) * compression_thw(self.config)[0] + 1)

    def _fit_tiles(
        self, batch_thw: tuple[int, ...], budget: int | None, direction: Direction
    ) -> Tiles:
        batch, *grid = batch_thw
        shape = (batch, self.config.latent_channels, *grid)
        budget = DEFAULT_MEMORY_BUDGET if budget is None else budget
        return fit_tiles(self.config, shape, budget, self.dtype, direction=direction)

    def _latent_grid(self, pixels: Tensor) -> tuple[int, int, int]:
        if pixels.ndim != 5 or pixels.shape[1] != 3:
            raise ValueError(
                f"pixels have shape {tuple(pixels.shape)}: expected (batch, 3, frames, height, "
                "width); add the missing axis or convert to RGB."
            )
        time, space, _ = compression_thw(self.config)
        frames, height, width = pixels.shape[2:]
        if (frames - 1) % time or height % space or width % space:
            nearest = (frames - 1) // time * time + 1
            raise ValueError(
                f"pixels have {frames} frames of {height} x {width}: this VAE takes "
                f"{time} k + 1 frames with sides that are multiples of {space}; crop to "
                f"{nearest} frames of {height // space * space} x {width // space * space}."
            )
        return (frames - 1) // time + 1, height // space, width // space


def _join(chunks: Iterator[Tensor], length: int) -> Tensor:
    """Put chunks (B, C, f, H, W) into one tensor of `length` frames, without a second copy."""
    out: Tensor | None = None
    start = 0
    for chunk in chunks:
        if chunk.shape[2] == length:
            return chunk
        if out is None:
            out = chunk.new_empty(*chunk.shape[:2], length, *chunk.shape[3:])
        out[:, :, start : start + chunk.shape[2]] = chunk
        start += chunk.shape[2]
    assert out is not None and start == length, (start, length)
    return out
