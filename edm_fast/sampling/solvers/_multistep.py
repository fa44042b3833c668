"""What multistep solvers share: how many points a step uses, and integrals over the polynomial through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edm_fast.errors import UserError

MAX_ORDER = 8
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def checked_order(order: Any, most: int = MAX_ORDER, name: str = "order") -> int:
    if isinstance(order, bool) or order not in range(1, most + 1):
        raise UserError(f"{name} is {order!r}; expected an integer from 1 to {most}")
    return int(order)


def checked_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise UserError(f"{name} is {value!r}; expected one of {', '.join(map(str, known))}")


def checked_lowering(value: Any, known: Sequence[Any] = (True, False, "short")) -> bool | str:
    """lower_order_final, see `points`."""
    checked_choice("lower_order_final", value, known)
    return value if isinstance(value, str) else bool(value)


def points(order: int, i: int, steps: int, lower_order_final: bool | str = False) -> int:
    """How many points step i of `steps` uses, itself included: `order` once there are as many.

    lower_order_final: at most as many as steps are left; "short": in runs of fewer than 15 steps, as in diffusers.
    """
    lowered = steps < 15 if lower_order_final == "short" else lower_order_final
    return min(order, i + 1, steps - i if lowered else order)


def latest(levels: Sequence[float], i: int, n: int) -> np.ndarray:
    """The levels of the last n points at step i, newest first."""
    return np.array(levels[i - n + 1 : i + 1])[::-1]


def integrals(
    nodes: np.ndarray,
    start: float,
    end: float,
    density: Callable[[np.ndarray], np.ndarray] = np.ones_like,
    pieces: int = 1,
) -> list[float]:
    """int_start^end l_k(u) density(u) du for each polynomial l_k of the Lagrange basis on `nodes`; Gauss-Legendre."""
    edges = np.linspace(start, end, pieces + 1)
    half = np.diff(edges)[:, None] / 2
    u = (edges[:-1, None] + half * (1 + _POINTS)).ravel()
    du = (half * _WEIGHTS).ravel() * density(u)
    basis = [np.prod([(u - b) / (a - b) for b in nodes if b != a], axis=0) for a in nodes]
    return [float(np.sum(du * values)) for values in basis]


def phi_weights(z: float, r: Sequence[float], solver_type: str = "midpoint", exact: bool = False) -> list[float]:
    """Weights of m_i, m_{i-1}, ... in -(e^z - 1) m_i + (corrections by len(r) differences): DPM-Solver++'s.

    With a = (m_i - m_{i-1})/r_0, b = (m_{i-1} - m_{i-2})/r_1, P1 = e^z - 1, P2 = 1 - P1/z and P3 = P2/z + 1/2: -P1 a/2
    ("midpoint") or P2 a ("heun"), and for two differences P2 (a + r_0 (a - b)/(r_0 + r_1)) + P3 (a - b)/(r_0 + r_1),
    as published; `exact` doubles P3. z is -h on D and h on d; r_k = (lambda_{i-k} - lambda_{i-k-1})/h.
    """
    P1 = math.expm1(z)
    if not r:
        return [-P1]
    P2 = 1 - P1 / z
    P3 = (P2 / z + 0.5) * (2 if exact else 1)
    if len(r) == 1:
        of_a, of_b = (-P1 / 2 if solver_type == "midpoint" else P2), 0.0
    else:
        of_a, of_b = P2 + (P2 * r[0] + P3) / (r[0] + r[1]), -(P2 * r[0] + P3) / (r[0] + r[1])
    weights = [-P1 + of_a / r[0], -of_a / r[0]]
    return weights if len(r) == 1 else [weights[0], weights[1] + of_b / r[1], -of_b / r[1]]


def dynamic_threshold(D: Tensor) -> Tensor:
    """clip(D, -s, s)/s, s = max(1, 0.995 quantile of |D|) for each image. Saharia et al. 2022 (Imagen), Sec. 2.3."""
    # torch.quantile takes 16 million numbers at most
    values = D.flatten(1).abs().sort(dim=1).values
    below, weight = divmod(0.995 * (values.shape[1] - 1), 1)
    quantile = torch.lerp(values[:, int(below)], values[:, math.ceil(below + weight)], weight)
    s = quantile.clamp(min=1).reshape(-1, *[1] * (D.ndim - 1))
    return torch.minimum(torch.maximum(D, -s), s) / s
