"""DhariwalUNet: ADM (Dhariwal & Nichol 2021) as reimplemented by Karras et al. 2022, Appendix F."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from edm_fast.networks._block import UNetBlock
from edm_fast.networks._inputs import check_size
from edm_fast.networks._layers import Conv2d, GroupNorm, Linear, PositionalEmbedding, drop_labels

INIT: dict[str, Any] = {"init_mode": "kaiming_uniform", "init_weight": math.sqrt(1 / 3), "init_bias": math.sqrt(1 / 3)}
INIT_ZERO: dict[str, Any] = {"init_mode": "kaiming_uniform", "init_weight": 0, "init_bias": 0}


class DhariwalUNet(torch.nn.Module):
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
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0,
    ) -> None:
        super().__init__()
        self.img_resolution = img_resolution
        self.label_dropout = label_dropout
        self.levels = len(channel_mult)
        emb_channels = model_channels * channel_mult_emb
        self.block_kwargs: dict[str, Any] = {
            "emb_channels": emb_channels,
            "channels_per_head": 64,
            "dropout": dropout,
            "init": INIT,
            "init_zero": INIT_ZERO,
        }

        self.map_noise = PositionalEmbedding(num_channels=model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, **INIT_ZERO) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, **INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, **INIT)
        self.map_label = None
        if label_dim:
            scale = math.sqrt(label_dim)
            self.map_label = Linear(label_dim, emb_channels, bias=False, init_mode="kaiming_normal", init_weight=scale)

        widths = [model_channels * mult for mult in channel_mult]
        skips = self._make_encoder(in_channels, widths, num_blocks, attn_resolutions)
        channels = self._make_decoder(widths, num_blocks, attn_resolutions, skips)
        self.out_norm = GroupNorm(channels)
        self.out_conv = Conv2d(channels, out_channels, kernel=3, **INIT_ZERO)

    def _make_encoder(
        self, in_channels: int, widths: Sequence[int], num_blocks: int, attn_resolutions: Sequence[int]
    ) -> list[int]:
        """Fill self.enc; returns the channels of every skip connection, in order."""
        self.enc = torch.nn.ModuleDict()
        channels = widths[0]
        skips = []
        for level, width in enumerate(widths):
            res = self.img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(in_channels, channels, kernel=3, **INIT)
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, down=True, **self.block_kwargs)
            skips.append(channels)
            for index in range(num_blocks):
                attention = res in attn_resolutions
                block = UNetBlock(channels, width, attention=attention, **self.block_kwargs)
                self.enc[f"{res}x{res}_block{index}"] = block
                channels = width
                skips.append(channels)
        return skips

    def _make_decoder(
        self, widths: Sequence[int], num_blocks: int, attn_resolutions: Sequence[int], skips: list[int]
    ) -> int:
        """Fill self.dec; returns its output channels."""
        self.dec = torch.nn.ModuleDict()
        skips = list(skips)
        channels = skips[-1]
        for level, width in reversed(list(enumerate(widths))):
            res = self.img_resolution >> level
            if level == len(widths) - 1:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, attention=True, **self.block_kwargs)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, **self.block_kwargs)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, up=True, **self.block_kwargs)
            for index in range(num_blocks + 1):
                attention = res in attn_resolutions
                block = UNetBlock(channels + skips.pop(), width, attention=attention, **self.block_kwargs)
                self.dec[f"{res}x{res}_block{index}"] = block
                channels = width
        return channels

    def embed(
        self,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None,
        augment_labels: torch.Tensor | None,
        batch: int,
    ) -> torch.Tensor:
        """The conditioning vector (N or 1, emb) every block sees."""
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            if self.training and self.label_dropout:
                class_labels = drop_labels(class_labels, self.label_dropout, batch)
            emb = emb + self.map_label(class_labels)
        return F.silu(emb)

    def forward(
        self,
        x: torch.Tensor,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        check_size(x, self.levels)
        emb = self.embed(noise_labels, class_labels, augment_labels, x.shape[0])
        conv, *blocks = self.enc.values()
        skips = [conv(x)]
        for block in blocks:
            skips.append(block(skips[-1], emb))
        h = skips[-1]
        for name, block in self.dec.items():
            takes_skip = name.partition("_")[2].startswith("block")
            h = block(torch.cat((h, skips.pop()), 1) if takes_skip else h, emb)
        return self.out_conv(self.out_norm(h, silu=True))
