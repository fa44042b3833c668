"""The loop: what a structure is, how noise, history and guidance enter a step, and what it refuses."""

import math

import pytest
import torch

from edm_fast.errors import UserError
from edm_fast.sampling import Guidance, Solver, ablation_sampler, edm_sampler, loop, run, sample
from helpers.convergence import gauss, latents

X = torch.tensor([[[[1.0]]], [[[-2.0]]]], dtype=torch.float64)


class Identity:
    """D = x, so that slopes are 0 and only the coefficients move x."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, sigma, labels):
        self.calls.append((x.clone(), float(sigma)))
        return x


def counted(values):
    """randn_like that returns these numbers one after the other."""
    left = iter(values)
    return lambda x: torch.full_like(x, next(left))


def test_few_structures_and_many_rows():
    """Whatever the number of steps: numbers are in the rows alone."""
    for make, kwargs, count in (
        (edm_sampler, {}, 2),  # Heun, and Euler into 0
        (edm_sampler, {"S_churn": 8, "S_min": 0.05, "S_max": 20}, 3),
        (ablation_sampler, {"schedule": "vp", "scaling": "vp", "alpha": 0.6, "S_churn": 4}, 2),
        (sample, {"solver": "dpmpp", "order": 3}, 6),  # warm-up and end
        (sample, {"solver": "unipc", "order": 3}, 6),
        (sample, {"solver": "adams", "order": 4}, 5),
    ):
        for steps in (12, 40):
            solver = make.solver(gauss(), None, num_steps=steps, **kwargs)
            structures = solver.structures()
            assert len(set(structures)) == count, kwargs
            assert len({step.row for step in solver.steps}) == steps
    assert {*map(type, solver.steps[0].row)} == {float}


def test_two_draws_in_a_step_and_noise_before_it():
    """dpmpp_sde has an inner draw and an outer one; churn raises the base of what follows."""
    two = loop.step(loop.data(1.0, [0.0], c=2.0), loop.data(0.5, [0.0], c=3.0, draw=1))
    out = run(Identity(), X, Solver([1.0, 0.5], [two], start=1.0), randn_like=counted([10, 100]))
    assert torch.equal(out, X + 300)  # from the start of the step, so that the inner noise is not in it
    net = Identity()
    churned = loop.step(loop.move(c=2.0, rebase=True), loop.data(1.0, [0.0]), loop.data(0.5, [0.0]))
    out = run(net, X, Solver([1.0, 0.5], [churned], start=1.0), randn_like=counted([10]))
    assert torch.equal(out, X + 20) and torch.equal(net.calls[0][0], X + 20)


def test_the_same_draw_in_predictor_and_corrector():
    step = loop.step(loop.data(1.0, [0.0], c=1.0), loop.data(0.5, [0.0, 0.0], c=1.0))
    assert step.draws == 1
    net = Identity()
    out = run(net, X, Solver([1.0, 0.5], [step], start=1.0), randn_like=counted([7]))
    assert torch.equal(out, X + 7) and torch.equal(net.calls[1][0], X + 7)


def test_noise_is_drawn_as_often_as_the_step_says():
    calls = []
    steps = [loop.step(loop.data(1.0), draws=n) for n in (0, 2, 1)]
    run(Identity(), X, Solver([1.0] * 4, steps), randn_like=lambda x: calls.append(x) or torch.zeros_like(x))
    assert len(calls) == 3


def test_a_restart_goes_up_again():
    up = loop.step(loop.move(c=3.0))
    down = loop.step(loop.slope(1.0, t=1.0, h=-0.5))
    net = Identity()
    out = run(net, X, Solver([1.0, 0.5, 1.0, 0.5], [down, up, down], start=1.0), randn_like=counted([1]))
    assert torch.equal(out, X + 3) and [sigma for _, sigma in net.calls] == [1, 1]


def test_guidance_is_decided_by_the_level_a_step_starts_from():
    guidance, net = Guidance(2, lambda x, sigma, labels: torch.zeros_like(x), (1, math.inf)), gauss()
    solver = sample.solver(net, None, levels=[8.0, 2.0, 0.5, 0.0])
    structures = solver.structures(guidance)
    assert [s.guidance is guidance for s in structures] == [True, True, False]
    guided, found = [], sample(gauss(), latents(), levels=[8.0, 2.0, 0.5, 0.0], guidance=guidance)

    class Guided(type(net)):
        def denoise(self, x, sigma, labels):
            guided.append(float(sigma))
            return super().denoise(x, sigma, labels) * (2 if len(guided) <= 4 else 1)  # both evaluations of two steps

    want = sample(Guided(net.means, net.sd), latents(), levels=[8.0, 2.0, 0.5, 0.0])
    assert torch.equal(found, want) and not torch.equal(found, sample(net, latents(), levels=[8.0, 2.0, 0.5, 0.0]))


def test_a_limit_of_D_is_used_and_kept():
    step = loop.step(loop.data(1.0, a=0.0))
    last = loop.step(loop.move([1.0], a=0.0))
    out = run(Identity(), X, Solver([1.0, 0.5, 0.2], [step, last], limit=lambda D: D + 5))
    assert torch.equal(out, X + 5)


@pytest.mark.parametrize(
    ("levels", "steps", "words"),
    [
        ([1.0], [loop.step(loop.data(1.0))], "expected one level more than steps"),
        ([1.0, 0.5], [loop.step(loop.data(1.0, [0.5, 0.5]))], "sum 1 more entries"),
        ([1.0, 0.5], [loop.step(loop.move([1.0]))], "sum 1 more entries"),
        ([1.0, 0.5], [loop.step(loop.data(0.0))], "noise level 0.0; expected a positive"),
        ([1.0, 0.5], [loop.step(loop.data(float("nan")))], "noise level nan"),
        ([1.0, 0.5], [loop.step(loop.data(1.0, [float("inf")]))], "no finite number"),
    ],
)
def test_what_no_run_could_do(levels, steps, words):
    with pytest.raises(UserError, match=words):
        Solver(levels, steps)


def test_a_coefficient_that_there_is_not():
    with pytest.raises(TypeError, match="expected some of sigma"):
        loop.data(1.0, b=2.0)


def test_the_signature_is_the_published_one():
    import inspect

    for sampler in (edm_sampler, ablation_sampler, sample):
        parameters = inspect.signature(sampler).parameters
        assert [*parameters][:4] == ["net", "latents", "class_labels", "randn_like"]
        assert inspect.signature(sampler).return_annotation == "Tensor"
        assert parameters.keys() == inspect.signature(sampler.solver).parameters.keys()
