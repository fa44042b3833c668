"""What holds for both samplers whatever the options, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_fast.errors import UserError
from edm_fast.sampling import StackedRandomGenerator, ablation_sampler, edm_sampler
from helpers import analytic_denoisers as denoisers
from helpers.tiny_networks import tiny

MEANS = torch.randn([3, 2, 4, 4], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SHAPE = (3, 2, 4, 4)


def gauss(**kwargs):
    return denoisers.Gauss(MEANS, 0.4, **kwargs)


def start(seeds=(1, 2, 3)):
    rnd = StackedRandomGenerator("cpu", seeds)
    return rnd.randn([len(seeds), *SHAPE[1:]]), rnd.randn_like


options = st.fixed_dictionaries(
    {
        "num_steps": st.integers(2, 12),
        "sigma_min": st.floats(1e-3, 0.5),
        "sigma_max": st.floats(1, 200),
        "rho": st.floats(1, 12),
        "S_churn": st.floats(0, 30),
        "S_min": st.floats(0, 1),
        "S_max": st.floats(1, 100) | st.just(math.inf),
        "S_noise": st.floats(0.9, 1.1),
    }
)


@settings(max_examples=40)
@given(options)
def test_the_ablation_sampler_contains_the_edm_sampler(kwargs):
    latents, randn_like = start()
    a = edm_sampler(gauss(), latents, randn_like=randn_like, **kwargs)
    latents, randn_like = start()
    b = ablation_sampler(gauss(), latents, randn_like=randn_like, **kwargs)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(options, st.sampled_from(["euler", "heun"]))
def test_evaluations_and_draws(kwargs, solver):
    net, n = gauss(), kwargs["num_steps"]
    latents, randn_like = start()
    shapes = []

    def counted(x):
        shapes.append((tuple(x.shape), x.dtype))
        return randn_like(x)

    out = ablation_sampler(net, latents, randn_like=counted, solver=solver, **kwargs)
    assert len(net.sigmas) == (n if solver == "euler" else 2 * n - 1)
    assert shapes == [(SHAPE, torch.float64)] * n  # also in steps whose noise is multiplied by 0
    assert out.dtype == torch.float64 and out.isfinite().all()
    assert min(net.sigmas) >= kwargs["sigma_min"] * (1 - 1e-9)
    assert max(net.sigmas) <= kwargs["sigma_max"] * (math.sqrt(2) + 1e-9)


def test_levels_without_churn_run_from_sigma_max_to_sigma_min():
    net = gauss(sigma_min=0.01, sigma_max=30)
    edm_sampler(net, start()[0], num_steps=5)
    firsts = net.sigmas[::2]
    assert firsts[0] == pytest.approx(30) and firsts[-1] == pytest.approx(0.01)
    assert firsts == sorted(firsts, reverse=True)
    assert net.sigmas[1::2] == firsts[1:]  # heun's second evaluation is at the end of the step


def test_churn_is_limited_and_both_ends_of_its_range_count():
    net, (latents, randn_like) = gauss(), start()
    edm_sampler(net, latents, num_steps=3, sigma_min=1, sigma_max=9, rho=1, S_churn=1e9, S_min=5, S_max=9)
    assert net.sigmas[0] == pytest.approx(9 * math.sqrt(2))
    assert net.sigmas[2] == pytest.approx(5 * math.sqrt(2))
    assert net.sigmas[4] == pytest.approx(1)
    del randn_like


def test_the_same_call_gives_the_same_bits():
    outs = []
    for _ in range(2):
        latents, randn_like = start()
        outs.append(edm_sampler(gauss(), latents, randn_like=randn_like, num_steps=6, S_churn=4))
    assert torch.equal(*outs)


@pytest.mark.parametrize("sampler", [edm_sampler, ablation_sampler])
def test_an_image_does_not_depend_on_its_batch(sampler):
    def sample(seeds):
        latents, randn_like = start(seeds)
        return sampler(gauss(), latents, randn_like=randn_like, num_steps=5, S_churn=4)

    together, alone = sample([5, 6, 7]), sample([6])
    assert torch.equal(together[1:2], alone)


def test_channels_last_latents_draw_the_same_noise():
    latents, _ = start()
    outs = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(3)
        z = latents.to(memory_format=memory_format)
        outs.append(edm_sampler(gauss(), z, num_steps=4, S_churn=3))
    torch.testing.assert_close(*outs, rtol=0, atol=0)


def test_labels_reach_the_network():
    latents, _ = start()
    labels = torch.eye(3)[[2, 0, 1]]
    out = edm_sampler(gauss(label_dim=3), latents, labels, num_steps=8, sigma_min=1e-3)
    nearest = [int((x - MEANS).flatten(1).norm(dim=1).argmin()) for x in out]
    assert nearest == [2, 0, 1]


def test_gradients_pass_through():
    latents, _ = start()
    latents.requires_grad_(True)
    edm_sampler(gauss(), latents, num_steps=3).sum().backward()
    assert latents.grad.isfinite().all() and (latents.grad != 0).all()


def test_an_empty_batch_stays_empty():
    out = edm_sampler(gauss(), torch.empty(0, 2, 4, 4), num_steps=3)
    assert out.shape == (0, 2, 4, 4) and out.dtype == torch.float64


BAD = [
    ({"S_churn": -1}, "S_churn"),
    ({"S_churn": math.nan}, "S_churn"),
    ({"S_churn": "3"}, "S_churn"),
    ({"S_noise": math.nan}, "S_noise"),
    ({"S_noise": math.inf}, "S_noise"),
    ({"S_min": 2, "S_max": 1}, "S_min <= S_max"),
    ({"S_min": math.nan}, "S_min"),
    ({"num_steps": 0}, "num_steps"),
    ({"num_steps": -3}, "num_steps"),
    ({"num_steps": True}, "num_steps"),
    ({"num_steps": "18"}, "num_steps"),
    ({"num_steps": None}, "num_steps"),
    ({"num_steps": math.inf}, "num_steps"),
    ({"num_steps": 10**12}, "num_steps"),
    ({"num_steps": 2.5}, "num_steps"),
    ({"num_steps": math.nan}, "num_steps"),
    ({"rho": 0}, "rho"),
    ({"rho": -7}, "rho"),
    ({"rho": math.inf}, "rho"),
    ({"rho": "7"}, "rho"),
    ({"rho": 1e-10}, "rho is 1e-10"),  # powers that overflow,
    ({"rho": 0.1}, "rho is 0.1"),  # lose the lower end,
    ({"rho": 1e300}, r"rho is 1e\+300"),  # or are all 1
    ({"sigma_min": 3, "sigma_max": 2}, "sigma_min < sigma_max"),
    ({"sigma_min": 2, "sigma_max": 2}, "sigma_min < sigma_max"),
    ({"sigma_min": 0}, "sigma_min"),
    ({"sigma_min": math.nan}, "sigma_min"),
    ({"sigma_max": math.inf}, "finite"),
    ({"sigma_max": 1e200}, "finite"),  # its square is not
    ({"sigma_min": "0.1"}, "sigma_min"),
]


@pytest.mark.parametrize("sampler", [edm_sampler, ablation_sampler])
@pytest.mark.parametrize(("kwargs", "word"), BAD)
def test_bad_arguments(sampler, kwargs, word):
    with pytest.raises(UserError, match=word) as caught:
        sampler(gauss(), start()[0], **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sampler", [edm_sampler, ablation_sampler])
def test_one_step_is_eulers_from_sigma_max_to_0(sampler):
    net, (latents, _) = gauss(), start()
    out = sampler(net, latents, num_steps=1, sigma_max=20)
    assert net.sigmas == [pytest.approx(20)]
    x = latents.double() * 20
    torch.testing.assert_close(out, x + (0 - 20) * (x - net(x, torch.tensor(20.0, dtype=torch.float64))) / 20)
    assert torch.equal(sampler(net, latents, num_steps=18.0), sampler(net, latents))  # as published


@pytest.mark.parametrize("discretization", ["vp", "ve", "iddpm", "edm"])
@pytest.mark.parametrize("schedule", ["vp", "ve", "linear"])
def test_one_step_of_the_ablations(discretization, schedule):
    for scaling in ("vp", "none"):
        for solver in ("euler", "heun"):
            net = gauss()
            kwargs = {"solver": solver, "scaling": scaling, "sigma_max": 50, "sigma_min": 0.01}
            out = ablation_sampler(
                net, start()[0], num_steps=1, discretization=discretization, schedule=schedule, **kwargs
            )
            assert len(net.sigmas) == 1 and 45 < net.sigmas[0] <= 50.001 and out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noise_of_another_type_is_cast(dtype):
    """As published: there the sum of both types is float64."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)
    for sampler in (edm_sampler, ablation_sampler):
        got, want = (
            sampler(gauss(), start()[0], randn_like=lambda x, eps=eps: eps, num_steps=4, S_churn=4)
            for eps in (noise, noise.double())
        )
        assert got.dtype == torch.float64 and torch.equal(got, want)


BAD_NOISE = {
    "one image's": lambda x: torch.randn(x.shape[1:]),
    "another batch's": lambda x: torch.randn(1, *x.shape[1:]),
    "integers": lambda x: torch.ones(x.shape, dtype=torch.int64),
    "elsewhere": lambda x: torch.empty(x.shape, device="meta"),
    "an array": lambda x: x.numpy(),
    "none": lambda x: None,
}


@pytest.mark.parametrize("name", BAD_NOISE)
def test_noise_that_does_not_fit(name):
    for churn in (0, 4):
        with pytest.raises(UserError, match="randn_like returned") as caught:
            edm_sampler(gauss(), start()[0], randn_like=BAD_NOISE[name], num_steps=3, S_churn=churn)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_any_floating_type_and_layout(dtype):
    latents = start()[0].to(dtype)
    want = edm_sampler(gauss(), latents.double(), num_steps=3)
    for z in (latents, latents.mT.contiguous().mT, latents.to(memory_format=torch.channels_last)):
        assert torch.equal(edm_sampler(gauss(), z, num_steps=3), want)


@pytest.mark.parametrize("latents", [torch.ones(SHAPE, dtype=torch.int64), torch.ones(SHAPE).numpy(), 3])
def test_latents_that_are_no_normal_deviates(latents):
    for sampler in (edm_sampler, ablation_sampler):
        with pytest.raises(UserError, match="latents is"):
            sampler(gauss(), latents)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda x, sigma, labels: x, "type function, without sigma_min, sigma_max, round_sigma;"),
        (torch.nn.Identity(), "type Identity, without sigma_min"),
        (torch.nn.DataParallel(tiny()), "expected its .module"),
        ({"ema": None}, "type dict"),
        ("model.pkl", "type str"),
        (None, "type NoneType"),
    ],
)
def test_what_is_no_denoiser(net, words):
    for sampler in (edm_sampler, ablation_sampler):
        with pytest.raises(UserError) as caught:
            sampler(net, start()[0])
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_denoiser_that_returns_something_else():
    for wrong in (lambda x, sigma, labels: x[:1], lambda x, sigma, labels: (x, x)):
        net = gauss()
        net.denoise = wrong
        with pytest.raises(UserError, match="net returned"):
            edm_sampler(net, start()[0], num_steps=2)


def test_a_range_outside_the_networks_own():
    with pytest.raises(UserError, match="network's own range"):
        edm_sampler(gauss(sigma_min=0.1, sigma_max=1), start()[0], sigma_min=2)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"solver": "rk4"},
        {"discretization": "x"},
        {"schedule": "x"},
        {"scaling": "x"},
        {"alpha": 0},
        {"epsilon_s": 1},
        {"alpha": math.nan},
        {"alpha": 40.0},
        {"discretization": "iddpm", "sigma_min": 80.1, "sigma_max": 80.2},
    ],
)
def test_bad_ablation_arguments(kwargs):
    with pytest.raises(UserError):
        ablation_sampler(gauss(), start()[0], **kwargs)
