"""attention: softmax(Q^T K / sqrt(C)) V over the pixels of an image, from the output of one qkv convolution.

    w[q, k] = softmax_k sum_c Q[c, q] (K[c, k] / sqrt(C))          a[c, q] = sum_k w[q, k] V[c, k]

qkv: (N, 3 heads C, H, W), where channel = head 3C + 3c + (0 for q, 1 for k, 2 for v): the three interleave with
stride 3 inside each head. Result: (N, heads C, H, W), channel = head C + c.
Precision: k is scaled in its own dtype; product and softmax run in float32; w is rounded to the input dtype.
Source: the self-attention of DDPM++ and ADM; Karras et al. 2022, Appendix F. The native code goes over the keys in
steps with a running maximum and sum (Milakov & Gimelshein 2018; Dao et al. 2022), and w is never in memory.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import torch

from edm_fast import native
from edm_fast.backend import Implementation, Op, transformed
from edm_fast.errors import UserError
from edm_fast.ops import _check, _triton


class AttentionArgs(NamedTuple):
    qkv: torch.Tensor
    num_heads: int = 1


def _weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """w = softmax(q^T k / sqrt(C)), (N, C, Q), (N, C, K) -> (N, Q, K)."""
    scaled = k / math.sqrt(k.shape[1])
    wide = torch.promote_types(q.dtype, torch.float32)
    # autocast would take the product in half precision; it knows no meta tensors, which ask for shapes alone
    with contextlib.nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):
        return torch.einsum("ncq,nck->nqk", q.to(wide), scaled.to(wide)).softmax(dim=2).to(q.dtype)


class AttentionWeights(torch.autograd.Function):
    """`_weights` with the backward taken from the rounded w."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        w = _weights(q, k)
        ctx.save_for_backward(q, k, w)
        return w

    @staticmethod
    def backward(ctx: Any, dw: torch.Tensor) -> Any:
        q, k, w = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        w, dw = w.to(wide), dw.to(wide)
        db = torch._softmax_backward_data(dw, w, 2, wide)  # (N, Q, K); the published code's, to the bit
        # torch.einsum has no rule for batches of gradients (is_grads_batched)
        dq = torch.bmm(k.to(wide), db.mT).to(q.dtype) / math.sqrt(k.shape[1])
        dk = torch.bmm(q.to(wide), db).to(k.dtype) / math.sqrt(k.shape[1])
        return dq, dk


def attention_weights(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """w (N, Q, K) in the dtype of q (N, C, Q) and k (N, C, K)."""
    # an autograd function would need rules of its own for torch.func and forward mode; the plain formula has torch's
    return _weights(q, k) if transformed() else AttentionWeights.apply(q, k)


def reference(args: AttentionArgs) -> torch.Tensor:
    qkv, num_heads = args
    n, channels, *spatial = qkv.shape
    head = channels // (3 * num_heads)
    q, k, v = qkv.reshape(n * num_heads, head, 3, math.prod(spatial)).unbind(2)  # each (N heads, C, HW)
    a = torch.einsum("nqk,nck->ncq", attention_weights(q, k), v)
    return a.reshape(n, num_heads * head, *spatial)


def check(args: AttentionArgs) -> None:
    qkv, num_heads = args
    _check.floating("attention", "qkv", qkv, 4)
    if num_heads < 1 or qkv.shape[1] == 0 or qkv.shape[1] % (3 * num_heads):
        raise UserError(f"attention: {qkv.shape[1]} channels do not divide into q, k, v of {num_heads} heads")


# The op of both backends, "native" and "triton", also returns what its backward needs: (2, N, heads HW), of each query
# the largest logit and 1 / sum of exp(logit - largest); of Triton in float32. Both, because the log of that sum added
# to a large logit would lose its digits.
_library = torch.library.Library("edm_fast", "FRAGMENT")
_backend = 'str backend="native"'
_library.define(f"attention(Tensor qkv, int heads, {_backend}) -> (Tensor a, Tensor stats)")
_library.define(
    f"attention_backward(Tensor da, Tensor qkv, Tensor a, Tensor stats, int heads, {_backend}) -> Tensor dqkv"
)
Pair = tuple[torch.Tensor, torch.Tensor]


def _layout(qkv: torch.Tensor) -> torch.memory_format:
    return native.layout_of(qkv) or torch.contiguous_format


def _fake_forward(qkv: torch.Tensor, heads: int, backend: str = "native") -> Pair:
    n, channels, h, w = qkv.shape
    a = torch.empty((n, channels // 3, h, w), dtype=qkv.dtype, device=qkv.device, memory_format=_layout(qkv))
    return a, qkv.new_empty((2, n, heads * h * w), dtype=torch.float32 if backend == "triton" else qkv.dtype)


def _fake_backward(
    da: torch.Tensor, qkv: torch.Tensor, a: torch.Tensor, stats: torch.Tensor, heads: int, backend: str = "native"
) -> torch.Tensor:
    return torch.empty_like(qkv, memory_format=_layout(qkv))


def _sizes(qkv: torch.Tensor, heads: int, layout: torch.memory_format) -> dict[str, Any]:
    """Sizes and strides by their native names."""
    n, channels, h, w = qkv.shape
    c, hw = channels // (3 * heads), h * w
    of_pixel, of_channel = (channels, 1) if layout == torch.channels_last else (1, hw)  # strides of qkv, in elements
    return dict(
        layout=layout,
        n=n,
        heads=heads,
        channels=c,
        pixels=hw,
        qkv_image=channels * hw,
        qkv_head=3 * c * of_channel,
        qkv_which=of_channel,
        qkv_channel=3 * of_channel,
        qkv_pixel=of_pixel,
        a_image=heads * c * hw,
        a_head=c * of_channel,
        a_channel=of_channel,
        a_pixel=heads * c if layout == torch.channels_last else 1,
    )


def _forward(qkv: torch.Tensor, heads: int, backend: str = "native") -> Pair:
    layout = _layout(qkv)
    if backend == "triton":
        from edm_fast.kernels import attention as kernels  # late: a missing triton is a reason, not a crash

        return kernels.forward(qkv.contiguous(memory_format=layout), heads)
    qkv = qkv.contiguous(memory_format=layout)
    a, stats = _fake_forward(qkv, heads)
    native.call(f"attention_fwd_{qkv.device.type}", qkv=qkv, a=a, stats=stats, **_sizes(qkv, heads, layout))
    return a, stats


def _backward(
    da: torch.Tensor, qkv: torch.Tensor, a: torch.Tensor, stats: torch.Tensor, heads: int, backend: str = "native"
) -> torch.Tensor:
    layout, dqkv = _layout(qkv), _fake_backward(da, qkv, a, stats, heads)
    qkv, da, a = (t.contiguous(memory_format=layout) for t in (qkv, da, a))
    if backend == "triton":
        from edm_fast.kernels import attention as kernels

        return kernels.backward(da, qkv, a, stats, heads)
    name = f"attention_bwd_{qkv.device.type}"
    native.call(name, qkv=qkv, a=a, stats=stats, da=da, dqkv=dqkv, **_sizes(qkv, heads, layout))
    return dqkv


for _device in ("CPU", "CUDA"):
    _library.impl("attention", _forward, _device)
    _library.impl("attention_backward", _backward, _device)
torch.library.register_fake("edm_fast::attention", _fake_forward, lib=_library)
torch.library.register_fake("edm_fast::attention_backward", _fake_backward, lib=_library)


class Attend(torch.autograd.Function):
    """The op; keeps qkv, the result and two numbers for each query."""

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, heads: int, backend: str) -> torch.Tensor:
        a, stats = torch.ops.edm_fast.attention(qkv, heads, backend)
        ctx.save_for_backward(qkv, a, stats)
        ctx.rest = heads, backend
        return a

    @staticmethod
    def backward(ctx: Any, da: torch.Tensor) -> Any:
        if transformed():  # the op would lose what `da` carries
            qkv, (heads, _) = ctx.saved_tensors[0], ctx.rest
            return *torch.func.vjp(lambda qkv: reference(AttentionArgs(qkv, heads)), qkv)[1](da), None, None
        gradients = Gradients.apply if torch.is_grad_enabled() else torch.ops.edm_fast.attention_backward
        return gradients(da, *ctx.saved_tensors, *ctx.rest), None, None


class Gradients(torch.autograd.Function):
    """The backward of Attend as a function of its own; its backward goes through the reference, to any order."""

    @staticmethod
    def forward(
        ctx: Any, da: torch.Tensor, qkv: torch.Tensor, a: torch.Tensor, stats: torch.Tensor, heads: int, backend: str
    ) -> torch.Tensor:
        ctx.save_for_backward(da, qkv)
        ctx.heads = heads
        return torch.ops.edm_fast.attention_backward(da, qkv, a, stats, heads, backend)

    @staticmethod
    def backward(ctx: Any, ddqkv: torch.Tensor) -> Any:
        with torch.enable_grad():
            # aliases, so that what came before them stays out of the derivatives
            da, qkv = (t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors)
            (dqkv,) = torch.autograd.grad(reference(AttentionArgs(qkv, ctx.heads)), qkv, da, create_graph=True)
        found = torch.autograd.grad(dqkv, (da, qkv), ddqkv, create_graph=torch.is_grad_enabled(), allow_unused=True)
        return *found, None, None, None, None


def like(args: AttentionArgs) -> torch.Tensor:
    qkv = args.qkv
    n, channels, *size = qkv.shape
    return torch.empty((n, channels // 3, *size), dtype=qkv.dtype, device=qkv.device)


def _run(qkv: torch.Tensor, num_heads: int, backend: str) -> torch.Tensor:
    if torch.is_grad_enabled() and qkv.requires_grad:
        return Attend.apply(qkv, num_heads, backend)
    return torch.ops.edm_fast.attention(qkv, num_heads, backend)[0]


def cpu_forward(args: AttentionArgs) -> torch.Tensor:
    return _run(*args, "native")


def cpu_reason(args: AttentionArgs) -> str | None:
    qkv = args.qkv
    if qkv.device.type != "cpu":
        return "it needs CPU tensors"
    if qkv.dtype != torch.float32:
        return f"it takes float32, not {qkv.dtype}"
    return native.cpu_reason()


def triton_forward(args: AttentionArgs) -> torch.Tensor:
    return _run(*args, "triton")


def triton_reason(args: AttentionArgs) -> str | None:
    qkv, num_heads = args
    if (reason := _triton.reason(qkv)) is not None:
        return reason
    from edm_fast.kernels import attention as kernels

    size, backward = qkv.shape[1] // (3 * num_heads), qkv.requires_grad and torch.is_grad_enabled()
    most = kernels.MAX_SIZE_FLOAT_BACKWARD if backward and qkv.dtype == torch.float32 else kernels.MAX_SIZE
    return None if size <= most else f"it takes heads of up to {most} channels here, not {size}"


def triton_slower(args: AttentionArgs) -> str | None:
    return _triton.slower(args.qkv)


cpu = Implementation("cpu", "cpu", cpu_forward, cpu_reason, differentiable=True)
triton = Implementation("triton", "cuda", triton_forward, triton_reason, triton_slower, differentiable=True)
_op = Op("attention", AttentionArgs, reference, check, triton, cpu, like=like)


def attention(qkv: torch.Tensor, num_heads: int = 1) -> torch.Tensor:
    """Attention output (N, heads C, H, W) from interleaved qkv (N, 3 heads C, H, W)."""
    return _op(AttentionArgs(qkv, num_heads))
