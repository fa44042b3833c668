"""Orders of convergence from sigma 80 to 0.002 on denoisers whose ODE has a solution in closed form."""

import math

import torch

from edm_fast.sampling import sample
from helpers import analytic_denoisers as denoisers

HI, LO = 80.0, 0.002
_COLUMN = (-1, 1, 1, 1)


def gauss():
    return denoisers.Gauss(torch.full([1, 1, 1, 1], 0.3, dtype=torch.float64), 0.5)


def mixture():
    means, sds, weights = (
        torch.tensor(v, dtype=torch.float64) for v in ([-1, -0.2, 0.7], [0.1, 0.05, 0.15], [3, 4, 3])
    )
    return denoisers.Mixture(means.reshape(_COLUMN), sds, weights / 10)


def latents():
    """(9, 1, 1, 1): the normal quantiles 0.1, ..., 0.9."""
    return math.sqrt(2) * torch.erfinv(torch.linspace(-0.8, 0.8, 9, dtype=torch.float64)).reshape(_COLUMN)


def exact(net, z):
    """Where the ODE takes HI z at LO. In one dimension it keeps every quantile of the data with noise."""
    if isinstance(net, denoisers.Gauss):
        return net.means[0] + (HI * z - net.means[0]) * math.sqrt((net.sd**2 + LO**2) / (net.sd**2 + HI**2))
    means, sds, weights = (t.reshape(1, -1) for t in (net.means, net.sds, net.weights))

    def quantile(x, sigma):
        return (weights * 0.5 * torch.erfc((means - x) / (2 * (sds**2 + sigma**2)).sqrt())).sum(1, keepdim=True)

    wanted = quantile(HI * z.reshape(-1, 1), HI)
    low, high = torch.full_like(wanted, -3), torch.full_like(wanted, 3)
    for _ in range(60):
        middle = (low + high) / 2
        below = quantile(middle, LO) < wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle.reshape(_COLUMN)


def error(net, steps, **settings):
    """Root mean square of the distance to the exact end point."""
    z = latents()
    found = sample(net, z, num_steps=steps, sigma_min=LO, sigma_max=HI, ends="sigma_min", **settings)
    return (found - exact(net, z)).square().mean().sqrt().item()


def order_of(solver, net=None, steps=256, **settings):
    """The exponent p of error ~ N^-p between `steps` and twice as many."""
    net = gauss() if net is None else net
    return math.log2(error(net, steps, solver=solver, **settings) / error(net, 2 * steps, solver=solver, **settings))
