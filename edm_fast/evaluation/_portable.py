"""Portable: a network in operations that the converters of other libraries know and that those run fast.

The calls are those of the traced network after rewrites that plans use as well, so that a peer has the same help (q, k
and v in a row, 1x1 convolutions before an upsampling), with biases within convolutions, attention as products of
matrices, and pixels repeated or averaged by the layer made for that. The waves of the noise level are an input: not
every peer has a sine that is exact enough.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from edm_fast.diffusion.precond import Coefficients
from edm_fast.evaluation._networks import Inputs, noise_embedding
from edm_fast.ops.attention import AttentionArgs
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.group_norm_silu import GroupNormSiluArgs
from edm_fast.ops.pixel_norm import PixelNormArgs
from edm_fast.ops.upfirdn import UpfirdnArgs
from edm_fast.plan._graph import LinearArgs, Node, SeparateQKVArgs, TorchArgs, last_uses, map_tensors, map_values
from edm_fast.plan._rewrite import repeats_pixels, rewrite, rewritten, skip_dropout
from edm_fast.plan._trace import trace

Denoiser = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


class Portable(torch.nn.Module):
    """F of (c_in x, waves of c_noise, labels) at one set of shapes. `inputs`: these of an example, by name."""

    def __init__(self, net: Any, example: Inputs) -> None:
        super().__init__()
        self.denoiser = [net]  # in a list: no part of what is exported
        raw, name = copy.copy(net.raw), noise_embedding(net.raw)
        raw._modules = {**raw._modules, name: torch.nn.Identity()}
        x, sigma, labels = example
        self.inputs = self._of(net.coefficients(sigma.reshape(-1, 1, 1, 1)), x, labels)
        graph = trace(raw, {name: tuple(value.shape) for name, value in self.inputs.items()})
        self.graph = rewrite(rewritten(graph), skip_dropout)
        self.dead = last_uses(self.graph.nodes, self.graph.output)
        self.args = {node: map_tensors(self._keep, node.args) for node in self.graph.nodes}

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach()  # a buffer by its identity, which tracers go by
        self.register_buffer(f"tensor{len(self._buffers)}", tensor)
        return tensor

    def _of(self, c: Coefficients, x: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        raw = self.denoiser[0].raw
        found = {"x": c.c_in * x, "noise_labels": getattr(raw, noise_embedding(raw))(c.c_noise.flatten())}
        return found if labels is None else {**found, "class_labels": labels}

    def around(self, run: Callable[..., Any]) -> Denoiser:
        """D(x; sigma) from a peer's F: run(*arrays) of the inputs in order, to an array."""
        net = self.denoiser[0]

        def denoise(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
            c = net.coefficients(sigma.reshape(-1, 1, 1, 1))
            F_x = torch.from_numpy(run(*(value.numpy() for value in self._of(c, x, labels).values())))
            return c.c_skip * x + c.c_out * F_x[:, : net.img_channels]

        return denoise

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        values = dict(zip(self.graph.inputs.values(), inputs))
        for node in self.graph.nodes:
            assert isinstance(node, Node)
            args = map_values(values.__getitem__, self.args[node])
            name = getattr(node.function, "__name__", "")
            formula = FUNCTIONS.get(name) or FORMULAS.get(type(args))
            result = node.run(args) if formula is None else formula(node.args, args)
            values.update(zip(node.outputs, [result] if isinstance(result, torch.Tensor) else result))
            for value in self.dead[node]:
                values.pop(value, None)
        return values[self.graph.output]


# each takes the record of the traced call, whose shapes are numbers, and that of the tensors: a tracer would put calls
# that ask for their shapes into the file


def _conv2d(of: Conv2dArgs, args: Conv2dArgs) -> torch.Tensor:
    y = F.conv2d(args.x, args.weight, args.bias, padding=of.pad())
    if of.emb is not None and args.emb is not None:
        y = y + args.emb.reshape(*of.emb.shape, 1, 1)
    if args.residual is not None:
        y = y + args.residual
    return y if of.scale == 1 else y * of.scale


def _group_norm_silu(of: GroupNormSiluArgs, args: GroupNormSiluArgs) -> torch.Tensor:
    y = F.group_norm(args.x, of.groups, args.weight, args.bias, of.eps)
    if of.scale is not None and args.scale is not None and args.shift is not None:
        scale, shift = (tensor.reshape(*of.scale.shape, 1, 1) for tensor in (args.scale, args.shift))
        y = y * (scale + 1) + shift
    return F.silu(y) if of.silu else y


def _pixel_norm(of: PixelNormArgs, args: PixelNormArgs) -> torch.Tensor:
    y, (n, channels, *size) = args.x, of.x.shape
    if of.norm:
        parts = y.reshape(n * of.groups, channels // (of.groups * of.interleaved), of.interleaved * size[0], size[1])
        y = (parts / (of.eps + parts.square().mean(1, keepdim=True).sqrt())).reshape(n, channels, *size)
    if args.gain is not None:
        y = y * args.gain.reshape(-1, channels, 1, 1)
    return F.silu(y) if of.silu else y


def _upfirdn(of: UpfirdnArgs, args: UpfirdnArgs) -> torch.Tensor:
    taps, channels = of.f.shape[0], of.x.shape[1]
    if repeats_pixels(of):
        return F.interpolate(args.x, scale_factor=float(of.up), mode="nearest")
    if of.down == taps and not of.padding and bool((of.f == 1 / taps**2).all()):
        return F.avg_pool2d(args.x, taps)
    weight = (of.f * float(of.up**2))[None, None].tile([channels, 1, 1, 1])
    if of.up > 1:
        return F.conv_transpose2d(args.x, weight, None, of.up, of.padding, 0, channels)
    return F.conv2d(args.x, weight, None, of.down, of.padding, 1, channels)


def _attention(of: AttentionArgs | SeparateQKVArgs, args: AttentionArgs | SeparateQKVArgs) -> torch.Tensor:
    n, channels, h, w = of.qkv.shape
    heads, head = n * of.num_heads, channels // (3 * of.num_heads)
    if isinstance(of, SeparateQKVArgs):
        q, k, v = (part.reshape(heads, head, h * w) for part in args.qkv.chunk(3, 1))
    else:
        q, k, v = args.qkv.reshape(heads, head, 3, h * w).unbind(2)
    weights = torch.bmm((q * (1 / math.sqrt(head))).transpose(1, 2), k).softmax(2)
    return torch.bmm(v, weights.transpose(1, 2)).reshape(n, of.num_heads * head, h, w)


def _lerp(of: TorchArgs, args: TorchArgs) -> torch.Tensor:
    a, b, t = args.args
    return a * (1 - t) + b * t


def _ones_like(of: TorchArgs, args: TorchArgs) -> torch.Tensor:
    return args.args[0] * 0.0 + 1.0  # a constant would be of one batch


def _linear(of: LinearArgs, args: LinearArgs) -> torch.Tensor:
    return F.linear(*args)


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {"lerp": _lerp, "ones_like": _ones_like}
FORMULAS: dict[type, Callable[..., torch.Tensor]] = {
    Conv2dArgs: _conv2d,
    GroupNormSiluArgs: _group_norm_silu,
    PixelNormArgs: _pixel_norm,
    UpfirdnArgs: _upfirdn,
    AttentionArgs: _attention,
    SeparateQKVArgs: _attention,
    LinearArgs: _linear,
}
