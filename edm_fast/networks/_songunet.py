"""SongUNet: DDPM++ and NCSN++ (Song et al. 2021) as reimplemented by Karras et al. 2022, Appendix F.

DDPM++ is positional embedding + standard encoder and decoder; NCSN++ is Fourier embedding + residual encoder +
[1,3,3,1] filter; the skip encoder and skip decoder are the remaining variants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from edm_fast.errors import UserError
from edm_fast.networks._block import UNetBlock
from edm_fast.networks._inputs import check_size
from edm_fast.networks._layers import Conv2d, FourierEmbedding, GroupNorm, Linear, PositionalEmbedding, drop_labels

INIT: dict[str, Any] = {"init_mode": "xavier_uniform"}
INIT_ZERO: dict[str, Any] = {"init_mode": "xavier_uniform", "init_weight": 1e-5}
INIT_ATTN: dict[str, Any] = {"init_mode": "xavier_uniform", "init_weight": math.sqrt(0.2)}


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"SongUNet: {name}={value!r}; expected one of {', '.join(allowed)}")


class SongUNet(torch.nn.Module):
    """F(x; c_noise, labels): x (N, in, R, R), noise_labels (N or 1,) float32, class_labels (N or 1, label_dim),
    augment_labels (N, augment_dim) -> (N, out, R, R).
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        _one_of("embedding_type", embedding_type, ("positional", "fourier"))
        _one_of("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _one_of("decoder_type", decoder_type, ("standard", "skip"))
        super().__init__()
        self.img_resolution = img_resolution
        self.label_dropout = label_dropout
        self.levels = len(channel_mult)
        emb_channels = model_channels * channel_mult_emb
        noise_channels = model_channels * channel_mult_noise
        self.block_kwargs: dict[str, Any] = {
            "emb_channels": emb_channels,
            "num_heads": 1,
            "dropout": dropout,
            "skip_scale": math.sqrt(0.5),
            "eps": 1e-6,
            "resample_filter": resample_filter,
            "resample_proj": True,
            "adaptive_scale": False,
            "init": INIT,
            "init_zero": INIT_ZERO,
            "init_attn": INIT_ATTN,
        }

        self.map_noise: torch.nn.Module
        if embedding_type == "positional":
            self.map_noise = PositionalEmbedding(num_channels=noise_channels, endpoint=True)
        else:
            self.map_noise = FourierEmbedding(num_channels=noise_channels)
        self.map_label = Linear(label_dim, noise_channels, **INIT) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, bias=False, **INIT) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, **INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, **INIT)

        widths = [model_channels * mult for mult in channel_mult]
        skips = self._make_encoder(
            in_channels, model_channels, widths, num_blocks, attn_resolutions, encoder_type, resample_filter
        )
        self._make_decoder(out_channels, widths, num_blocks, attn_resolutions, decoder_type, resample_filter, skips)

    def _make_encoder(
        self,
        in_channels: int,
        model_channels: int,
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        encoder_type: str,
        resample_filter: Sequence[float],
    ) -> list[int]:
        """Fill self.enc; returns the channels of every skip connection, in order."""
        self.enc = torch.nn.ModuleDict()
        down: dict[str, Any] = {"down": True, "resample_filter": resample_filter}
        channels = aux = in_channels
        skips = []
        for level, width in enumerate(widths):
            res = self.img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(channels, model_channels, kernel=3, **INIT)
                channels = model_channels
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, down=True, **self.block_kwargs)
                if encoder_type == "skip":
                    self.enc[f"{res}x{res}_aux_down"] = Conv2d(aux, aux, kernel=0, **down)
                    self.enc[f"{res}x{res}_aux_skip"] = Conv2d(aux, channels, kernel=1, **INIT)
                if encoder_type == "residual":
                    conv = Conv2d(aux, channels, kernel=3, fused_resample=True, **down, **INIT)
                    self.enc[f"{res}x{res}_aux_residual"] = conv
                    aux = channels
            skips.append(channels)
            for index in range(num_blocks):
                attention = res in attn_resolutions
                block = UNetBlock(channels, width, attention=attention, **self.block_kwargs)
                self.enc[f"{res}x{res}_block{index}"] = block
                channels = width
                skips.append(channels)
        return skips

    def _make_decoder(
        self,
        out_channels: int,
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        decoder_type: str,
        resample_filter: Sequence[float],
        skips: list[int],
    ) -> None:
        self.dec = torch.nn.ModuleDict()
        skips = list(skips)
        channels = skips[-1]
        lowest = len(widths) - 1
        for level, width in reversed(list(enumerate(widths))):
            res = self.img_resolution >> level
            if level == lowest:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, attention=True, **self.block_kwargs)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, **self.block_kwargs)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, up=True, **self.block_kwargs)
            for index in range(num_blocks + 1):
                attention = index == num_blocks and res in attn_resolutions
                block = UNetBlock(channels + skips.pop(), width, attention=attention, **self.block_kwargs)
                self.dec[f"{res}x{res}_block{index}"] = block
                channels = width
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < lowest:
                    up = Conv2d(out_channels, out_channels, kernel=0, up=True, resample_filter=resample_filter)
                    self.dec[f"{res}x{res}_aux_up"] = up
                self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(channels, eps=1e-6)
                self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, out_channels, kernel=3, **INIT_ZERO)

    def embed(
        self,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None,
        augment_labels: torch.Tensor | None,
        batch: int,
    ) -> torch.Tensor:
        """The conditioning vector (N or 1, emb) every block sees."""
        cos, sin = self.map_noise(noise_labels).chunk(2, 1)
        emb = torch.cat((sin, cos), 1)
        if self.map_label is not None and class_labels is not None:
            if self.training and self.label_dropout:
                class_labels = drop_labels(class_labels, self.label_dropout, batch)
            emb = emb + self.map_label(class_labels * math.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(
        self,
        x: torch.Tensor,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        check_size(x, self.levels)
        emb = self.embed(noise_labels, class_labels, augment_labels, x.shape[0])
        return self.decode(self.encode(x, emb), emb)

    def encode(self, x: torch.Tensor, emb: torch.Tensor) -> list[torch.Tensor]:
        """All skip connections, first to last."""
        side = x
        skips: list[torch.Tensor] = []
        for name, module in self.enc.items():
            _, _, role = name.partition("_")  # "32x32_aux_skip" -> "aux_skip"
            if role == "conv":
                skips.append(module(x))
            elif role == "aux_down":
                side = module(side)
            elif role == "aux_skip":
                skips[-1] = module(side, residual=skips[-1])
            elif role == "aux_residual":
                side = (skips[-1] + module(side)) / math.sqrt(2)
                skips[-1] = side
            else:
                skips.append(module(skips[-1], emb))
        return skips

    def decode(self, skips: list[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        x = skips[-1]
        out: torch.Tensor | None = None  # the running output
        for name, module in self.dec.items():
            _, _, role = name.partition("_")
            if role == "aux_up":
                out = module(out)
            elif role == "aux_norm":
                normed = module(x, silu=True)
            elif role == "aux_conv":
                out = module(normed, residual=out)
            elif role.startswith("block"):
                x = module(torch.cat((x, skips.pop()), 1), emb)
            else:
                x = module(x, emb)
        assert out is not None
        return out
