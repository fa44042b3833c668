"""Guidance: the denoiser of a run is moved away from a second, worse one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edm_fast.errors import UserError
from edm_fast.sampling import _arguments


@dataclasses.dataclass(frozen=True)
class Guidance:
    """D_w = D_ref + w (D - D_ref) at the levels of an interval, in the type of x; D itself at the others.

    weight: w, finite. With w = 1 nothing is guided. Papers on classifier-free guidance often call w - 1 the weight.
    net: gives D_ref, and decides the kind of guidance.
        None: the network itself with labels of zeros, evaluated as one batch of two (classifier-free guidance, Ho &
        Salimans 2022).
        An unconditional network: D_ref knows no labels.
        A conditional network: D_ref has the same labels (autoguidance, Karras et al. 2024, Eq. 3).
    interval: (sigma_lo, sigma_hi); a step down is guided if it starts at sigma_lo < sigma <= sigma_hi, a step up if it
    ends there, with all of its evaluations (Kynkaanniemi et al. 2024). Other steps do not evaluate D_ref.

    Raises UserError for bad values.
    """

    weight: float
    net: Any = None
    interval: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        weight = _arguments.number("the guidance weight", self.weight)
        if not math.isfinite(weight):
            raise UserError(f"the guidance weight is {weight}; expected a finite number")
        try:
            low, high = self.interval
        except (TypeError, ValueError):
            raise UserError(f"the guidance interval is {str(self.interval)[:80]!r}; expected two levels") from None
        ends = _arguments.number("the guidance interval", low), _arguments.number("the guidance interval", high)
        if not 0 <= ends[0] < ends[1]:
            raise UserError(f"the guidance interval is {low} to {high}; expected 0 <= sigma_lo < sigma_hi")
        if self.net is not None and not callable(self.net):
            raise UserError(f"the guiding network is of type {type(self.net).__name__}; expected a denoiser")
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "interval", ends)

    def active(self, sigma: float) -> bool:
        """Whether the step whose higher level is sigma is guided."""
        low, high = (end * (1 + _arguments.ROUNDING) for end in self.interval)
        return self.weight != 1 and low < sigma <= high

    def check(self, net: Any, class_labels: Any = True) -> None:
        """UserError if `net` cannot be guided so. class_labels: None if the run has no labels."""
        label_dim, own = getattr(net, "label_dim", None), getattr(self.net, "label_dim", None)
        if self.net is None:
            if self.weight == 1:
                return
            if label_dim == 0:
                raise UserError("the network is unconditional; expected a second network to guide it")
            if class_labels is None:
                raise UserError("class_labels is None; expected labels, for guidance by them")
            return
        if own and label_dim is not None and own != label_dim:
            raise UserError(f"the guiding network has {own} classes and the network {label_dim}; expected as many")
        for name, text in (("img_resolution", "pixels a side"), ("img_channels", "channels")):
            of_each = getattr(self.net, name, None), getattr(net, name, None)
            if None not in of_each and of_each[0] != of_each[1]:
                raise UserError(
                    f"the guiding network makes images of {of_each[0]} {text} and the network of {of_each[1]}; "
                    "expected as many"
                )

    def __call__(self, denoise: Callable[..., Tensor], x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """D_w (N, C, H, W) in the type of x. denoise(x, sigma, labels) is D."""
        if self.net is None:
            assert labels is not None  # see check
            labels = labels.reshape(-1, labels.shape[-1]).expand(len(x), -1)
            both = denoise(torch.cat([x, x]), sigma, torch.cat([labels, torch.zeros_like(labels)]))
            main, reference = both.to(x.dtype).chunk(2)
        else:
            main = denoise(x, sigma, labels).to(x.dtype)
            reference = self.net(x, sigma, labels if getattr(self.net, "label_dim", 1) else None).to(x.dtype)
        return reference + self.weight * (main - reference)


def check(guidance: Any, net: Any, class_labels: Any = True) -> None:
    """UserError for what is no guidance of this network."""
    if guidance is None:
        return
    if not isinstance(guidance, Guidance):
        raise UserError(f"guidance is of type {type(guidance).__name__}; expected edm_fast.Guidance(weight, ...)")
    guidance.check(net, class_labels)
