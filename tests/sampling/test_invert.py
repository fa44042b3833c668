"""The ODE run upwards: latents of images, with each solver's order; and the likelihood along the way."""

import itertools
import math

import pytest
import torch

import edm_fast
from edm_fast.errors import UserError
from edm_fast.sampling import Guidance, invert, log_likelihood, sample
from edm_fast.sampling.solvers import registry
from helpers.analytic_denoisers import Gauss, Mixture
from helpers.convergence import gauss, latents
from helpers.tiny_networks import tiny

LO, HI = 0.02, 20.0
LIMITS = {"sigma_min": LO, "sigma_max": HI}
STOCHASTIC = sorted({"dpmpp_sde", "er_sde", "restart", "sa_solver", *(n for n in registry() if "ancestral" in n)})
ORDERS = [
    *(
        ("euler", {}, 1),
        ("listed", {}, 1),
        ("heun", {}, 2),
        ("dpm2", {"r": 0.7}, 2),
        ("midpoint", {}, 2),
        ("ipndm", {}, 2),
    ),
    *(("adams", {}, 2), ("ipndm_v", {"order": 2}, 2), ("deis_tab", {"order": 3}, 2), ("sdm", {}, 1)),
    *(("dpmpp", {}, 2), ("exp_ab_x", {}, 2), ("exp_ab_eps", {"order": 2}, 2)),
    *(("gradient_estimation", {"gamma": 1.5}, 2), ("unipc", {"lower_order_final": False}, 2)),
    ("dpmpp_2m_sde", {"eta": 0}, 2),
    ("dpmpp_3m_sde", {"eta": 0}, 2),
]


def test_every_solver_is_told_apart():
    assert {name for name, *_ in ORDERS} == registry().keys() - {*STOCHASTIC}
    for name in ORDERS:
        assert name[0] in " ".join(invert.__doc__.split())


@pytest.mark.parametrize(("solver", "options", "expected"), ORDERS)
def test_order_upwards(solver, options, expected):
    net, z = gauss(), latents()
    images = net.means[0] + z * net.sd
    want = (net.means[0] + (images - net.means[0]) * math.sqrt((net.sd**2 + HI**2) / (net.sd**2 + LO**2))) / HI

    def error(steps):
        found = invert(net, images, solver=solver, num_steps=steps, **LIMITS, **options)
        return (found - want).square().mean().sqrt().item()

    found = math.log2(error(64) / error(128))
    assert found == pytest.approx(1, abs=0.2) if expected == 1 else found > expected - 0.3


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_solvers_that_draw_noise_are_refused(solver):
    with pytest.raises(UserError, match=f"solver {solver} draws noise; expected one that follows the ODE"):
        invert(gauss(), latents(), solver=solver)


def test_there_and_back_through_a_guided_network():
    """Both ways the same steps are guided."""
    net, guidance, labels = tiny(label_dim=4), Guidance(1.5, None, (0.1, 5)), torch.eye(4)[:2]
    images = torch.randn([2, 3, 8, 8], generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 2

    def error(steps):
        settings = {"num_steps": steps, "guidance": guidance, **LIMITS}
        z = invert(net, images, labels, **settings)
        return (sample(net, z, labels, ends="sigma_min", **settings) - images).abs().max().item()

    with torch.no_grad():
        coarse, fine = error(8), error(16)
    assert fine < 0.02 and math.log2(coarse / fine) > 1.8


def test_a_list_of_levels_and_a_callback():
    found = []
    levels = [HI, 5.0, 1.0, LO]
    invert(gauss(), latents(), solver="dpmpp", levels=levels, callback=lambda *args: found.append(args[:2]))
    assert found == [(0, 1.0), (1, 5.0), (2, HI)]
    assert torch.equal(invert(gauss(), latents(), nfe=6), invert(gauss(), latents(), num_steps=3))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "x.json"}, "solver is x.json; expected a name"),
        ({"solver": sample.solver(gauss(), None)}, "solver is Solver.*; expected a name"),
        ({"solver": "huen"}, "near names: heun"),
        ({"levels": [9.0, 1.0, 0.0]}, "levels end at 0"),
        ({"levels": [1.0, 9.0]}, "sigma_min < sigma_max"),
        ({"solver": "dpmpp", "dynamic_thresholding": True}, "dynamic_thresholding and afs"),
        ({"solver": "ipndm", "afs": True}, "dynamic_thresholding and afs"),
        ({"images": torch.zeros(2, 1, 1, 1, dtype=torch.uint8)}, "images is .*expected floating-point"),
        ({"nfe": 7}, "expected 6 or 8"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        invert(gauss(), **{"images": latents(), **settings})
    assert "\n" not in str(caught.value)


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1, 1, 1)


def planar():
    """A mixture in two dimensions, whose Jacobian is not diagonal."""
    means = torch.tensor([[-0.6, 0.2], [0.5, -0.4], [0.1, 0.7]], dtype=torch.float64).reshape(3, 2, 1, 1)
    sds, weights = (torch.tensor(v, dtype=torch.float64) for v in ([0.2, 0.3, 0.15], [0.5, 0.3, 0.2]))
    return Mixture(means, sds, weights)


def log_density(net, x, sigma):
    variance = sigma**2 + net.sds**2
    squares = (x[:, None] - net.means).flatten(2).square().sum(2)
    n = x[0].numel()
    return (net.weights.log() - n / 2 * (2 * math.pi * variance).log() - squares / (2 * variance)).logsumexp(1)


POINTS = torch.tensor([[-0.5, 0.3], [0.2, 0.1], [0.4, -0.6]], dtype=torch.float64).reshape(3, 2, 1, 1)
FAR = {"sigma_min": LO, "sigma_max": 500.0, "num_steps": 64, "solver": "exp_ab_x", "levels": "logsnr"}


def test_likelihood_of_a_mixture():
    net = planar()
    found = log_likelihood(net, POINTS, probes=None, **FAR)
    want = log_density(net, POINTS, LO)
    torch.testing.assert_close(found.nats, want, rtol=0, atol=3e-3)
    torch.testing.assert_close(found.bits_per_dim, math.log2(127.5) - want / (2 * math.log(2)), rtol=0, atol=3e-3)
    assert torch.equal(found.latents, invert(net, POINTS, **FAR))
    few = log_likelihood(net, POINTS, probes=None, sigma_min=LO, sigma_max=500.0)
    assert 4e-3 < (few.nats - want).abs().max() < 0.1
    assert torch.equal(few.latents, invert(net, POINTS, num_steps=64, sigma_min=LO, sigma_max=500.0))


def test_likelihood_of_a_gaussian_by_class():
    net = Gauss(column(0.3, -0.5), 0.5)
    labels, x = torch.eye(2), column(0.1, 0.2)
    found = log_likelihood(net, x, labels, probes=None, **FAR)
    variance, off = 0.25 + LO**2, (x - net.means).flatten()
    want = -off.square() / (2 * variance) - math.log(2 * math.pi * variance) / 2
    torch.testing.assert_close(found.nats, want, rtol=0, atol=3e-3)


def test_hutchinson_s_estimate_is_unbiased():
    """All signs in turn: their mean is the exact trace."""
    signs = torch.tensor([*itertools.product((-1.0, 1.0), repeat=2)], dtype=torch.float64).reshape(4, 2, 1, 1)
    settings = {**FAR, "num_steps": 20}
    for point in POINTS[:2]:
        x = point.expand(4, -1, -1, -1)
        estimates = log_likelihood(planar(), x, None, lambda _: signs, **settings).nats
        exact = log_likelihood(planar(), point[None], probes=None, **settings).nats
        assert estimates.std() > 0.05
        torch.testing.assert_close(estimates.mean(), exact[0], rtol=1e-12, atol=1e-12)
        four = signs.flip(0).tolist()
        one = log_likelihood(
            planar(), point[None], None, lambda x, v=four: x.new_tensor([v.pop()]), probes=4, **settings
        )
        torch.testing.assert_close(one.nats, exact, rtol=1e-12, atol=1e-12)


def test_likelihood_through_a_network():
    net = tiny(label_dim=4)
    x = torch.randn([2, 3, 8, 8], generator=torch.Generator().manual_seed(1)) / 4
    found = edm_fast.log_likelihood(net, x, torch.eye(4)[:2], num_steps=3)
    alone = log_likelihood(net, x[1:], torch.eye(4)[1:2], lambda x: torch.ones_like(x), num_steps=3)
    assert found.nats.shape == found.bits_per_dim.shape == (2,) and found.nats.isfinite().all()
    torch.testing.assert_close(alone.latents, found.latents[1:], rtol=1e-4, atol=1e-4)
    assert edm_fast.invert is invert


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"probes": 0}, "probes is 0"),
        ({"guidance": Guidance(2)}, "guidance does not go with log_likelihood"),
        ({"solver": "restart"}, "draws noise"),
        ({"images": [1.0]}, "images is"),
        ({"net": None}, "net is of type NoneType"),
    ],
)
def test_what_has_no_likelihood(settings, words):
    with pytest.raises(UserError, match=words):
        log_likelihood(**{"net": planar(), "images": POINTS, **settings})
