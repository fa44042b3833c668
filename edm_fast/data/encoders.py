"""What EDM2 is trained on and makes: pixels, or latents of an autoencoder standardised to a deviation of 0.5.

An encoder takes data-set items to latents (`encode_latents`), pixels to what a data set stores (`encode_pixels`), and
latents to pixels (`decode`); pixels are uint8 (N, C, H, W). Karras et al. 2024, Section 2.1 and Appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edm_fast.errors import UserError

RAW_MEAN = (5.81, 3.25, 0.12, -2.15)
RAW_STD = (4.17, 4.62, 3.71, 3.28)


class StandardRGBEncoder:
    """Pixels are latents: x / 127.5 - 1."""

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    def encode_latents(self, raw: torch.Tensor) -> torch.Tensor:
        """float32, from -1 to 1."""
        return raw.to(torch.float32) / 127.5 - 1

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents.to(torch.float32) * 127.5 + 128).clip(0, 255).to(torch.uint8)


class StabilityVAEEncoder:
    """Latents (N, C, h, w) = scale z + bias of the Stable Diffusion autoencoder, z ~ N(mean, std^2) of its posterior.

    Data sets hold [mean, std], 2 C channels. scale = final_std / raw_std, bias = final_mean - raw_mean scale.
    vae: the autoencoder, of which nothing comes with this package: vae.encode(pixels from 0 to 1) gives (mean, std),
    vae.decode(z) gives pixels; None if only `encode_latents` is needed.
    """

    def __init__(
        self,
        raw_mean: Sequence[float] = RAW_MEAN,
        raw_std: Sequence[float] = RAW_STD,
        final_mean: float = 0,
        final_std: float = 0.5,
        batch_size: int = 8,
        vae: Any = None,
    ) -> None:
        self.scale = torch.tensor(final_std, dtype=torch.float32) / torch.tensor(raw_std, dtype=torch.float32)
        self.bias = final_mean - torch.tensor(raw_mean, dtype=torch.float32) * self.scale
        self.batch_size = batch_size
        self.vae = vae

    def _by_channel(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale, bias = (values.to(x.device).reshape(1, -1, 1, 1) for values in (self.scale, self.bias))
        return scale, bias

    def _vae(self) -> Any:
        if self.vae is None:
            raise UserError("StabilityVAEEncoder has no autoencoder; expected StabilityVAEEncoder(vae=...)")
        return self.vae

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """[mean, std] along the channels, float32."""
        parts = [self._vae().encode(part.to(torch.float32) / 255) for part in pixels.split(self.batch_size)]
        return torch.cat([torch.cat(both, 1) for both in parts])

    def encode_latents(self, raw: torch.Tensor) -> torch.Tensor:
        """Draws from the global generator of the device, one normal for each number."""
        channels = 2 * len(self.scale)
        if raw.ndim != 4 or raw.shape[1] != channels:
            raise UserError(f"raw latents have shape {tuple(raw.shape)}; expected {channels} channels, means first")
        mean, std = raw.to(torch.float32).chunk(2, dim=1)
        scale, bias = self._by_channel(raw)
        return (mean + torch.randn(mean.shape, device=mean.device) * std) * scale + bias

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        scale, bias = self._by_channel(latents)
        z = (latents.to(torch.float32) - bias) / scale
        pixels = torch.cat([self._vae().decode(part) for part in z.split(self.batch_size)])
        return (pixels.clamp(0, 1) * 255).to(torch.uint8)
