"""Averages of the weights in training: EDM's, and those of EDM2 by width (Karras et al. 2024, Section 3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from edm_fast.diffusion.ema import gamma_of_std, half_life_beta, power_beta
from edm_fast.errors import UserError


@torch.no_grad()
def update_ema(ema: torch.nn.Module, net: torch.nn.Module, beta: float) -> None:
    """ema <- net + beta (ema - net), parameters only: buffers keep their initial copy."""
    for average, parameter in zip(ema.parameters(), net.parameters(), strict=True):
        average.copy_(parameter.lerp(average, beta))


class _Averages:
    """Copies of a network whose parameters follow those of the network; its buffers are copied when they are read."""

    def __init__(self, net: torch.nn.Module, count: int) -> None:
        self.net = net
        self.averages = [copy.deepcopy(net).eval().requires_grad_(False) for _ in range(count)]

    @torch.no_grad()
    def _follow(self, betas: Iterable[float]) -> None:
        parameters: list[torch.Tensor] = [*self.net.parameters()]
        for average, beta in zip(self.averages, betas, strict=True):
            means: list[torch.Tensor] = [*average.parameters()]
            torch._foreach_lerp_(means, parameters, 1 - beta)

    @torch.no_grad()
    def _copy_buffers(self) -> None:
        for average in self.averages:
            for mine, theirs in zip(average.buffers(), self.net.buffers(), strict=True):
                mine.copy_(theirs)

    def reset(self) -> None:
        """The parameters of the network."""
        self._follow([0.0] * len(self.averages))


class PowerFunctionEMA(_Averages):
    """One average for each width of `stds`."""

    def __init__(self, net: torch.nn.Module, stds: Sequence[float] = (0.05, 0.1)) -> None:
        for std in stds:
            gamma_of_std(std)  # complains of a width that no average has
        if len(stds) == 0:
            raise UserError("no width of an average (stds); expected at least one")
        super().__init__(net, len(stds))
        self.stds = list(stds)

    def update(self, cur_nimg: int, batch_size: int) -> None:
        """After the step of batch_size images that ended at cur_nimg."""
        self._follow(power_beta(std, cur_nimg, batch_size) for std in self.stds)

    def get(self) -> list[tuple[torch.nn.Module, str]]:
        """(average, the end of its file name, such as "-0.050")."""
        self._copy_buffers()
        return [(average, f"-{std:.3f}") for average, std in zip(self.averages, self.stds, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"stds": list(self.stds), "emas": [average.state_dict() for average in self.averages]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The stored widths replace those of the constructor."""
        self.stds = [float(std) for std in state["stds"]]
        self.averages = [copy.deepcopy(self.net).eval().requires_grad_(False) for _ in self.stds]
        for average, stored in zip(self.averages, state["emas"], strict=True):
            average.load_state_dict(stored)


class TraditionalEMA(_Averages):
    """One average with a half-life in million images, which grows with the run: at most rampup_ratio of it."""

    def __init__(
        self, net: torch.nn.Module, halflife_Mimg: float = math.inf, rampup_ratio: float | None = 0.09
    ) -> None:
        super().__init__(net, 1)
        self.halflife_Mimg = halflife_Mimg
        self.rampup_ratio = rampup_ratio

    def update(self, cur_nimg: int, batch_size: int) -> None:
        """After the step of batch_size images that ended at cur_nimg."""
        self._follow([half_life_beta(cur_nimg, batch_size, self.halflife_Mimg * 1e6, self.rampup_ratio)])

    def get(self) -> list[tuple[torch.nn.Module, str]]:
        self._copy_buffers()
        return [(self.averages[0], "")]

    def state_dict(self) -> dict[str, Any]:
        return self.averages[0].state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.averages[0].load_state_dict(state)
