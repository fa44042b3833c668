"""Gradients of accelerated networks: close to float64, with constant weights; whatever else is asked of them is the
network's own."""

import copy
import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from edm_fast import accelerate, edm_sampler, use_backend
from edm_fast.evaluation._networks import Exact, inputs, relative_error
from edm_fast.ops._triton import INTERPRETED
from helpers import native_conv as nc
from helpers.planned_networks import DEVICE, moved, network, on_algorithm, planned

pytestmark = nc.needs_native
FAMILIES = "ddpmpp", "ncsnpp", "adm", "adm-iddpm"
SMALL = {"img_resolution": 4, "attn_resolutions": [2], "channel_mult": [1]}


def gradient(evaluate, x, *rest):
    """Of the sum of D^2, with respect to the images."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(evaluate(x, *rest).square().sum(), x)[0]


def in_float64(net):
    truth = Exact(net)
    evaluate = Exact.__call__.__wrapped__  # without its no_grad
    return lambda *args: evaluate(truth, *(None if t is None else t.double() for t in args))


@pytest.mark.parametrize("name", FAMILIES)
def test_close_to_float64_and_to_finite_differences(name):
    net = network(name)
    call = x, sigma, labels = inputs(net, 2, 0.7)
    exact = in_float64(net)
    want = gradient(exact, x.double(), sigma, labels)
    with use_backend("reference"):
        plain = relative_error([gradient(net, *call)], [want])
    for precision, most in (("exact", 2 * plain + 4 * 2**-24), ("fp32", 1e-5), ("bf16", 1e-5)):
        assert relative_error([gradient(accelerate(net, precision), *call)], [want]) <= most, precision
    along, step = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), 1e-6
    ends = [exact(x + sign * step * along, sigma, labels).square().sum() for sign in (1, -1)]
    slope = (gradient(accelerate(net), *call) * along).sum()
    assert (slope - (ends[0] - ends[1]) / (2 * step)).abs() <= 1e-5 * want.norm() * along.norm()


def test_autocast_of_the_caller_changes_no_bit():
    net = network("ddpmpp")
    fast, call = accelerate(net), inputs(net, 2, 0.7)
    plain = fast(*call), gradient(fast, *call)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fast(*call), gradient(fast, *call)
    assert all(torch.equal(a, b) for a, b in zip(plain, inside))


@pytest.mark.parametrize("precision, most", [("exact", 1e-5), ("tf32", 5e-3), ("fp16", 1e-2), ("bf16", 5e-2)])
def test_plans_for_a_gpu(precision, most):
    net = network("ddpmpp")
    call = inputs(net, 2, 0.7)
    want = gradient(in_float64(net), call[0].double(), *call[1:])
    got = gradient(planned(net, precision), *moved(*call))
    assert got.dtype == torch.float32 and relative_error([got.cpu()], [want]) <= most


@pytest.mark.skipif(DEVICE.type == "cpu" and not INTERPRETED, reason="there is no GPU and no interpreter")
def test_plans_for_a_gpu_on_triton_kernels():
    net = network("ddpmpp", **SMALL, model_channels=16)
    call = inputs(net, 1, 0.7)
    want = gradient(in_float64(net), call[0].double(), *call[1:])
    fast = planned(net, "fp32")
    with use_backend("triton", "conv2d", "group_norm_silu", "attention", "upfirdn"):
        assert relative_error([gradient(fast, *moved(*call)).cpu()], [want]) <= 1e-5


def test_guidance_by_one_gradient_and_by_three_on_one_graph():
    net = network("ddpmpp")
    fast = accelerate(net)
    x, sigma, labels = inputs(net, 2, 0.7)
    x.requires_grad_()
    D = fast(x, sigma, labels)
    assert relative_error([D.detach()], [fast(x.detach(), sigma, labels)]) < 1e-5
    losses = [lambda D: D.square().sum(), lambda D: (D[:, :1] - 1).abs().sum(), lambda D: D.diff(dim=3).square().mean()]
    found = [torch.autograd.grad(loss(D), x, retain_graph=loss is not losses[-1])[0] for loss in losses]
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(D.sum(), x)
    for loss, together in zip(losses, found):
        assert torch.equal(together, torch.autograd.grad(loss(fast(x, sigma, labels)), x)[0])
    losses[1](fast(x, sigma, labels)).backward()
    assert torch.equal(x.grad, found[1])


def test_levels_and_labels_have_gradients():
    net = network("ddpmpp")
    x, sigma, labels = inputs(net, 2, 0.7)
    exact = in_float64(net)
    found = []
    for evaluate, dtype in ((accelerate(net), torch.float32), (exact, torch.float64)):
        given = [t.to(dtype).requires_grad_() for t in (x, sigma, labels)]
        found.append(torch.autograd.grad(evaluate(*given).square().sum(), given))
    for got, want in zip(*found):
        assert relative_error([got], [want]) < 2e-5


def saved_bytes(evaluate, x, *rest):
    """Of the tensors that autograd keeps for the backward, but for weights."""
    kept, weights = {}, {p.data_ptr() for p in evaluate.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        evaluate(x.clone().requires_grad_(), *rest)
    return sum(kept.values())


def test_weights_are_constants():
    net = network("ddpmpp")
    call = inputs(net, 2, 0.7)
    want = gradient(accelerate(net), *call)
    with use_backend("cpu", "conv2d"):
        frozen, trained = saved_bytes(net, *call), saved_bytes(net.requires_grad_(True), *call)
    net.requires_grad_(True)
    fast = accelerate(net)
    x = call[0].clone().requires_grad_()
    fast(x, *call[1:]).square().sum().backward()
    assert torch.equal(x.grad, want) and all(p.grad is None for p in net.parameters())
    assert not fast(*call).requires_grad
    # convolutions keep their images for the gradients of weights alone
    assert max(saved_bytes(fast, *call), frozen) < 0.7 * trained


def test_parts_threads_and_packing_change_no_bit():
    net = network("ddpmpp-vp")
    x, sigma, labels = inputs(net, 5, 0.7)
    whole, parts, tight = (on_algorithm(net, "winograd4x4", limit) for limit in (float("inf"), float("inf"), 0))
    parts.model.planner.images_at_once = lambda graph: 2
    want = gradient(whole, x, sigma, labels)
    assert torch.equal(gradient(parts, x, sigma, labels), want)
    assert [dict(shapes)["x"][0] for shapes in parts.model.differentiable.programs] == [2, 1]
    assert torch.equal(gradient(tight, x, sigma, labels), want)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(gradient(whole, x, sigma, labels), want)
    finally:
        torch.set_num_threads(threads)


def test_derivatives_of_the_gradient_and_many_gradients_at_once():
    net = network("ddpmpp")
    fast = accelerate(net)
    x, sigma, labels = inputs(net, 2, 0.7)
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))

    def loss(evaluate):
        return lambda x: evaluate(x, sigma, labels).square().sum()

    found, want = (torch.autograd.functional.hvp(loss(evaluate), x, v)[1] for evaluate in (fast, net))
    assert relative_error([found], [want]) < 1e-5
    y = x.clone().requires_grad_()
    D = fast(y, sigma, labels)
    directions = torch.stack((v, D.detach()))
    (batch,) = torch.autograd.grad(D, y, directions, retain_graph=True, is_grads_batched=True)
    each = [torch.autograd.grad(D, y, direction, retain_graph=True)[0] for direction in directions]
    assert relative_error([batch], [torch.stack(each)]) < 1e-5


def dual(function, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x)))


TRANSFORMS = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "forward mode": dual,
    "vmap": lambda f, x: torch.vmap(f)(x[:, None]),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](x),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_transforms_meet_the_network_itself():
    net = network("ddpmpp")
    x, _, _ = inputs(net, 2, 0.7)
    for evaluate in (accelerate(net), planned(net, "fp32", cuda_graph=False)):
        for name, transform in TRANSFORMS.items():
            found, want = (
                transform(lambda x, f=f: f(x, 0.7), x.to(DEVICE)) for f in (evaluate, copy.deepcopy(net).to(DEVICE))
            )
            pairs = zip(*(torch.utils._pytree.tree_leaves(result) for result in (found, want)))
            assert all(torch.equal(a, b) for a, b in pairs), name


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
def test_tracers_see_the_network_itself():
    net = network("ddpmpp-vp", **SMALL)
    fast = accelerate(net)
    x, sigma, _ = inputs(net, 1, 0.7)
    with torch.no_grad():
        fast(x, sigma)
        for how in ({}, {"pre_dispatch": True}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = make_fx(lambda x: fast(x, sigma), **how)(x)
            assert relative_error([graph(2 * x)], [net(2 * x, sigma)]) < 1e-5, how
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert type(fast(mode.from_tensor(x), mode.from_tensor(sigma))).__name__ == "FakeTensor"
        assert type(fast(mode.from_tensor(x), mode.from_tensor(sigma))).__name__ == "FakeTensor"


def test_the_sampler_passes_gradients_on():
    net = network("ddpmpp")
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for evaluate in (net, accelerate(net), planned(net, "fp32")):
        x = latents.clone().to(DEVICE if evaluate is not net else "cpu").requires_grad_()
        if evaluate is not net and evaluate.model.device != x.device:
            x = latents.clone().requires_grad_()
        images = edm_sampler(evaluate, x, torch.eye(4)[:2].to(x.device), num_steps=3)
        found.append(torch.autograd.grad(images.square().sum(), x)[0].cpu())
    assert all(relative_error([other], found[:1]) < 1e-4 for other in found[1:])
