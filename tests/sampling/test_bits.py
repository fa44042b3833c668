"""The ablation sampler's bits under the VP schedule, where a network's own limits cut the range.

The expected values come from the published operations, written out.

Two nearly equal levels are subtracted and the root of their rounding enters as noise, so that a last digit of sigma(t)
is 1e-7 of an image.
"""

import math

import pytest
import torch

from edm_fast.sampling import StackedRandomGenerator, ablation_sampler

EPSILON, RHO, ALPHA, CHURN = 1e-3, 7, 0.9, 4


class Net:
    """D = x / (1 + sigma^2) in float32, as networks compute it; `levels` lists the sigma of each call."""

    label_dim = 0

    def __init__(self, sigma_min, sigma_max):
        self.sigma_min, self.sigma_max, self.levels = sigma_min, sigma_max, []

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def __call__(self, x, sigma, labels):
        self.levels.append(sigma.item())
        return x.to(torch.float32) / (1 + sigma.to(torch.float32) ** 2)


def published(net, latents, randn_like, steps, discretization, scaling, sigma_min, sigma_max):
    """Karras et al. 2022, Alg. 2 and 3 with Heun's family and the VP schedule, one 0-dim float64 tensor at a time."""
    lo, hi = max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max)
    beta_d = 2 * (math.log(lo**2 + 1) / EPSILON - math.log(hi**2 + 1)) / (EPSILON - 1)
    beta_min = math.log(hi**2 + 1) - 0.5 * beta_d

    def sigma(t):
        return (math.e ** (0.5 * beta_d * t**2 + beta_min * t) - 1) ** 0.5

    def sigma_deriv(t):
        return 0.5 * (beta_min + beta_d * t) * (sigma(t) + 1 / sigma(t))

    def sigma_inv(s):
        return ((beta_min**2 + 2 * beta_d * (s**2 + 1).log()).sqrt() - beta_min) / beta_d

    def s(t):
        return 1 / (1 + sigma(t) ** 2).sqrt() if scaling == "vp" else 1

    def s_deriv(t):
        return -sigma(t) * sigma_deriv(t) * s(t) ** 3 if scaling == "vp" else 0

    def slope(x, t):
        denoised = net(x / s(t), sigma(t), None).to(torch.float64)
        return (sigma_deriv(t) / sigma(t) + s_deriv(t) / s(t)) * x - sigma_deriv(t) * s(t) / sigma(t) * denoised

    i = torch.arange(steps, dtype=torch.float64)
    if discretization == "vp":
        levels = sigma(1 + i / (steps - 1) * (EPSILON - 1))
    else:
        levels = (hi ** (1 / RHO) + i / (steps - 1) * (lo ** (1 / RHO) - hi ** (1 / RHO))) ** RHO
    t = torch.cat([sigma_inv(net.round_sigma(levels)), torch.zeros(1, dtype=torch.float64)])
    x = latents.to(torch.float64) * (sigma(t[0]) * s(t[0]))
    gamma = min(CHURN / steps, math.sqrt(2) - 1)
    for i, (now, following) in enumerate(zip(t[:-1], t[1:], strict=True)):
        hat = sigma_inv(net.round_sigma(sigma(now) + gamma * sigma(now)))
        noise = (sigma(hat) ** 2 - sigma(now) ** 2).clip(min=0).sqrt() * s(hat)
        x_hat = s(hat) / s(now) * x + noise * randn_like(x)
        h = following - hat
        d = slope(x_hat, hat)
        if i == steps - 1:
            return x_hat + h * d
        d_prime = slope(x_hat + ALPHA * h * d, hat + ALPHA * h)
        x = x_hat + h * ((1 - 1 / (2 * ALPHA)) * d + 1 / (2 * ALPHA) * d_prime)
    raise AssertionError("no step")


@pytest.mark.parametrize("steps", [7, 18])  # torch computes vectors of 8 and more otherwise than numbers
@pytest.mark.parametrize("scaling", ["vp", "none"])
@pytest.mark.parametrize("discretization", ["vp", "edm"])
@pytest.mark.parametrize("limits", [(0.006422337144613266, 80.0), (0.0009765625, 152.16697692871094), (0.02, 50.0)])
def test_published_bits_where_the_network_cuts_the_range(limits, discretization, scaling, steps):
    results = []
    for sampler in ("published", "ours"):
        rnd, net = StackedRandomGenerator("cpu", [3, 4]), Net(*limits)
        latents = rnd.randn([2, 3, 8, 8])
        if sampler == "published":
            out = published(net, latents, rnd.randn_like, steps, discretization, scaling, 0.001, 1000)
        else:
            own = {"solver": "heun", "discretization": discretization, "schedule": "vp", "scaling": scaling}
            own |= {"num_steps": steps, "sigma_min": 0.001, "sigma_max": 1000, "rho": RHO, "alpha": ALPHA}
            out = ablation_sampler(net, latents, None, rnd.randn_like, S_churn=CHURN, **own)
        results.append((net.levels, out))
    (levels, out), (own_levels, own_out) = results
    assert levels == own_levels
    assert torch.equal(out, own_out)
