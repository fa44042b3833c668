"""torch.func and forward mode on whole networks: against finite differences in float64, and each against the others."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from edm_fast import explain, use_backend
from edm_fast.evaluation._networks import Exact
from edm_fast.networks import EDMPrecond, SongUNet
from helpers.planned_networks import network

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:Attempted to insert a get_attr Node")
IMAGES = 2


@pytest.fixture(scope="module", params=["ddpmpp", "ddpmpp-vp", "ncsnpp-ve", "adm", "adm-iddpm"])
def net(request):
    width = 64 if request.param.startswith("adm") else 16  # one head of attention
    return network(request.param, model_channels=width, channel_mult=[1], attn_resolutions=[8])


def draw(net):
    """Images, levels, labels and a direction."""
    generator = torch.Generator().manual_seed(1)
    x, v = (torch.randn(IMAGES, 3, 8, 8, generator=generator) for _ in range(2))
    labels = torch.eye(4)[:IMAGES] if net.label_dim else None
    return x, net.round_sigma(torch.tensor([0.4, 1.1])), labels, v


def close(got, want, most):
    assert (got - want).norm() <= most * want.norm()


def test_against_finite_differences_in_float64(net):
    x, sigma, labels, v = (None if t is None else t.double() for t in draw(net))
    exact = Exact.__call__.__wrapped__  # without its no_grad
    truth = Exact(net)
    move = 0 if type(net).__name__ == "iDDPMPrecond" else 0.3  # its levels are those of a table

    def along(t):
        return exact(truth, x + t * v, sigma + move * t, labels)

    def loss(x):
        return exact(truth, x, sigma, labels).square().sum()

    step, zero, one = 1e-6, torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    with use_backend("reference"):
        close(jvp(along, (zero,), (one,))[1], (along(step) - along(-step)) / (2 * step), 1e-6)
        product = jvp(grad(loss), (x,), (v,))[1]
        close(product, (grad(loss)(x + step * v) - grad(loss)(x - step * v)) / (2 * step), 1e-6)
        x32, sigma32, labels32, v32 = draw(net)
        close(jvp(lambda x: net(x, sigma32, labels32), (x32,), (v32,))[1], exact_jvp(exact, truth, net), 1e-5)


def exact_jvp(exact, truth, net):
    x, sigma, labels, v = (None if t is None else t.double() for t in draw(net))
    return jvp(lambda x: exact(truth, x, sigma, labels), (x,), (v,))[1]


def test_every_transform_gives_the_same_derivatives(net):
    x, sigma, labels, v = draw(net)
    spread = torch.zeros(1, 3, 1, 1)

    def D(x):
        return net(x, sigma, labels)

    def loss(x):
        return D(x).square().sum()

    def means(z):
        return D(x + z).mean((0, 2, 3))

    with use_backend("reference"):
        # backward passes of plain torch, as always
        tangent = torch.autograd.functional.jvp(D, x, v)[1]
        gradient = torch.autograd.functional.vjp(loss, x)[1]
        product = torch.autograd.functional.hvp(loss, x, v)[1]
        jacobian = torch.autograd.functional.jacobian(means, spread)
        curvature = torch.autograd.functional.hessian(lambda z: loss(x + z), spread)
        # and everything else
        close(jvp(D, (x,), (v,))[1], tangent, 1e-5)
        close(grad(loss)(x), gradient, 1e-5)
        close(vjp(loss, x)[1](torch.ones(()))[0], gradient, 1e-5)
        close(jvp(grad(loss), (x,), (v,))[1], product, 1e-5)
        close(grad(lambda x: jvp(loss, (x,), (v,))[1])(x), product, 1e-5)
        close(grad(lambda x: (grad(loss)(x) * v).sum())(x), product, 1e-5)
        close(jacrev(means)(spread), jacobian, 1e-5)
        close(jacfwd(means)(spread), jacobian, 1e-5)
        close(torch.autograd.functional.jacobian(means, spread, vectorize=True), jacobian, 1e-5)
        close(hessian(lambda z: loss(x + z))(spread), curvature, 1e-4)
        if isinstance(net, EDMPrecond) and isinstance(net.model, SongUNet):  # jvp once more, traced: slow, so once
            close(linearize(D, x)[1](v), tangent, 1e-5)


def test_fused_ops_leave_transforms_to_the_reference(net):
    x, sigma, labels, v = draw(net)

    def forward_mode():
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(net(forward_ad.make_dual(x, v), sigma, labels)).tangent

    def forward():
        return jvp(lambda x: net(x, sigma, labels), (x,), (v,))[1]

    def reverse():
        return grad(lambda x: net(x, sigma, labels).square().sum())(x)

    for derivative in (forward_mode, forward, reverse):
        with use_backend("reference"):
            want = derivative()
        explain(reset=True)
        assert torch.equal(derivative(), want)
        ran = {choice.op: choice for choice in explain()}
        assert {choice.backend for choice in ran.values()} == {"reference"}
        assert "torch.func" in ran["attention"].reasons["cpu"]


def test_vmap_and_functional_call(net):
    x, sigma, labels, _ = draw(net)
    params = dict(net.named_parameters())
    biases = {name: p for name, p in params.items() if name.endswith("bias")}
    rows = None if labels is None else labels[:, None]
    where = (None, 0, 0, None if labels is None else 0)

    def one(changed, x, sigma, row):
        return functional_call(net, {**params, **changed}, (x[None], sigma[None], row)).square().sum()

    def plain(changed):
        """Gradients image by image, with backward passes."""
        given = {name: p.detach().requires_grad_() for name, p in changed.items()}
        each = [
            torch.autograd.grad(one(given, x[i], sigma[i], None if rows is None else rows[i]), list(given.values()))
            for i in range(IMAGES)
        ]
        return [torch.stack(found) for found in zip(*each)]

    with use_backend("reference"):
        want, levels = plain(biases), torch.stack([net(x, s, labels) for s in sigma])
        for got, expected in zip(vmap(grad(one), in_dims=where)(biases, x, sigma, rows).values(), want):
            close(got, expected, 1e-4)
        close(vmap(lambda s: net(x, s, labels))(sigma), levels, 1e-5)
        several = {name: torch.stack([p, 1.5 * p]) for name, p in biases.items()}
        got = vmap(lambda p: functional_call(net, {**params, **p}, (x, sigma, labels)))(several)
        close(got[0], net(x, sigma, labels), 1e-5)
        other = functional_call(net, {name: p[1] for name, p in several.items()}, (x, sigma, labels))
        close(got[1], other, 1e-5)


def test_dropout_differs_under_vmap_where_asked_for(net):
    x, sigma, labels, _ = draw(net)
    net.train()
    for module in net.modules():
        module.dropout = 0.5
    try:
        same = x[:1].expand(4, -1, -1, -1)
        run = vmap(lambda x: net(x[None], sigma[:1], None), randomness="different")
        assert not torch.equal(run(same)[0], run(same)[1])
        assert grad(lambda x: run(x).sum())(same).isfinite().all()
    finally:
        net.eval()
