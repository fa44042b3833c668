"""Multistep methods as lists of steps of the sampling loop."""

import math

from edm_fast.sampling import _loop


def dpm_solver_2m(sigmas):
    """DPM-Solver++(2M) as steps of the loop: the history holds denoised images."""
    steps, h_last = [], None
    for here, there in zip(sigmas[:-1], sigmas[1:], strict=True):
        h = math.log(here / there)
        r = math.inf if h_last is None else h_last / h
        c = -math.expm1(-h)
        weights = (c,) if h_last is None else (c * (1 + 0.5 / r), -c * 0.5 / r)
        stage = _loop.Stage(_loop.Slope(here), weights=weights, a=there / here, keep="denoised")
        steps.append(_loop.Step((stage,)))
        h_last = h
    return steps


def trapezoid_pece(sigmas):
    """Predict with the last slope, evaluate once at the end point, correct: one evaluation a step, second order."""
    steps = []
    for i, (here, there) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        first = _loop.Slope(here, t=here) if i == 0 else None
        predict = _loop.Stage(first, h=there - here)
        correct = _loop.Stage(_loop.Slope(there, t=there), h=there - here, weights=(0.5, 0.5))
        steps.append(_loop.Step((predict, correct)))
    return steps
