"""solver_update in Triton: d = (p x - q D)/t;  y = a base + h (sum_k weights_k terms_k + w d) + c noise, in one pass.

Every operation rounds on its own to the dtype of the tensors, in the order of the reference, so that the results are
those of plain PyTorch bit for bit: launched without contraction of products and sums, and with the division that rounds
correctly. Memory-bound: each tensor is read or written once, 16 bytes at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from edm_fast.kernels._launch import Variant, on_device

Scalar = float | torch.Tensor
MAX_TERMS = 8
BLOCK_BYTES = 4096  # of each tensor for a program of four warps: two accesses of 16 bytes for each thread
COEFFICIENTS = ("p", "q", "t", "a", "h", "w", "c", *(f"weight{k}" for k in range(MAX_TERMS)))


@triton.jit
def _number(number, ELEMENT: tl.constexpr):
    """A coefficient in the dtype of sums: the number at an address, or that of these bits of a float64, as kernel
    arguments have float32 at most."""
    if number.dtype.is_ptr():
        value = tl.load(number)
    else:
        value = number.to(tl.int64).to(tl.float64, bitcast=True)
    return value if ELEMENT == tl.float64 else value.to(tl.float32)


@triton.jit
def _rounded(value, ELEMENT: tl.constexpr):
    """What the tensors' dtype keeps of a result; half precision is computed in float32, as torch does."""
    return value if ELEMENT == tl.float64 else value.to(ELEMENT).to(tl.float32)


@triton.jit
def _load(pointer, offsets, inside, ELEMENT: tl.constexpr):
    value = tl.load(pointer + offsets, mask=inside)
    return value if ELEMENT == tl.float64 else value.to(tl.float32)


@triton.jit
def _plus_term(total, pointer, bits, offsets, inside, ELEMENT: tl.constexpr):
    part = _rounded(_load(pointer, offsets, inside, ELEMENT) * _number(bits, ELEMENT), ELEMENT)
    return _rounded(total + part, ELEMENT)


@triton.jit(do_not_specialize=COEFFICIENTS)
def _solver_update_fwd(
    y_ptr, d_ptr, base_ptr, x_ptr, D_ptr, noise_ptr,
    term0_ptr, term1_ptr, term2_ptr, term3_ptr, term4_ptr, term5_ptr, term6_ptr, term7_ptr,
    p, q, t, a, h, w, c,
    weight0, weight1, weight2, weight3, weight4, weight5, weight6, weight7,
    size,
    DIVIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tensors that are absent are None; the terms that are there come first."""
    ELEMENT: tl.constexpr = y_ptr.dtype.element_ty
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < size
    if term0_ptr is not None:  # the first term starts the sum: 0 + x would lose the sign of a zero
        total = _rounded(_load(term0_ptr, offsets, inside, ELEMENT) * _number(weight0, ELEMENT), ELEMENT)
    if term1_ptr is not None:
        total = _plus_term(total, term1_ptr, weight1, offsets, inside, ELEMENT)
    if term2_ptr is not None:
        total = _plus_term(total, term2_ptr, weight2, offsets, inside, ELEMENT)
    if term3_ptr is not None:
        total = _plus_term(total, term3_ptr, weight3, offsets, inside, ELEMENT)
    if term4_ptr is not None:
        total = _plus_term(total, term4_ptr, weight4, offsets, inside, ELEMENT)
    if term5_ptr is not None:
        total = _plus_term(total, term5_ptr, weight5, offsets, inside, ELEMENT)
    if term6_ptr is not None:
        total = _plus_term(total, term6_ptr, weight6, offsets, inside, ELEMENT)
    if term7_ptr is not None:
        total = _plus_term(total, term7_ptr, weight7, offsets, inside, ELEMENT)
    if D_ptr is not None:
        d = _rounded(_load(x_ptr, offsets, inside, ELEMENT) * _number(p, ELEMENT), ELEMENT)
        d = _rounded(d - _rounded(_load(D_ptr, offsets, inside, ELEMENT) * _number(q, ELEMENT), ELEMENT), ELEMENT)
        if DIVIDE:
            divisor = tl.zeros_like(d) + _rounded(_number(t, ELEMENT), ELEMENT)
            d = d / divisor if ELEMENT == tl.float64 else _rounded(tl.div_rn(d, divisor), ELEMENT)
        tl.store(d_ptr + offsets, d.to(ELEMENT), mask=inside)
        part = _rounded(d * _number(w, ELEMENT), ELEMENT)
        if term0_ptr is not None:
            total = _rounded(total + part, ELEMENT)
        else:
            total = part
    y = _rounded(_load(base_ptr, offsets, inside, ELEMENT) * _number(a, ELEMENT), ELEMENT)
    if D_ptr is not None or term0_ptr is not None:
        y = _rounded(y + _rounded(total * _number(h, ELEMENT), ELEMENT), ELEMENT)
    if noise_ptr is not None:
        y = _plus_term(y, noise_ptr, c, offsets, inside, ELEMENT)
    tl.store(y_ptr + offsets, y.to(ELEMENT), mask=inside)


def _bits(number: float) -> int:
    return struct.unpack("=q", struct.pack("=d", number))[0]


def forward(
    y: torch.Tensor,
    d: torch.Tensor | None,
    base: torch.Tensor,
    x: torch.Tensor | None,
    D: torch.Tensor | None,
    noise: torch.Tensor | None,
    terms: Sequence[torch.Tensor],
    weights: Sequence[Scalar],
    numbers: Sequence[Scalar],
) -> None:
    """Write y and d; all tensors lie alike in memory without gaps. numbers: p, q, t, a, h, w, c. Coefficients that are
    tensors have one element of the dtype of y."""
    if y.numel() == 0:
        return
    absent = MAX_TERMS - len(terms)
    *others, t, a, h, w, c = numbers
    divide = isinstance(t, torch.Tensor) or t != 1
    # a small integer such as the bits of 0 would be another type: what is not read is 1
    numbers = *others, t, a, h, w, 1.0 if noise is None else c, *weights, *[1.0] * absent
    coefficients = [number if isinstance(number, torch.Tensor) else _bits(number) for number in numbers]
    block = BLOCK_BYTES // y.element_size()
    grid = (triton.cdiv(y.numel(), block),)
    tensors = y, d, base, x, D, noise, *terms, *[None] * absent
    with on_device(y):
        _solver_update_fwd[grid](
            *tensors, *coefficients, y.numel(), DIVIDE=divide, BLOCK=block, num_warps=4, enable_fp_fusion=False
        )


def _variant(
    element: str,
    size: int,
    terms: int = 0,
    slope: bool = True,
    noise: bool = False,
    divide: bool = True,
    device: str = "",
):
    """device: the names of the coefficients that lie there."""
    there = {"y": True, "d": slope, "base": True, "x": slope, "D": slope, "noise": noise}
    there |= {f"term{k}": k < terms for k in range(MAX_TERMS)}
    signature = {f"{name}_ptr": f"*{element}" for name, is_there in there.items() if is_there}
    aligned = (*signature, "size")
    constants: dict[str, Any] = {f"{name}_ptr": None for name, is_there in there.items() if not is_there}
    constants |= {"DIVIDE": divide, "BLOCK": BLOCK_BYTES // size}
    signature |= {**dict.fromkeys(COEFFICIENTS, "i64"), **dict.fromkeys(device.split(), f"*{element}"), "size": "i32"}
    return Variant(_solver_update_fwd, signature, constants, aligned, fused_multiply_add=False)


def variants() -> dict[str, Variant]:
    """Euler, Heun and the noise of the samplers, which run in float64, with their coefficients on the device in a CUDA
    graph; preconditioning; a multistep solver; other dtypes."""
    return {
        "fwd_euler_fp64": _variant("fp64", 8),
        "fwd_heun_fp64": _variant("fp64", 8, terms=1),
        "fwd_churn_fp64": _variant("fp64", 8, slope=False, noise=True, divide=False),
        "fwd_euler_device_fp64": _variant("fp64", 8, device="t h"),
        "fwd_heun_device_fp64": _variant("fp64", 8, terms=1, device="t h w weight0"),
        "fwd_churn_device_fp64": _variant("fp64", 8, slope=False, noise=True, divide=False, device="c"),
        "fwd_precond_fp32": _variant("fp32", 4, terms=1, slope=False, divide=False, device="a weight0"),
        "fwd_multistep_fp64": _variant("fp64", 8, terms=8, slope=False, divide=False),
        "fwd_all_undivided_fp64": _variant("fp64", 8, terms=8, noise=True, divide=False),
        "fwd_heun_fp32": _variant("fp32", 4, terms=1),
        "fwd_all_undivided_fp32": _variant("fp32", 4, terms=8, noise=True, divide=False),
        "fwd_heun_fp16": _variant("fp16", 2, terms=1),
        "fwd_heun_bf16": _variant("bf16", 2, terms=1),
    }
