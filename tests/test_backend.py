"""Dispatch: order, reasons, explicit requests, and the input checks of every op."""

import sys
import threading
from typing import NamedTuple

import pytest
import torch

from edm_fast import UserError, backend, explain, native, ops, use_backend
from edm_fast.backend import BackendError, Implementation, Op
from edm_fast.cases import SMALL
from helpers import op_checks


class Vector(NamedTuple):
    x: torch.Tensor


def ones(*shape):
    return Vector(torch.ones(shape))


@pytest.fixture
def op():
    def check(args):
        if args.x.ndim != 1:
            raise UserError("x must be a vector")

    def few(args):
        return None if args.x.numel() < 4 else "it takes at most three numbers"

    cuda = Implementation("cuda", "cuda", lambda args: "cuda", lambda args: "it needs CUDA tensors")
    cpu = Implementation("cpu", "cpu", lambda args: "cpu", few)
    made = Op("twice", Vector, lambda args: 2 * args.x, check, cuda, cpu)
    yield made
    del backend._ops["twice"]


def test_first_implementation_without_a_reason_runs(op):
    assert op(ones(2)) == "cpu"
    (choice,) = op.explain()
    assert choice.backend == "cpu" and choice.calls == 1
    assert choice.reasons == {"cuda": "it needs CUDA tensors"}
    assert "it needs CUDA tensors" in str(choice)


def test_reference_runs_when_all_others_decline(op):
    assert torch.equal(op(ones(5)), torch.full((5,), 2.0))
    assert op.explain()[0].reasons["cpu"] == "it takes at most three numbers"


def test_implementation_without_backward_is_skipped_when_a_gradient_is_needed(op):
    x = Vector(torch.ones(2, requires_grad=True))
    assert torch.is_tensor(op(x))
    assert "backward" in op.choose(x).reasons["cpu"]
    with torch.no_grad():
        assert op(x) == "cpu"


def test_explicit_request_never_falls_back(op):
    with use_backend("cpu"), pytest.raises(BackendError, match="at most three"):
        op(ones(5))
    with use_backend("triton"), pytest.raises(BackendError, match="no such implementation"):
        op(ones(2))
    with use_backend("reference"):
        assert torch.is_tensor(op(ones(2)))
    assert op(ones(2)) == "cpu"


def test_request_for_one_op_leaves_the_others_alone(op):
    with use_backend("reference", "twice"):
        assert torch.is_tensor(op(ones(2)))
        assert op_checks.choose("conv2d", torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1)).backend in backend.NAMES
    assert op(ones(2)) == "cpu"


def test_unknown_names_are_refused(op):
    with pytest.raises(UserError, match="unknown backend 'gpu'"):
        use_backend("gpu")
    with pytest.raises(UserError, match="unknown op 'conv3d'"):
        use_backend("cpu", "conv3d")


@pytest.mark.parametrize("name", ["nonsense", "CPU", " "])
def test_environment_names_the_backend(op, monkeypatch, name):
    monkeypatch.setitem(backend._requested, None, name)
    for question in (lambda: op(ones(2)), backend.requested):
        with pytest.raises(UserError, match=f"unknown backend '{name}' in EDM_FAST_BACKEND; expected one of auto"):
            question()


def test_bad_input_is_refused_before_anything_runs(op):
    with pytest.raises(UserError, match="vector"):
        op(ones(2, 2))
    assert op.explain() == []


def test_explain_gives_each_backend_reasons_of_its_own(op):
    explain(reset=True)
    op(ones(5))
    op(ones(2))
    with use_backend("reference"):
        op(ones(2))
    slow, fast = op.explain()
    assert slow.backend == "reference" and slow.calls == 2 and fast.backend == "cpu"
    assert str(slow) == "twice: reference (2 calls) | cuda, cpu: 'reference' was asked for by name"
    assert str(fast) == "twice: cpu (1 calls) | cuda: it needs CUDA tensors"
    with use_backend("cpu"), pytest.raises(BackendError, match="expected 'auto' .no EDM_FAST_BACKEND. or 'reference'"):
        op(ones(5))


def test_explain_reports_and_resets(op):
    op(ones(2))
    assert "twice" in [choice.op for choice in explain(reset=True)]
    assert explain() == []


X = torch.ones(2, 6, 4, 4)
BAD_CALLS = {
    "upfirdn: wrong dimensions": lambda: ops.upfirdn(X[0], torch.ones(2, 2), up=2),
    "upfirdn: filter not square": lambda: ops.upfirdn(X, torch.ones(2, 3), up=2),
    "upfirdn: up and down": lambda: ops.upfirdn(X, torch.ones(2, 2), up=2, down=2),
    "upfirdn: too small": lambda: ops.upfirdn(X, torch.ones(8, 8), down=2),
    "upfirdn: no pixels": lambda: ops.upfirdn(X[:, :, :0], torch.ones(4, 4), up=2),
    "group_norm_silu: integers": lambda: ops.group_norm_silu(X.long(), torch.ones(6), torch.ones(6), 2),
    "group_norm_silu: groups": lambda: ops.group_norm_silu(X, torch.ones(6), torch.ones(6), 4),
    "group_norm_silu: weight": lambda: ops.group_norm_silu(X, torch.ones(5), torch.ones(6), 2),
    "group_norm_silu: scale alone": lambda: ops.group_norm_silu(
        X, torch.ones(6), torch.ones(6), 2, scale=torch.ones(2, 6)
    ),
    "group_norm_silu: scale shape": lambda: ops.group_norm_silu(
        X, torch.ones(6), torch.ones(6), 2, scale=torch.ones(3, 6), shift=torch.ones(3, 6)
    ),
    "attention: channels": lambda: ops.attention(torch.ones(1, 7, 2, 2)),
    "attention: heads": lambda: ops.attention(torch.ones(1, 6, 2, 2), 0),
    "conv2d: kernel not square": lambda: ops.conv2d(X, torch.ones(1, 6, 3, 1)),
    "conv2d: no filters": lambda: ops.conv2d(X, torch.ones(0, 6, 3, 3)),
    "conv2d: no channels": lambda: ops.conv2d(X[:, :0], torch.ones(1, 0, 3, 3)),
    "conv2d: no pixels": lambda: ops.conv2d(X[:, :, :0], torch.ones(1, 6, 3, 3), padding=2),
    "conv2d: channels": lambda: ops.conv2d(X, torch.ones(1, 5, 3, 3)),
    "conv2d: too small": lambda: ops.conv2d(X, torch.ones(1, 6, 7, 7), padding=0),
    "conv2d: bias": lambda: ops.conv2d(X, torch.ones(1, 6, 3, 3), torch.ones(2)),
    "conv2d: emb": lambda: ops.conv2d(X, torch.ones(1, 6, 3, 3), emb=torch.ones(3, 1)),
    "conv2d: residual": lambda: ops.conv2d(X, torch.ones(1, 6, 3, 3), residual=X),
    "solver_update: integers": lambda: ops.solver_update(X.long()),
    "solver_update: x without D": lambda: ops.solver_update(X, X),
    "solver_update: weights": lambda: ops.solver_update(X, terms=[X], weights=[]),
    "solver_update: dtypes": lambda: ops.solver_update(X, X, X.double()),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_ops_refuse_bad_input_in_one_line(name):
    with pytest.raises(UserError, match=name.split(":")[0]) as error:
        BAD_CALLS[name]()
    assert "\n" not in str(error.value)


def test_threads_never_see_a_request_half_made(op):
    """use_backend in one thread while another dispatches: every call finds one whole request or the other."""
    problems, stop = [], threading.Event()

    def switch():
        while not stop.is_set():
            with use_backend("reference"):
                pass

    def dispatch():
        try:
            for _ in range(20_000):
                op.choose(ones())
        except KeyError as error:
            problems.append(error)
        finally:
            stop.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=target) for target in (switch, dispatch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not problems


def test_forward_mode_derivatives_are_not_lost():
    """Native code would drop the tangent without a word."""
    x, f = torch.randn(1, 2, 4, 4), torch.full((2, 2), 0.25)
    assert torch.func.jvp(lambda x: ops.upfirdn(x, f, down=2), (x,), (torch.ones_like(x),))[1].eq(1).all()
    assert torch.func.grad(lambda x: ops.upfirdn(x, f, down=2).sum())(x).eq(0.25).all()
    assert torch.equal(torch.vmap(lambda x: ops.solver_update(x, a=2.0)[0])(x), 2 * x)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        y, _ = ops.solver_update(dual, a=2.0)
        assert torch.autograd.forward_ad.unpack_dual(y).tangent.eq(2).all()
        with use_backend("cpu"), pytest.raises(BackendError):
            ops.upfirdn(dual, f, down=2)


def gradients(op, name, order):
    """Of inputs x and a cotangent v: what a fused call's backward makes of a v that carries something."""
    args, kwargs = SMALL[op].inputs(torch.float32)
    x = args[0].requires_grad_()
    y = op_checks.forced(op, name)(x, *args[1:], **kwargs)
    v = torch.randn(2, *y.shape, generator=torch.Generator().manual_seed(1))
    if order == "one by one":  # the backward is linear in v: its tangent is the gradient of the tangent
        return torch.stack([torch.autograd.grad(y, x, row, retain_graph=True)[0] for row in v])
    if order == "batched":
        return torch.autograd.grad(y, x, v, is_grads_batched=True)[0]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(v[0], v[1])
        (gradient,) = torch.autograd.grad(y, x, dual, create_graph=order == "to differentiate")
        return torch.stack(torch.autograd.forward_ad.unpack_dual(gradient)).detach()


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("order", ["tangents", "to differentiate", "batched"])
@pytest.mark.parametrize("op", ["upfirdn", "group_norm_silu", "attention", "conv2d"])
def test_the_backward_of_fused_ops_keeps_what_cotangents_carry(op, order):
    """The call itself ran on its kernel, before forward mode or vmap was at work."""
    got, want = gradients(op, "cpu", order), gradients(op, "reference", "one by one")
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
