"""Guidance: where it costs an evaluation, its closed form, its interval, and what is refused."""

import math

import pytest
import torch

import edm_fast
from edm_fast import Guidance, accelerate, native
from edm_fast.errors import UserError
from edm_fast.plan import _gpu_program
from edm_fast.sampling import sample
from helpers import taped_graph
from helpers.analytic_denoisers import Gauss
from helpers.convergence import latents
from helpers.planned_networks import network, planned
from helpers.tiny_networks import tiny

STEPS = {"num_steps": 6}
SOLVERS = ("euler", "heun", "dpm2", "ipndm", "dpmpp", "unipc")


def counted(net, found):
    """`net`, which notes how many images and which labels each evaluation has."""
    net.register_forward_hook(lambda net, args, out: found.append((len(args[0]), args[2])))
    return net


def draws(n=3, classes=4):
    generator = torch.Generator().manual_seed(3)
    return torch.randn([n, 3, 8, 8], generator=generator), torch.eye(classes)[torch.arange(n) % classes]


@pytest.mark.parametrize("solver", SOLVERS)
def test_weight_1_has_the_bits_of_the_network_and_its_evaluations(solver):
    found, second = [], []
    net, other = counted(tiny(label_dim=4), found), counted(tiny(label_dim=4), second)
    z, labels = draws()
    want = sample(net, z, labels, solver=solver, **STEPS)
    evaluations = len(found)
    for guidance in (Guidance(1), Guidance(1.0, other), Guidance(3, other, (100, 200)), Guidance(3, None, (90, 95))):
        found.clear()
        assert torch.equal(sample(net, z, labels, solver=solver, guidance=guidance, **STEPS), want)
        assert len(found) == evaluations and not second and {n for n, _ in found} == {3}


def test_weight_1_is_no_guidance_of_an_unconditional_network_either():
    z, _ = draws()
    assert torch.equal(sample(tiny(), z, guidance=Guidance(1), **STEPS), sample(tiny(), z, **STEPS))


def test_classifier_free_guidance_is_one_batch_of_two():
    found = []
    net = counted(tiny(label_dim=4), found)
    z, labels = draws()
    guided = sample(net, z, labels, guidance=Guidance(2.5), **STEPS)
    assert [n for n, _ in found] == [6] * 11
    assert torch.equal(found[0][1], torch.cat([labels, torch.zeros(3, 4)]))
    net = tiny(label_dim=4)
    separate = sample(net, z, labels, guidance=Guidance(2.5, lambda x, sigma, labels: net(x, sigma, None)), **STEPS)
    torch.testing.assert_close(guided, separate, rtol=1e-4, atol=1e-4)
    one_row = sample(net, z, labels[:1], guidance=Guidance(2.5), **STEPS)
    for row in (labels[:1].expand(3, -1), labels[0]):
        assert torch.equal(sample(net, z, row, guidance=Guidance(2.5), **STEPS), one_row)
    assert not torch.equal(guided, sample(net, z, labels, **STEPS))


def test_an_unconditional_second_network_gets_no_labels_and_a_conditional_one_the_same():
    found = []
    net, z, labels = tiny(label_dim=4), *draws()
    sample(net, z, labels, guidance=Guidance(2, counted(tiny(), found)), **STEPS)
    assert [labels for _, labels in found] == [None] * 11
    found.clear()
    sample(net, z, labels, guidance=Guidance(2, counted(tiny(label_dim=4), found)), **STEPS)
    assert len(found) == 11 and all(torch.equal(given, labels) for _, given in found)


@pytest.mark.parametrize("w", [2.0, 0.5, -0.5])
def test_autoguidance_of_two_gaussians_in_the_plane(w):
    """y' = y sum_k a_k sigma / (sigma^2 + sd_k^2), y = x - m, with weights a = w and 1 - w: a product of powers."""
    m = torch.tensor([0.3, -0.7], dtype=torch.float64).reshape(1, 2, 1, 1)
    sds = [torch.tensor(sd, dtype=torch.float64).reshape(1, 2, 1, 1) for sd in ([0.5, 0.2], [0.8, 0.6])]
    main, worse = (Gauss(m, sd) for sd in sds)
    z = torch.randn([5, 2, 1, 1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hi, lo = 80.0, 0.002

    def growth(sd):
        return (lo**2 + sd**2) / (hi**2 + sd**2)

    want = m + (hi * z - m) * growth(sds[0]) ** (w / 2) * growth(sds[1]) ** ((1 - w) / 2)
    settings = {"guidance": Guidance(w, worse), "ends": "sigma_min", "sigma_min": lo, "sigma_max": hi}
    errors = [(sample(main, z, num_steps=n, **settings) - want).abs().max().item() for n in (128, 256)]
    assert errors[1] < 1e-3 and math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_interval_is_open_below_closed_above_and_decided_by_the_start_of_a_step(solver):
    def evaluated(lo, hi):
        main, second = (Gauss(torch.zeros(1, 1, 1, 1, dtype=torch.float64), sd) for sd in (0.5, 0.9))
        guidance = Guidance(2, second, (lo, hi))
        sample(main, latents(), solver=solver, guidance=guidance, **STEPS)
        assert len(second.sigmas) == steps.guided_evaluations(guidance)
        return second.sigmas

    net = Gauss(torch.zeros(1, 1, 1, 1, dtype=torch.float64), 0.5)
    steps = sample.solver(net, None, solver=solver, **STEPS)
    of_step = [sum(stage.evaluates for stage in step.stages) for step in steps.steps]
    levels = steps.levels
    for lo, hi in ((4, 1), (5, 0), (2, 1), (3, 2)):
        assert len(evaluated(levels[lo], levels[hi])) == sum(of_step[hi:lo])
        # levels computed otherwise may differ in the last digits
        assert len(evaluated(levels[lo] * (1 + 1e-12), levels[hi] * (1 - 1e-12))) == sum(of_step[hi:lo])
    assert len(evaluated(levels[4] * 0.99, levels[1] * 0.99)) == sum(of_step[2:5])
    assert len(evaluated(0, math.inf)) == steps.evaluations
    assert evaluated(levels[0], math.inf) == []


@pytest.mark.parametrize("kind", ["classifier-free", "unconditional", "autoguidance"])
@pytest.mark.parametrize("solver", ["heun", "unipc"])
def test_an_image_does_not_depend_on_its_batch(kind, solver):
    net, second = tiny(label_dim=4), {"classifier-free": None, "unconditional": tiny()}.get(kind, tiny(label_dim=4))
    guidance, (z, labels) = Guidance(2, second, (0.1, 20)), draws(16)
    together = sample(net, z, labels, solver=solver, guidance=guidance, **STEPS)
    for i in (0, 7, 15):
        alone = sample(net, z[i : i + 1], labels[i : i + 1], solver=solver, guidance=guidance, **STEPS)
        assert (together[i] - alone[0]).abs().max() <= 2e-5 * together.abs().max()


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
def test_accelerated_networks():
    net, second, (z, labels) = tiny(label_dim=4), tiny(label_dim=4), draws()
    fast, fast_second = accelerate(net), accelerate(second)
    with torch.no_grad():
        for plain, quick in ((Guidance(2), Guidance(2)), (Guidance(2, second), Guidance(2, fast_second))):
            want = sample(net, z, labels, guidance=plain, **STEPS)
            found = sample(fast, z, labels, guidance=quick, **STEPS)
            assert (found - want).abs().max() <= 1e-4 * want.abs().max()


def test_step_graphs(monkeypatch):
    taped_graph.put_in_place(monkeypatch)
    net = network("ddpmpp")
    plain, fast = planned(net, "fp32", cuda_graph=False), planned(net, "fp32")
    z, labels = (t.to(next(net.parameters()).device) for t in draws(2))
    run, evaluated = _gpu_program.GpuProgram.run, []
    monkeypatch.setattr(_gpu_program.GpuProgram, "run", lambda *args: evaluated.append(1) or run(*args))
    with torch.no_grad():
        for guidance in (Guidance(2), Guidance(2, None, (0.1, 10)), Guidance(3)):
            want = sample(plain, z, labels, guidance=guidance, **STEPS)
            for _ in range(3):
                evaluated.clear()
                assert torch.equal(sample(fast, z, labels, guidance=guidance, **STEPS), want)
            assert not evaluated, "the third run is replayed"
        assert torch.equal(sample(fast, z, labels, guidance=Guidance(1), **STEPS), sample(plain, z, labels, **STEPS))
        guidance = Guidance(2, planned(network("ddpmpp"), "fp32"))
        assert sample(fast, z, labels, guidance=guidance, **STEPS).isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Guidance("2x"), "weight is '2x'"),
        (lambda: Guidance(math.nan), "finite"),
        (lambda: Guidance(2, None, (1, 1)), "sigma_lo < sigma_hi"),
        (lambda: Guidance(2, None, (-1, 1)), "0 <= sigma_lo"),
        (lambda: Guidance(2, None, 5), "two levels"),
        (lambda: Guidance(2, "model.pkl"), "type str"),
    ],
)
def test_bad_values(make, words):
    with pytest.raises(UserError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "guidance", "labels", "words"),
    [
        ({}, Guidance(2), None, "network is unconditional"),
        ({}, Guidance(1, tiny(label_dim=3)), None, "has 3 classes and the network 0"),
        ({"label_dim": 4}, Guidance(2), None, "class_labels is None"),
        ({"label_dim": 4}, Guidance(2, tiny(label_dim=3)), 4, "has 3 classes and the network 4"),
        ({}, Guidance(2, tiny(label_dim=3)), None, "has 3 classes and the network 0"),
        ({}, Guidance(2, tiny(img_resolution=16)), None, "16 pixels a side and the network of 8"),
        ({}, Guidance(2, tiny(img_channels=1)), None, "1 channels and the network of 3"),
        ({}, 2.0, None, "type float; expected edm_fast.Guidance"),
    ],
)
def test_networks_that_do_not_fit(kwargs, guidance, labels, words):
    z, rows = draws()
    with pytest.raises(UserError, match=words) as caught:
        sample(tiny(**kwargs), z, rows if labels else None, guidance=guidance, **STEPS)
    assert "\n" not in str(caught.value)


def test_it_is_public():
    assert edm_fast.Guidance is Guidance and hash(Guidance(2)) == hash(Guidance(2.0))
