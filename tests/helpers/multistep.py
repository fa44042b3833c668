"""Multistep methods for tests of the loop."""

import math

from edm_fast.sampling import loop


def dpm_solver_2m(sigmas):
    """DPM-Solver++(2M): the history holds denoised images."""
    steps, h_last = [], None
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        h = math.log(sigma / sigma_next)
        c = -math.expm1(-h)
        weights = (c,) if h_last is None else (c * (1 + 0.5 * h / h_last), -c * 0.5 * h / h_last)
        steps.append(loop.step(loop.data(sigma, weights, a=sigma_next / sigma)))
        h_last = h
    return loop.Solver(sigmas, steps)


def trapezoid_pece(sigmas):
    """Predict with the last slope, evaluate once at the end point, correct: one evaluation a step, second order."""
    steps = []
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        h = sigma_next - sigma
        predict = loop.slope(sigma, t=sigma, h=h) if i == 0 else loop.move(weights=(1.0,), h=h)
        steps.append(loop.step(predict, loop.slope(sigma_next, t=sigma_next, h=h, weights=(0.5, 0.5))))
    return loop.Solver(sigmas, steps)
