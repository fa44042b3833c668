"""The networks of guided-diffusion and score_sde from their papers, with the names that their files have.

Dhariwal & Nichol 2021, Song et al. 2021. Small and plain: what a converted network must give.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def sinusoids(t, channels, last=0):
    """(sines, cosines) of t at channels / 2 frequencies; `last` = 1: the lowest is exactly 1e-4."""
    half = channels // 2
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / (half - last))
    return angles.sin(), angles.cos()


def resized(x, how):
    if how == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if how == "down" else x


class ADMBlock(nn.Module):
    def __init__(self, inputs, outputs, emb, how=None):
        super().__init__()
        self.how = how
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outputs), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, emb):
        norm, act, conv = self.in_layers
        h = conv(resized(act(norm(x)), self.how))
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, 1)
        norm, *rest = self.out_layers
        h = nn.Sequential(*rest)(norm(h) * (1 + scale) + shift)
        return self.skip_connection(resized(x, self.how)) + h


class ADMAttention(nn.Module):
    """new_order: q, k and v of all heads one after the other, otherwise head by head."""

    def __init__(self, channels, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm, self.qkv = nn.GroupNorm(32, channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, emb):
        n, channels, h, w = x.shape
        found = self.qkv(self.norm(x.flatten(2)))
        if self.new_order:
            q, k, v = found.reshape(n, 3, self.heads, -1, h * w).unbind(1)
        else:
            q, k, v = found.reshape(n, self.heads, 3, -1, h * w).unbind(2)
        weights = torch.einsum("nhcq,nhck->nhqk", q, k).mul((channels / self.heads) ** -0.5).softmax(-1)
        return x + self.proj_out(torch.einsum("nhqk,nhck->nhcq", weights, v).reshape(n, channels, -1)).reshape(x.shape)


class Parts(nn.Sequential):
    def forward(self, x, emb):
        for part in self:
            x = part(x) if isinstance(part, nn.Conv2d) else part(x, emb)
        return x


class GuidedDiffusion(nn.Module):
    """With 64 channels per head and learned variances: twice the channels come out."""

    def __init__(self, width=128, mult=(1, 2), blocks=1, side=8, attend=(4,), classes=5, new_order=True):
        super().__init__()
        emb, self.width = 4 * width, width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_emb = nn.Embedding(classes, emb)

        def level(parts, channels):
            return [*parts, *([ADMAttention(channels, channels // 64, new_order)] if side in attend else [])]

        self.input_blocks = nn.ModuleList([Parts(nn.Conv2d(3, width, 3, padding=1))])
        skips, now = [width], width
        for i, factor in enumerate(mult):
            if i:
                self.input_blocks.append(Parts(ADMBlock(now, now, emb, "down")))
                side //= 2
                skips.append(now)
            for _ in range(blocks):
                self.input_blocks.append(Parts(*level([ADMBlock(now, factor * width, emb)], factor * width)))
                now = factor * width
                skips.append(now)
        self.middle_block = Parts(
            ADMBlock(now, now, emb), ADMAttention(now, now // 64, new_order), ADMBlock(now, now, emb)
        )
        self.output_blocks = nn.ModuleList()
        for i, factor in reversed([*enumerate(mult)]):
            for j in range(blocks + 1):
                parts = level([ADMBlock(now + skips.pop(), factor * width, emb)], factor * width)
                now = factor * width
                if i and j == blocks:
                    parts.append(ADMBlock(now, now, emb, "up"))
                    side *= 2
                self.output_blocks.append(Parts(*parts))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, 6, 3, padding=1))

    def forward(self, x, t, labels):
        sin, cos = sinusoids(t, self.width)
        emb = self.time_embed(torch.cat((cos, sin), 1)) + self.label_emb(labels)
        skips, h = [], x
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat((h, skips.pop()), 1), emb)
        return self.out(h)


def filtered(x, taps, how):
    """Resampling by 2 with an even filter, as one convolution of each channel."""
    k = torch.outer(taps, taps) / taps.sum() ** 2
    pad = (len(taps) - 2) // 2
    kernel = k.expand(x.shape[1], 1, *k.shape)
    if how == "down":
        return F.conv2d(x, kernel, stride=2, padding=pad, groups=x.shape[1])
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=pad, groups=x.shape[1])


class Dense(nn.Module):
    """A matrix product over channels, called NIN there: y = x W + b."""

    def __init__(self, channels):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.zeros(channels, channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return torch.einsum("nchw,cd->ndhw", x, self.W) + self.b[:, None, None]


def group_norm(channels):
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class SongBlock(nn.Module):
    def __init__(self, inputs, outputs, emb, taps, how=None):
        super().__init__()
        self.how, self.taps = how, taps
        self.GroupNorm_0, self.Conv_0 = group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.Dense_0 = nn.Linear(emb, outputs)
        self.GroupNorm_1, self.Conv_1 = group_norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs or how:
            self.Conv_2 = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, emb):
        h = F.silu(self.GroupNorm_0(x))
        if self.how:
            h, x = filtered(h, self.taps, self.how), filtered(x, self.taps, self.how)
        h = self.Conv_0(h) + self.Dense_0(F.silu(emb))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return ((self.Conv_2(x) if hasattr(self, "Conv_2") else x) + h) / math.sqrt(2)


class SongAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (Dense(channels) for _ in range(4))

    def forward(self, x):
        h = self.GroupNorm_0(x)
        q, k, v = (dense(h).flatten(2) for dense in (self.NIN_0, self.NIN_1, self.NIN_2))
        weights = torch.einsum("ncq,nck->nqk", q, k).mul(x.shape[1] ** -0.5).softmax(-1)
        return (x + self.NIN_3(torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape))) / math.sqrt(2)


class Frequencies(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.W = nn.Parameter(16 * torch.randn(width), requires_grad=False)


class Inner(nn.Module):
    """A convolution under the name that a file has for it."""

    def __init__(self, name, conv):
        super().__init__()
        self.add_module(name, conv)

    def forward(self, x):
        return next(iter(self.children()))(x)


class ScoreSDE(nn.Module):
    """DDPM++ (fourier=False), or NCSN++ with the residual or the skip pyramids."""

    def __init__(self, width=16, mult=(1, 2), blocks=1, side=8, attend=(4,), fourier=False, pyramid=None):
        super().__init__()
        taps = torch.tensor([1.0, 3, 3, 1] if fourier else [1.0, 1])
        self.width, self.blocks, self.taps, self.pyramid, self.attend = width, blocks, taps, pyramid, attend
        emb, self.levels, self.fourier = 4 * width, len(mult), fourier
        self.register_buffer("sigmas", torch.linspace(50, 0.01, 10, dtype=torch.float64))
        units = [Frequencies(width)] if fourier else []
        units += [nn.Linear(2 * width if fourier else width, emb), nn.Linear(emb, emb)]
        units.append(nn.Conv2d(3, width, 3, padding=1))
        skips, now, side_channels = [width], width, 3
        for i, factor in enumerate(mult):
            for _ in range(blocks):
                units.append(SongBlock(now, factor * width, emb, taps))
                now = factor * width
                units += [SongAttention(now)] if side >> i in attend else []
                skips.append(now)
            if i + 1 < len(mult):
                units.append(SongBlock(now, now, emb, taps, "down"))
                if pyramid == "residual":
                    units.append(Inner("Conv2d_0", nn.Conv2d(side_channels, now, 3, padding=1)))
                    side_channels = now
                elif pyramid == "skip":
                    units += [nn.Identity(), Inner("Conv_0", nn.Conv2d(3, now, 1))]
                skips.append(now)
        units += [SongBlock(now, now, emb, taps), SongAttention(now), SongBlock(now, now, emb, taps)]
        for i, factor in reversed([*enumerate(mult)]):
            for _ in range(blocks + 1):
                units.append(SongBlock(now + skips.pop(), factor * width, emb, taps))
                now = factor * width
            units += [SongAttention(now)] if side >> i in attend else []
            if pyramid == "skip":
                units += [] if i + 1 == len(mult) else [nn.Identity()]
                units += [group_norm(now), nn.Conv2d(now, 3, 3, padding=1)]
            units += [SongBlock(now, now, emb, taps, "up")] if i else []
        if pyramid != "skip":
            units += [group_norm(now), nn.Conv2d(now, 3, 3, padding=1)]
        self.all_modules = nn.ModuleList(units)

    def forward(self, x, t):
        """t: 999 times the time of VP, or sigma of VE on images in [0, 1]. Without the division by sigma at the end."""
        units = iter(self.all_modules)
        if self.fourier:
            angles = 2 * math.pi * t.log()[:, None] * next(units).W
            emb = torch.cat((angles.sin(), angles.cos()), 1)
        else:
            emb = torch.cat(sinusoids(t, self.width, last=1), 1)
        emb = next(units)(emb)
        emb = next(units)(F.silu(emb))
        skips, side = [next(units)(x)], x
        for i in range(self.levels):
            for _ in range(self.blocks):
                h = next(units)(skips[-1], emb)
                skips.append(next(units)(h) if h.shape[-1] in self.attend else h)
            if i + 1 < self.levels:
                h = next(units)(skips[-1], emb)
                if self.pyramid == "residual":
                    # the filter before a convolution of stride 2 is one before the convolution of every pixel
                    side = filtered_convolution(side, next(units), self.taps)
                    h = side = (side + h) / math.sqrt(2)
                elif self.pyramid == "skip":
                    side = next(units)(filtered(side, self.taps, "down"))
                    h = h + next(units)(side)
                skips.append(h)
        h = next(units)(skips[-1], emb)
        h = next(units)(h)
        h = next(units)(h, emb)
        out = None
        for i in reversed(range(self.levels)):
            for _ in range(self.blocks + 1):
                h = next(units)(torch.cat((h, skips.pop()), 1), emb)
            h = next(units)(h) if h.shape[-1] in self.attend else h
            if self.pyramid == "skip":
                out = None if out is None else next(units)(filtered(out, self.taps, "up"))
                found = self._output(h, units)
                out = found if out is None else out + found
            h = next(units)(h, emb) if i else h
        return out if self.pyramid == "skip" else self._output(h, units)

    def _output(self, h, units):
        norm, conv = next(units), next(units)
        return conv(F.silu(norm(h)))


def filtered_convolution(x, unit, taps):
    """The kernel of the filter and of the convolution as one, with zeros around the image, at every second pixel."""
    conv = unit.Conv2d_0
    k = torch.outer(taps, taps) / taps.sum() ** 2
    both = F.conv_transpose2d(conv.weight.flatten(0, 1)[:, None], k[None, None])[:, 0]
    both = both.unflatten(0, conv.weight.shape[:2])
    return F.conv2d(x, both, conv.bias, stride=2, padding=1 + (len(taps) - 2) // 2)
