"""The magnitude-preserving network of EDM2: no biases, no norms with parameters, weights of unit magnitude.

Karras et al. 2024 (arXiv 2312.02696), Sections 2.2 and 2.3, Appendix B and Fig. 21; equation numbers are those of this
paper. Every layer keeps the expected magnitude of its inputs, RMS(x) = sqrt(mean x^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from edm_fast.errors import UserError
from edm_fast.networks._inputs import check_size
from edm_fast.networks._layers import drop_values
from edm_fast.ops import attention as attention_op
from edm_fast.ops import conv2d, pixel_norm, upfirdn

EPS = 1e-4


def normalize(x: torch.Tensor, dim: int | Sequence[int] | None = None, eps: float = EPS) -> torch.Tensor:
    """x / (eps + RMS(x) over `dim`), all dimensions but the first if None. Eq. 30. The norm is float32 or wider."""
    dims = list(range(1, x.ndim)) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=_wide(x))
    return x / (eps + norm * math.sqrt(norm.numel() / x.numel())).to(x.dtype)


def _wide(x: torch.Tensor) -> torch.dtype:
    """float32, or float64 where x is."""
    return torch.promote_types(x.dtype, torch.float32)


SILU = 0.596  # magnitude of silu(x) for standard normal x


def mp_silu(x: torch.Tensor) -> torch.Tensor:
    """silu(x) / 0.596, of unit magnitude for standard normal x. Eq. 81."""
    return F.silu(x) / SILU


def mp_sum(a: torch.Tensor, b: torch.Tensor, t: float = 0.5) -> torch.Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2). Eq. 88."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: torch.Tensor, b: torch.Tensor, dim: int = 1, t: float = 0.5) -> torch.Tensor:
    """[w_a a, w_b b] along `dim`, w_a = C (1 - t) / sqrt(N_a), w_b = C t / sqrt(N_b), N: their channels. Eq. 103.

    C = sqrt((N_a + N_b) / ((1 - t)^2 + t^2)): the share of b in the magnitude is t, however many channels it has.
    """
    n_a, n_b = a.shape[dim], b.shape[dim]
    c = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat((a * (c * (1 - t) / math.sqrt(n_a)), b * (c * t / math.sqrt(n_b))), dim)


def resample(x: torch.Tensor, f: Sequence[float], mode: str = "keep") -> torch.Tensor:
    """x (N, C, H, W) as it is, or by the even number of taps f to half ("down") or twice ("up") the size."""
    if mode == "keep":
        return x
    taps = torch.tensor([float(tap) for tap in f], dtype=torch.float32, device=x.device)
    kernel, padding = torch.outer(taps, taps) / taps.sum() ** 2, (len(taps) - 1) // 2
    return upfirdn(x, kernel, up=2, padding=padding) if mode == "up" else upfirdn(x, kernel, down=2, padding=padding)


class MPFourier(torch.nn.Module):
    """x (N,) -> sqrt(2) cos(x freqs + phases) (N, C), freqs ~ 2 pi bandwidth N(0, 1), phases ~ U(0, 2 pi). Eq. 75."""

    freqs: torch.Tensor
    phases: torch.Tensor

    def __init__(self, num_channels: int, bandwidth: float = 1) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(num_channels) * bandwidth)
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = _wide(self.freqs)
        angle = torch.outer(x.to(wide), self.freqs.to(wide)) + self.phases.to(wide)
        return (angle.cos() * math.sqrt(2)).to(x.dtype)


class MPConv(torch.nn.Module):
    """Convolution (zero padding k // 2) or, with kernel [], linear layer, by normalised weights. Eq. 47.

        y = W' x,  W' = normalize(W) gain / sqrt(n)            n: inputs of one output, in k^2

    In training mode W itself is first put back to unit magnitude, at every call and outside of the graph (Eq. 66).
    W' is float32 and cast last; only a gain stored in half precision has its factor rounded to half, as published.
    With a residual the convolution gives (W' x + residual) scale.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.weight = torch.nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(
        self,
        x: torch.Tensor,
        gain: torch.Tensor | float = 1,
        residual: torch.Tensor | None = None,
        scale: float = 1.0,
    ) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(self.weight.to(_wide(self.weight))))
        w = normalize(self.weight.to(_wide(self.weight)))
        w = (w * (gain / math.sqrt(w[0].numel()))).to(x.dtype)
        return conv2d(x, w, residual=residual, scale=scale) if w.ndim == 4 else torch.matmul(x, w.mT)

    def added_to(self, x: torch.Tensor, y: torch.Tensor, t: float, gain: float = 1.0) -> torch.Tensor:
        """mp_sum(x, self(y) gain, t) in one call: its factors are those of the weights and of the sum."""
        if t == 1:
            return self(y, gain=gain)
        return self(y, gain=gain * t / (1 - t), residual=x, scale=(1 - t) / math.hypot(1 - t, t))


class Block(torch.nn.Module):
    """The residual block of encoder and decoder: x (N, in, H, W), emb (N or 1, emb) -> (N, out, H', W'). Fig. 21.

        x = resample(x)                                 then in encoders normalize(conv_skip(x)) over the channels
        y = conv_res1(mp_silu(conv_res0(mp_silu(x)) c)),     c = emb_linear(emb) emb_gain + 1
        x = mp_sum(x, y, res_balance)                   in decoders of conv_skip(x) and y
        x = mp_sum(x, attn_proj(attention(normalize(attn_qkv(x)))), attn_balance)          if it has heads
        x clipped to +-clip_act

    conv_skip is there if in and out differ. Attention has out // channels_per_head heads, and is left out if that is 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        flavor: str = "enc",
        resample_mode: str = "keep",
        resample_filter: Sequence[float] = (1, 1),
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("flavor", flavor, ("enc", "dec")),
            ("resample_mode", resample_mode, ("keep", "up", "down")),
        ):
            if value not in allowed:
                raise UserError(f"Block: {name}={value!r}; expected one of {', '.join(allowed)}")
        self.out_channels = out_channels
        self.flavor = flavor
        self.resample_filter = list(resample_filter)
        self.resample_mode = resample_mode
        self.num_heads = out_channels // channels_per_head if attention else 0
        self.dropout = dropout
        self.res_balance = res_balance
        self.attn_balance = attn_balance
        self.clip_act = clip_act
        self.emb_gain = torch.nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if flavor == "enc" else in_channels, out_channels, kernel=[3, 3])
        self.emb_linear = MPConv(emb_channels, out_channels, kernel=[])
        self.conv_res1 = MPConv(out_channels, out_channels, kernel=[3, 3])
        self.conv_skip = MPConv(in_channels, out_channels, kernel=[1, 1]) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, out_channels * 3, kernel=[1, 1]) if self.num_heads else None
        self.attn_proj = MPConv(out_channels, out_channels, kernel=[1, 1]) if self.num_heads else None

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        x = resample(x, self.resample_filter, self.resample_mode)
        if self.flavor == "enc":
            x = pixel_norm(x if self.conv_skip is None else self.conv_skip(x))
        y = self.conv_res0(pixel_norm(x, norm=False, silu=True), gain=1 / SILU)
        c = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = pixel_norm(y, c, norm=False, silu=True)
        y = drop_values(y, self.dropout, self.training)
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = self.conv_res1.added_to(x, y, self.res_balance, gain=1 / SILU)
        if self.attn_qkv is not None and self.attn_proj is not None:
            qkv = pixel_norm(self.attn_qkv(x), groups=self.num_heads, interleaved=3)
            y = attention_op(qkv, self.num_heads)
            x = self.attn_proj.added_to(x, y, self.attn_balance)
        return x if self.clip_act is None else x.clip(-self.clip_act, self.clip_act)


class UNet(torch.nn.Module):
    """F(x; c_noise, labels): x (N, C, R, R), noise_labels (N or 1,) float32, class_labels (N or 1, label_dim)
    -> (N, C, R, R). All of a new network's outputs are 0, since out_gain is.

    A channel of ones is appended to x in place of biases. concat_balance weighs the skip connections. The keywords from
    resample_filter on are those of every Block.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        resample_filter: Sequence[float] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ) -> None:
        super().__init__()
        widths = [model_channels * mult for mult in channel_mult]
        noise_channels = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        emb_channels = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        self.label_balance = label_balance
        self.concat_balance = concat_balance
        self.levels = len(widths)
        self.block_kwargs: dict[str, Any] = {
            "emb_channels": emb_channels,
            "resample_filter": resample_filter,
            "channels_per_head": channels_per_head,
            "dropout": dropout,
            "res_balance": res_balance,
            "attn_balance": attn_balance,
            "clip_act": clip_act,
        }
        sizes = [img_resolution >> level for level in range(self.levels)]
        self.out_gain = torch.nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, emb_channels, kernel=[])
        self.emb_label = MPConv(label_dim, emb_channels, kernel=[]) if label_dim else None
        skips = self._make_encoder(img_channels + 1, sizes, widths, num_blocks, attn_resolutions)
        self._make_decoder(sizes, widths, num_blocks, attn_resolutions, skips)
        self.out_conv = MPConv(widths[0], img_channels, kernel=[3, 3])

    def _make_encoder(
        self,
        channels: int,
        sizes: Sequence[int],
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
    ) -> list[int]:
        """Fill self.enc; returns the channels of every skip connection, in order."""
        self.enc = torch.nn.ModuleDict()
        skips = []
        for level, (res, width) in enumerate(zip(sizes, widths, strict=True)):
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = MPConv(channels, width, kernel=[3, 3])
                channels = width
            else:
                down = Block(channels, channels, flavor="enc", resample_mode="down", **self.block_kwargs)
                self.enc[f"{res}x{res}_down"] = down
            skips.append(channels)
            for index in range(num_blocks):
                attention = res in attn_resolutions
                block = Block(channels, width, flavor="enc", attention=attention, **self.block_kwargs)
                self.enc[f"{res}x{res}_block{index}"] = block
                channels = width
                skips.append(channels)
        return skips

    def _make_decoder(
        self,
        sizes: Sequence[int],
        widths: Sequence[int],
        num_blocks: int,
        attn_resolutions: Sequence[int],
        skips: Sequence[int],
    ) -> None:
        self.dec = torch.nn.ModuleDict()
        skips = list(skips)
        channels = skips[-1]
        for level, (res, width) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            if level == self.levels - 1:
                self.dec[f"{res}x{res}_in0"] = Block(
                    channels, channels, flavor="dec", attention=True, **self.block_kwargs
                )
                self.dec[f"{res}x{res}_in1"] = Block(channels, channels, flavor="dec", **self.block_kwargs)
            else:
                up = Block(channels, channels, flavor="dec", resample_mode="up", **self.block_kwargs)
                self.dec[f"{res}x{res}_up"] = up
            for index in range(num_blocks + 1):
                attention = res in attn_resolutions
                block = Block(channels + skips.pop(), width, flavor="dec", attention=attention, **self.block_kwargs)
                self.dec[f"{res}x{res}_block{index}"] = block
                channels = width

    def embed(self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        """The conditioning vector (N or 1, emb) every block sees."""
        emb = self.emb_noise(self.emb_fourier(noise_labels))
        if self.emb_label is not None and class_labels is not None:
            labels = self.emb_label(class_labels * math.sqrt(class_labels.shape[1]))
            emb = mp_sum(emb, labels, self.label_balance)
        return mp_silu(emb)

    def forward(
        self, x: torch.Tensor, noise_labels: torch.Tensor, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        check_size(x, self.levels)
        emb = self.embed(noise_labels, class_labels)
        conv, *blocks = self.enc.values()
        skips = [conv(torch.cat((x, torch.ones_like(x[:, :1])), 1))]
        for block in blocks:
            skips.append(block(skips[-1], emb))
        h = skips[-1]
        for name, block in self.dec.items():
            takes_skip = name.partition("_")[2].startswith("block")
            h = block(mp_cat(h, skips.pop(), t=self.concat_balance) if takes_skip else h, emb)
        return self.out_conv(h, gain=self.out_gain)
