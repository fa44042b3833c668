"""The exact mean and variance of a stochastic solver's result on Gaussian data, without random numbers."""

import math

import torch

from edm_fast.sampling import run, sample
from helpers.analytic_denoisers import Gauss
from helpers.convergence import HI, LO, gauss

SD = 0.5


def variance(steps, **settings):
    """Of the result at lo, from the exact variance at hi; it should be sd^2 + lo^2.

    The steps of a solver are linear on N(0, sd^2), so a state is a linear combination of x_0 and all draws; its
    coefficients go through the steps in place of an image, and the variance is the sum of their squares.
    """
    net = Gauss(torch.zeros(1, 1, 1, 1, dtype=torch.float64), SD)
    solver = sample.solver(net, None, num_steps=steps, sigma_min=LO, sigma_max=HI, ends="sigma_min", **settings)
    units = iter(torch.eye(1 + sum(step.draws for step in solver.steps), dtype=torch.float64)[:, None, :, None, None])
    start = next(units) * math.sqrt(1 + (SD / HI) ** 2)
    out = run(net, start, solver, randn_like=lambda x: next(units))
    assert next(units, None) is None
    return out.square().sum().item()


def variance_order(steps=128, **settings):
    """The exponent p of |variance - exact| ~ N^-p between `steps` and twice as many."""
    errors = [abs(variance(n, **settings) - (SD**2 + LO**2)) for n in (steps, 2 * steps)]
    return math.log2(errors[0] / errors[1])


def mean_and_variance(count, steps, **settings):
    """Of `count` results on the Gaussian of `convergence.gauss`, which has mean 0.3 and sd 1/2."""
    generator = torch.Generator().manual_seed(5)

    def randn_like(x):
        return torch.randn(x.shape, dtype=torch.float64, generator=generator)

    z = randn_like(torch.empty(1, 1, 1, count))
    out = sample(gauss(), z, None, randn_like, num_steps=steps, ends="sigma_min", **settings)
    return out.mean().item(), out.var().item()
