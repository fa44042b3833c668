"""solver_update in Triton: half precision, float32 and float64; coefficients may be tensors of one element."""

from __future__ import annotations

from edm_fast.backend import Implementation
from edm_fast.ops import _triton
from edm_fast.ops.solver_update import _kernel
from edm_fast.ops.solver_update.reference import Result, SolverUpdateArgs


def reason(args: SolverUpdateArgs) -> str | None:
    # in this order, as on a CPU the first is soon done
    why = _triton.reason(*args.tensors(), dtypes=_triton.DTYPES64) or _kernel.one_pass_reason(args, on_device=True)
    return why or _kernel.common_reason(args)


def slower(args: SolverUpdateArgs) -> str | None:
    return _triton.slower(args.base)


def forward(args: SolverUpdateArgs) -> Result:
    """One pass over memory; bit-identical to the reference, as each operation rounds on its own in the same order."""
    from edm_fast.kernels import solver_update as kernel  # late: a missing triton is a reason, not a crash

    base, x, D, noise, terms, weights, *_ = args
    y, d = _kernel.results(args)
    kernel.forward(y, d, base, x, D, noise, terms, weights, args.numbers())
    return y, d


triton = Implementation("triton", "cuda", forward, reason, slower)
