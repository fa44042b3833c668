"""The specialisations of the convolution kernels that networks launch, for tests that compile them ahead of time."""

from __future__ import annotations

from typing import Any

import torch

from edm_fast.kernels import _conv2d_products, _conv2d_prologue, _conv2d_tail, _conv2d_winograd
from edm_fast.kernels._conv2d_blocks import blocks, weight_blocks
from edm_fast.kernels._launch import CHIPS, EVERY_CHIP, Variant

FLOAT8 = torch.float8_e4m3fn
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", FLOAT8: "fp8e4nv"}


def _fwd(
    pixels: int,
    outputs: int,
    inputs: int,
    kernel: int = 3,
    dtype: torch.dtype = torch.float16,
    precision: str = "ieee",
    *,
    phases: int = 1,
    affine: bool = False,
    part: bool = False,
    clip: bool = False,
    rows: int = 1,
    area: int = 1024,
    chips: tuple[str, ...] = CHIPS,
) -> Variant:
    ieee = dtype == torch.float32 and precision == "ieee"
    b = blocks(pixels, outputs, inputs, kernel**2, dtype, ieee, phases, area if affine else 0)
    t, split, float8 = f"*{TYPES[dtype]}", b.splits > 1, dtype == FLOAT8
    tail = "*fp16" if float8 else t
    pointers = {"y_ptr": tail, "x_ptr": t, "weight_ptr": t, "rows_ptr": tail, "residual_ptr": tail}
    pointers |= {name: "*fp32" for name in ("affine_ptr", "factors_ptr", "partial_ptr", "sums_ptr")}
    ints = ("images", "height", "width", "grid_height", "grid_width", "channels", "outputs", "padding", "steps")
    constants: dict[str, Any] = {"KERNEL": kernel, "PHASES": phases, "BLOCK_M": b.m, "BLOCK_N": b.n, "BLOCK_K": b.k}
    constants |= {"SPLIT": split, "EVEN": inputs % b.k == 0, "ROWS": rows, "RESIDUAL": True, "AFFINE": affine}
    constants |= {"PART": b.m if part else 0, "SILU": affine, "ONE_IMAGE": area % b.m == 0, "PADDED": kernel > 1}
    constants |= {"PRECISION": precision, "EARLY": False, "x_pitch": None, "pitch": None}
    constants |= {} if float8 else {"factors_ptr": None}
    constants |= {} if clip else {"clip": None}
    constants |= {} if affine else {"affine_ptr": None}
    constants |= {} if split else {"partial_ptr": None}
    constants |= {} if part else {"sums_ptr": None}
    signature = {**pointers, "scale": "fp32", "clip": "fp32", **dict.fromkeys(ints, "i32")}
    signature = {name: kind for name, kind in signature.items() if name not in constants}
    aligned = [name for name in (*pointers, "height", "width", "grid_height", "grid_width") if name in signature]
    aligned += [name for name, size in (("channels", inputs), ("outputs", outputs)) if size % 16 == 0]
    return Variant(
        _conv2d_products._conv2d_fwd,
        signature,
        constants,
        tuple(aligned),
        b.warps,
        b.stages,
        matrix_products=not ieee,
        wide_loads=inputs % 16 == 0,
        float8=float8,
        chips=chips,
    )


def _weight(pixels: int, outputs: int, inputs: int, dtype: torch.dtype, precision: str = "ieee") -> Variant:
    ieee = dtype == torch.float32 and precision == "ieee"
    b, t = weight_blocks(pixels, outputs, inputs, 9, dtype, ieee), f"*{TYPES[dtype]}"
    ints = ("images", "height", "width", "channels", "outputs", "padding", "share")
    signature = {"partial_ptr": "*fp32", "dy_ptr": t, "x_ptr": t, **dict.fromkeys(ints, "i32")}
    constants: dict[str, Any] = {
        "GRID_HEIGHT": 32,
        "GRID_WIDTH": 32,
        "KERNEL": 3,
        "BLOCK_M": b.m,
        "BLOCK_N": b.n,
        "BLOCK_K": b.k,
    }
    aligned = ("partial_ptr", "dy_ptr", "x_ptr", "height", "width", "channels", "outputs", "share")
    kernel = _conv2d_products._conv2d_bwd_weight
    constants |= {"EVEN": inputs % b.n == 0, "PRECISION": precision}
    # rows of tf32 operands must follow the sum: they are turned over as they are copied, 4 bytes at a time
    wide = precision != "tf32"
    return Variant(kernel, signature, constants, aligned, b.warps, b.stages, not ieee, wide)


def _chips(early: bool) -> tuple[str, ...]:
    return ("sm_90a",) if early else EVERY_CHIP


def _winograd_input(channels: int, affine: bool, dtype: str = "fp16", early: bool = False) -> Variant:
    m, n = _conv2d_winograd.block_of(channels)
    ints = ("affine_images", "images", "height", "width", "tiles_high", "tiles_wide", "channels", "pitch", "padding")
    pointers = {"tiles_ptr": "*fp16", "x_ptr": f"*{dtype}", **({"affine_ptr": "*fp32"} if affine else {})}
    constants: dict[str, Any] = {"SILU": affine, "EVEN": channels % n == 0, "BLOCK_M": m, "BLOCK_N": n, "EARLY": early}
    constants |= {} if affine else {"affine_ptr": None}
    signature, aligned = {**pointers, **dict.fromkeys(ints, "i32")}, (*pointers, "height", "width", "channels", "pitch")
    kernel = _conv2d_winograd._winograd_input
    return Variant(kernel, signature, constants, aligned, wide_loads=False, chips=_chips(early))


def _winograd_output(outputs: int, part: bool, dtype: str = "fp16", clip: bool = False, early: bool = False) -> Variant:
    m, n = _conv2d_winograd.block_of(outputs)
    pointers = {"y_ptr": f"*{dtype}", "products_ptr": "*fp16", "factors_ptr": "*fp32", "rows_ptr": f"*{dtype}"}
    pointers |= {"residual_ptr": f"*{dtype}", "sums_ptr": "*fp32"}
    ints = ("images", "tiles_high", "tiles_wide", "high", "wide", "outputs", "pitch")
    signature = {**pointers, "scale": "fp32", **({"clip": "fp32"} if clip else {}), **dict.fromkeys(ints, "i32")}
    constants: dict[str, Any] = {"ROWS": 2, "RESIDUAL": True, "PART": m if part else 0, "BLOCK_M": m, "BLOCK_N": n}
    constants |= {"EARLY": early} | ({} if clip else {"clip": None})
    aligned = (*pointers, "high", "wide", "outputs", "pitch")
    kernel = _conv2d_winograd._winograd_output
    return Variant(kernel, signature, constants, aligned, wide_loads=False, chips=_chips(early))


def _winograd_products(tiles: int, outputs: int, inputs: int, early: bool = False) -> Variant:
    b = _conv2d_winograd.products(_conv2d_winograd.Chip(), tiles, inputs, outputs, False).blocks
    ints = ("height", "grid_height", "channels", "outputs", "x_pitch", "pitch", "padding", "steps")
    signature = {"x_ptr": "*fp16", "weight_ptr": "*fp16", "partial_ptr": "*fp16", "scale": "fp32"}
    signature |= dict.fromkeys(ints, "i32")
    absent = ("y_ptr", "rows_ptr", "residual_ptr", "affine_ptr", "factors_ptr", "sums_ptr", "clip")
    constants: dict[str, Any] = {**dict.fromkeys(absent), "images": 1, "width": 1, "grid_width": 1}
    constants |= {"KERNEL": 1, "PHASES": 36, "BLOCK_M": b.m, "BLOCK_N": b.n, "BLOCK_K": b.k, "SPLIT": True}
    constants |= {"EVEN": inputs % b.k == 0, "ROWS": 0, "RESIDUAL": False, "PART": 0, "AFFINE": False, "SILU": False}
    constants |= {"ONE_IMAGE": False, "PADDED": False, "PRECISION": "ieee", "EARLY": early}
    aligned = ("x_ptr", "weight_ptr", "partial_ptr", *ints[:-2])
    kernel = _conv2d_products._conv2d_fwd
    return Variant(kernel, signature, constants, aligned, b.warps, b.stages, matrix_products=True, chips=_chips(early))


def _others() -> dict[str, Variant]:
    """The passes over what the products left: bound by memory, most of it in the second-level cache."""
    t, f = "*fp16", "*fp32"
    ints = dict.fromkeys(("splits", "pixels", "image_pixels", "width", "outputs"), "i32")
    reduce = {"y_ptr": t, "partial_ptr": f, "rows_ptr": t, "residual_ptr": t, "sums_ptr": f, "scale": "fp32", **ints}
    constants: dict[str, Any] = {"BLOCK_M": 64, "BLOCK_N": 64, "PHASES": 1, "ROWS": 1, "RESIDUAL": True, "PART": 64}
    constants |= {"clip": None}
    aligned = ("y_ptr", "partial_ptr", "rows_ptr", "residual_ptr", "sums_ptr", "pixels", "image_pixels", "outputs")
    weights = {"dweight_ptr": t, "partial_ptr": f, "splits": "i32", "size": "i32", "channels": "i32"}
    ints = dict.fromkeys(("parts", "part", "outputs", "group"), "i32")
    sums = {"mean_ptr": f, "rstd_ptr": f, "sums_ptr": f, "eps": "fp32", **ints}
    norm = dict.fromkeys(("affine_ptr", "mean_ptr", "rstd_ptr"), f)
    norm |= dict.fromkeys(("weight_ptr", "bias_ptr", "scale_ptr", "shift_ptr"), t)
    norm |= dict.fromkeys(("images", "channels", "group", "pitch"), "i32")
    tail, narrow, every = _conv2d_tail, {"wide_loads": False}, {"chips": EVERY_CHIP}
    alone = {name: kind for name, kind in reduce.items() if name != "splits"} | {"partial_ptr": t}
    clipped = {**{k: v for k, v in constants.items() if k != "clip"}, "splits": 1, "PART": 0, "sums_ptr": None}
    backward = {"scaled_ptr": t, "sums_ptr": f, "dy_ptr": t, "scale": "fp32"}
    backward |= dict.fromkeys(("parts", "share", "image_pixels", "outputs"), "i32")
    whole = ("scaled_ptr", "sums_ptr", "dy_ptr", "share", "image_pixels", "outputs")
    return {
        "reduce_fp16": Variant(tail._conv2d_reduce, reduce, constants, aligned, **every),
        "finish_fp16": Variant(tail._conv2d_reduce, alone, {**constants, "splits": 1}, aligned, **every),
        "finish_fp16_clip": Variant(
            tail._conv2d_reduce,
            {name: kind for name, kind in (alone | {"clip": f[1:]}).items() if name != "sums_ptr"},
            clipped,
            tuple(name for name in aligned if name != "sums_ptr"),
            **every,
        ),
        "finish_bwd_fp16": Variant(tail._conv2d_tail_bwd, backward, {"BLOCK_M": 64, "BLOCK_N": 64}, whole, **every),
        "reduce_weight_fp16": Variant(
            _conv2d_products._conv2d_reduce_weight,
            weights,
            {"TAPS": 9, "BLOCK": 1024},
            ("partial_ptr", "size", "channels"),
        ),
        "statistics": Variant(
            tail._conv2d_statistics, sums, {"BLOCK_R": 32, "BLOCK_C": 8}, tuple(sums)[:3], **narrow, **every
        ),
        "affine_fp16": Variant(
            _conv2d_prologue._conv2d_affine,
            norm,
            {"BLOCK_C": 256, "ADAPTIVE": True},
            tuple(norm)[:7],
            **narrow,
            **every,
        ),
    }


def _boxes() -> dict[str, Variant]:
    """Those in Gluon, where Triton has it."""
    try:
        from edm_fast.kernels import _conv2d_gluon as gluon
    except (ImportError, AttributeError):
        return {}
    return {
        "boxes_fp16_32": gluon.variant(gluon.Box(4, 32)),
        "boxes_bf16_64": gluon.variant(gluon.Box(2, 64), dtype=torch.bfloat16, rows=2, clip=True),
    }


def variants() -> dict[str, Variant]:
    """By name: kernel, dtype, channels, pixels or batch and side of the images."""
    half, bf16, single = torch.float16, torch.bfloat16, torch.float32
    b64 = 64 * 1024
    return {
        "fwd_fp16_c256_b64_32": _fwd(b64, 256, 256, chips=EVERY_CHIP),
        "fwd_bf16_c256_b64_32": _fwd(b64, 256, 256, dtype=bf16),
        "fwd_tf32_c256_b64_32": _fwd(b64, 256, 256, dtype=single, precision="tf32"),
        "fwd_fp32_c256_b64_32": _fwd(b64, 256, 256, dtype=single),
        "fwd_fp16_c256_b64_8": _fwd(64 * 64, 256, 256, area=64),
        "fwd_fp16_c256_b1_8_split": _fwd(64, 256, 256, area=64),
        "fwd_tf32_c256_b1_8_split": _fwd(64, 256, 256, dtype=single, precision="tf32", area=64),
        "fwd_fp16_c192_b64_64": _fwd(4 * b64, 192, 192, area=4096),
        "fwd_fp16_c192_b64_64_clip": _fwd(4 * b64, 192, 192, area=4096, clip=True),
        "fwd_fp16_c576_b64_16_statistics": _fwd(64 * 256, 576, 576, part=True, area=256),
        "fwd_fp16_c256_b64_32_statistics": _fwd(b64, 256, 256, part=True),
        "fwd_fp16_c256_b64_32_prologue": _fwd(b64, 256, 256, part=True, affine=True, rows=2),
        "fwd_bf16_c256_b64_8_prologue": _fwd(64 * 64, 256, 256, dtype=bf16, part=True, affine=True, rows=2, area=64),
        "fwd_fp16_c64_odd_prologue": _fwd(8 * 63, 64, 64, affine=True, area=63),
        "fwd_tf32_c256_b64_32_prologue": _fwd(b64, 256, 256, dtype=single, precision="tf32", affine=True),
        "fwd_fp8_c256_b64_32": _fwd(b64, 256, 256, dtype=FLOAT8),
        "fwd_fp8_c192_b64_64": _fwd(4 * b64, 192, 192, dtype=FLOAT8, area=4096),
        "fwd_fp16_c256_768_1x1": _fwd(64 * 256, 768, 256, kernel=1),
        "fwd_fp16_c3_128": _fwd(b64, 128, 3),
        "fwd_fp16_c256_3": _fwd(b64, 3, 256),
        "upsample_fp16_c256_b64_16": _fwd(64 * 256, 256, 256, kernel=2, phases=4, area=256),
        "upsample_fp16_c256_b1_8": _fwd(64, 256, 256, kernel=2, phases=4, part=True, area=64),
        "bwd_weight_fp16_c256_b64_32": _weight(b64, 256, 256, half),
        "bwd_weight_bf16_c576_b64_16": _weight(64 * 256, 576, 576, bf16),
        "bwd_weight_tf32_c256_b64_32": _weight(b64, 256, 256, single, "tf32"),
        "bwd_weight_fp32_c256_b64_32": _weight(b64, 256, 256, single),
        "winograd_input_fp16_c256": _winograd_input(256, False),
        "winograd_input_fp16_c256_prologue": _winograd_input(256, True),
        "winograd_input_fp32_c256_prologue": _winograd_input(256, True, "fp32"),
        "winograd_products_c256_t832": _winograd_products(832, 256, 256),
        "winograd_output_fp16_c256": _winograd_output(256, False),
        "winograd_output_fp16_c256_clip": _winograd_output(256, False, clip=True),
        "winograd_output_bf16_c256_statistics": _winograd_output(256, True, "bf16"),
        "winograd_output_fp32_c256_statistics": _winograd_output(256, True, "fp32"),
        **_others(),
        "winograd_input_fp16_c256_early": _winograd_input(256, False, early=True),
        "winograd_products_c256_t832_early": _winograd_products(832, 256, 256, early=True),
        "winograd_output_fp16_c256_early": _winograd_output(256, False, early=True),
        **_boxes(),
    }
