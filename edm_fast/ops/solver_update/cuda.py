"""solver_update on GPUs in CUDA C++: float32 and float64."""

from __future__ import annotations

from edm_fast import native
from edm_fast.backend import Implementation
from edm_fast.ops.solver_update import _kernel
from edm_fast.ops.solver_update.reference import SolverUpdateArgs


def reason(args: SolverUpdateArgs) -> str | None:
    if args.base.device.type != "cuda":
        return "it needs CUDA tensors"
    why = native.cuda_reason() or _kernel.native_reason(args.base) or _kernel.one_pass_reason(args, on_device=False)
    return why or _kernel.common_reason(args)


cuda = Implementation("cuda", "cuda", _kernel.native_forward, reason)
