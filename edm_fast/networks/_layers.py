"""The layers of DDPM++, NCSN++ and ADM: thin modules over edm_fast.ops, with the published state-dict keys.

Weights are float32 and cast to the dtype of the activations at each call. Every weight and bias draws from the global
torch generator at construction, also where its factor is 0, so that a seed gives the published initial state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from edm_fast.backend import transformed
from edm_fast.errors import UserError
from edm_fast.ops import conv2d, group_norm_silu, upfirdn


def weight_init(shape: Sequence[int], mode: str, fan_in: int, fan_out: int) -> torch.Tensor:
    """Initial values by name: {xavier,kaiming}_{uniform,normal} (Glorot & Bengio 2010; He et al. 2015)."""
    family, _, distribution = mode.partition("_")
    gain, fan = {"xavier": (2, fan_in + fan_out), "kaiming": (1, fan_in)}.get(family, (0, 1))  # variance gain / fan
    if not gain or distribution not in ("uniform", "normal"):
        raise UserError(f"unknown init mode {mode!r}; expected {{xavier,kaiming}}_{{uniform,normal}}")
    if distribution == "normal":
        return math.sqrt(gain / fan) * torch.randn(*shape)
    return math.sqrt(3 * gain / fan) * (2 * torch.rand(*shape) - 1)  # uniform on [-b, b] has variance b^2 / 3


def _waves(t: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """[cos(t f), sin(t f)]: t (N,), frequencies (h,) -> (N, 2h)."""
    angle = t[:, None] * frequencies.to(t.dtype)
    return torch.cat((torch.cos(angle), torch.sin(angle)), 1)


class Linear(torch.nn.Module):
    """y = x W^T + b; x: (N, in), weight: (out, in), bias: (out,)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        init_mode: str = "kaiming_normal",
        init_weight: float = 1,
        init_bias: float = 0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        fans = (in_features, out_features)
        self.weight = torch.nn.Parameter(weight_init([out_features, in_features], init_mode, *fans) * init_weight)
        self.register_parameter("bias", None)
        if bias:
            self.bias = torch.nn.Parameter(weight_init([out_features], init_mode, *fans) * init_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.matmul(x, self.weight.to(x.dtype).mT)
        if self.bias is not None:
            y = (y + self.bias.to(x.dtype)).to(y.dtype)  # not in place: torch.func forbids it
        return y


class Conv2d(torch.nn.Module):
    """Convolution with optional resampling by 2, and conv2d's fused tail: y = (conv + bias + emb + residual) scale.

    kernel 0 resamples only. `up` filters before the convolution; so does `down`, unless `fused_resample`: then the
    convolution runs on the full grid and the filter decimates its output. The bias comes after both.
    Buffer resample_filter: (1, 1, K, K), the outer product of the taps, normalised to sum 1.
    """

    resample_filter: torch.Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        bias: bool = True,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused_resample: bool = False,
        init_mode: str = "kaiming_normal",
        init_weight: float = 1,
        init_bias: float = 0,
    ) -> None:
        super().__init__()
        if up and down:
            raise UserError("Conv2d: up and down were both asked for; expected at most one")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.up = up
        self.down = down
        self.fused_resample = fused_resample
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if kernel:
            fans = (in_channels * kernel**2, out_channels * kernel**2)
            shape = [out_channels, in_channels, kernel, kernel]
            self.weight = torch.nn.Parameter(weight_init(shape, init_mode, *fans) * init_weight)
            if bias:
                self.bias = torch.nn.Parameter(weight_init([out_channels], init_mode, *fans) * init_bias)
        f = None
        if up or down:
            taps = torch.tensor([float(tap) for tap in resample_filter], dtype=torch.float32)
            f = (torch.outer(taps, taps) / taps.sum() ** 2).reshape(1, 1, len(taps), len(taps))
        self.register_buffer("resample_filter", f)

    def _resample(self, x: torch.Tensor, padding: int) -> torch.Tensor:
        assert self.resample_filter is not None
        f = self.resample_filter[0, 0]
        return upfirdn(x, f, up=2, padding=padding) if self.up else upfirdn(x, f, down=2, padding=padding)

    def forward(
        self,
        x: torch.Tensor,
        emb: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> torch.Tensor:
        p_w = self.weight.shape[-1] // 2 if self.weight is not None else 0
        p_f = 0 if self.resample_filter is None else (self.resample_filter.shape[-1] - 1) // 2
        if self.weight is None:
            return self._resample(x, p_f) if self.up or self.down else x
        if self.down and self.fused_resample:
            assert emb is None
            y = self._resample(conv2d(x, self.weight, padding=p_w + p_f), 0)
            y = y if self.bias is None else y + self.bias.to(x.dtype).reshape(1, -1, 1, 1)
            y = y if residual is None else y + residual
            return y if scale == 1.0 else y * scale
        padding = p_w
        if self.up and self.fused_resample:
            x, padding = self._resample(x, max(p_f - p_w, 0)), max(p_w - p_f, 0)
        elif self.up or self.down:
            x = self._resample(x, p_f)
        return conv2d(x, self.weight, self.bias, emb, residual, scale, padding)


class GroupNorm(torch.nn.Module):
    """Group norm with min(num_groups, channels // min_channels_per_group) groups; `silu=True` fuses the activation."""

    def __init__(
        self, num_channels: int, num_groups: int = 32, min_channels_per_group: int = 4, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.num_groups = min(num_groups, num_channels // min_channels_per_group)
        if self.num_groups < 1 or num_channels % self.num_groups:
            raise UserError(
                f"GroupNorm: {num_channels} channels do not divide into {self.num_groups} groups of at least "
                f"{min_channels_per_group} channels"
            )
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(num_channels))
        self.bias = torch.nn.Parameter(torch.zeros(num_channels))

    def forward(
        self,
        x: torch.Tensor,
        scale: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
        silu: bool = False,
    ) -> torch.Tensor:
        return group_norm_silu(x, self.weight, self.bias, self.num_groups, self.eps, scale, shift, silu)


class PositionalEmbedding(torch.nn.Module):
    """[cos(t f_i), sin(t f_i)], f_i = max_positions^(-i / (h - endpoint)), i < h = num_channels // 2.

    t: (N,) -> (N, 2h).
    """

    def __init__(self, num_channels: int, max_positions: int = 10000, endpoint: bool = False) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.max_positions = max_positions
        self.endpoint = endpoint

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        half = self.num_channels // 2
        e = torch.arange(half, dtype=torch.float32, device=t.device) / (half - int(self.endpoint))
        return _waves(t, (1 / self.max_positions) ** e)


class FourierEmbedding(torch.nn.Module):
    """[cos(2 pi f_i t), sin(2 pi f_i t)] with fixed random f_i ~ N(0, scale^2); t (N,) -> (N, 2h). Song et al. 2021."""

    freqs: torch.Tensor

    def __init__(self, num_channels: int, scale: float = 16) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(num_channels // 2) * scale)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return _waves(t, 2 * math.pi * self.freqs)


def drop_values(x: torch.Tensor, probability: float, training: bool) -> torch.Tensor:
    """torch's dropout of x (N, C, H, W), on CPUs with one mask for each seed, however the memory of x is laid out.

    torch draws in the order of memory. Kernels leave images channels last, the published code channels first: the mask
    is drawn in that order, as bits, and laid out as x. Under torch.func, which has no order of memory, torch draws.
    """
    draws = training and 0 < probability < 1 and x.device.type == "cpu"
    if not draws or transformed() or x.is_contiguous():
        return F.dropout(x, p=probability, training=training)
    keep = torch.empty_like(x, dtype=torch.bool, memory_format=torch.contiguous_format).bernoulli_(1 - probability)
    return x * torch.empty_like(x).copy_(keep).div_(1 - probability)


def drop_labels(labels: torch.Tensor, probability: float, batch: int) -> torch.Tensor:
    """Label dropout: each of `batch` images has its row of labels (batch or 1, L) set to zero with this probability."""
    keep = torch.rand([batch, 1], device=labels.device) >= probability
    return labels * keep.to(labels.dtype)
