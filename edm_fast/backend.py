"""The Op class: picks an implementation for each call and says why. use_backend() forces one, explain() reports.

An op has one record of arguments, one reference (the definition in plain torch) and any number of other
implementations, tried in order of preference.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from edm_fast.errors import UserError

NAMES = ("auto", "reference", "cpu", "triton", "cuda")


class BackendError(UserError):
    """A backend was requested by name and cannot take the call."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute an op, on tensors of one device type. Its functions take the op's record of arguments.

    `reason` says in one phrase why it cannot take a call, `slower` why it could but would be no faster; a backend that
    was requested by name is not asked the latter. Its error against float64 stays within `budget` times that of the
    reference, and a floor of four roundings.

    CPU plans run it by lower(result, args, scratch), the call bound to float32 memory, images channels last, and called
    with the number of threads; `scratch` has the shape that scratch(args) tells.
    """

    name: str
    device: str  # "cpu", "cuda", or "any"
    forward: Callable[[Any], Any]
    reason: Callable[[Any], str | None] | None = None  # None: it can take every call, as the reference can
    slower: Callable[[Any], str | None] | None = None
    differentiable: bool = False
    budget: float = 2.0
    lower: Callable[..., Callable[[int], None]] | None = None
    scratch: Callable[[Any], tuple[int, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a call runs on, and why every other implementation was passed over."""

    op: str
    backend: str
    reasons: dict[str, str]
    calls: int = 0

    def __str__(self) -> str:
        names: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            names.setdefault(reason, []).append(name)
        why = "; ".join(f"{', '.join(found)}: {reason}" for reason, found in names.items())
        calls = f" ({self.calls} calls)" if self.calls else ""
        return f"{self.op}: {self.backend}{calls} | {why or 'the first choice'}"


def _checked(name: str, where: str = "") -> str:
    if name not in NAMES:
        raise UserError(f"unknown backend {name!r}{where}; expected one of {', '.join(NAMES)}")
    return name


# process-wide, as torch's own backend switches: threads of one program see the same choice. Replaced as a whole, never
# changed in place, so that no thread finds it half written
ENVIRONMENT = " in EDM_FAST_BACKEND"  # all others are checked when they are asked for
_requested: dict[str | None, str] = {None: os.environ.get("EDM_FAST_BACKEND") or "auto"}
_ops: dict[str, Op] = {}


def requested() -> dict[str, str]:
    """The backends asked for: of all ops under "", then of single ops by name; UserError if there is no such one."""
    _checked(_requested[None], ENVIRONMENT)
    return {name or "": backend for name, backend in _requested.items()}


class use_backend:
    """Run every op (or only the named `ops`) on one backend: "auto", "reference", "cpu", "triton" or "cuda".

    Takes effect at once; as a context manager it is undone at the end of the block. An explicit request never falls
    back: an op that cannot honour it raises BackendError with the reason.

    >>> with use_backend("reference"):
    ...     images = edm_sampler(net, latents)
    """

    def __init__(self, name: str, *ops: str) -> None:
        global _requested
        _checked(name)
        for op in ops:
            if op not in _ops:
                raise UserError(f"unknown op {op!r}; expected one of {', '.join(_ops)}")
        self._saved = _requested
        _requested = {**_requested, **dict.fromkeys(ops, name)} if ops else {None: name}

    def __enter__(self) -> use_backend:
        return self

    def __exit__(self, *exc: object) -> None:
        global _requested
        _requested = self._saved


def transformed(*tensors: torch.Tensor) -> bool:
    """Whether torch.func or forward-mode differentiation is at work, whose tensors hide what they carry.

    Or whether one of `tensors` was batched by torch.autograd.grad(is_grads_batched=True), which is neither.
    """
    if torch.compiler.is_compiling():
        return False
    # no public question exists for any of them
    if torch.autograd.forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return any([torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors])


def traced(*tensors: torch.Tensor) -> bool:
    """Whether a dispatch mode or a trace is at work, or one of `tensors` is of a subclass, which only torch's own
    operations are seen by."""
    # no public question exists for modes either
    modes = torch._C._len_torch_dispatch_stack() or torch._ops._len_torch_dispatch_stack_pre_dispatch()
    if modes or torch.jit.is_tracing():
        return True
    return any(type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ for tensor in tensors)


def tensors(values: Any) -> Iterator[torch.Tensor]:
    """Those among the values, and in lists, tuples and dicts among them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(value)
        elif isinstance(value, dict):
            yield from tensors(value.values())


# what ops are handed to instead of running, while a plan looks at a network (see `recording`)
_recorder: contextvars.ContextVar[Callable[..., Any] | None] = contextvars.ContextVar("recorder", default=None)


@contextlib.contextmanager
def recording(recorder: Callable[..., Any] | None) -> Iterator[None]:
    """Inside the block every op call of this thread, once checked, becomes recorder(op, args)."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def _formula_reason() -> str | None:
    """Why nothing but the formula in plain torch can take any call now, or None."""
    return "torch.func and forward-mode derivatives need the plain formula" if transformed() else None


class Op:
    """A function with one definition (`reference`) and several implementations, by name in order of preference.

    `arguments` is the record, a NamedTuple, that a call and every function of the op take. `check(args)` raises
    UserError on bad input before anything runs; implementations get checked input only. `like(args)`, if given, is an
    empty tensor as the result would be, for inputs that hold no numbers; `cases()` gives the rows of its case table.
    """

    def __init__(
        self,
        name: str,
        arguments: Callable[..., Any],
        reference: Callable[[Any], Any],
        check: Callable[[Any], None],
        *implementations: Implementation,
        like: Callable[[Any], torch.Tensor] | None = None,
        cases: Callable[[], Iterable[Any]] = tuple,
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.reference = reference
        self.check = check
        self.like, self.cases = like, cases
        names = [implementation.name for implementation in implementations]
        last = Implementation("reference", "any", reference, differentiable=True)
        self.implementations = {i.name: i for i in (*implementations, last)}
        # of each request by name: why no other backend was tried
        self._others = {
            request: {name: f"{request!r} was asked for by name" for name in names if name != request}
            for request in NAMES
        }
        self._calls: dict[str, int] = {}
        self._reasons: dict[str, dict[str, str]] = {}
        _ops[name] = self

    def choose(self, args: Any) -> Choice:
        """The backend this call would run on. Raises BackendError if an explicit request cannot be honoured."""
        implementation, reasons = self._select(args)
        return Choice(self.name, implementation.name, reasons)

    def _select(self, args: Any) -> tuple[Implementation, dict[str, str]]:
        """The implementation for a call, and why others were passed over."""
        request = _requested.get(self.name, _requested[None])
        if request == "auto":
            reasons: dict[str, str] = {}
            formula = _formula_reason()
            for name, implementation in self.implementations.items():
                reason = self._reason(implementation, args, formula)
                if reason is None and implementation.slower is not None:
                    reason = implementation.slower(args)
                if reason is None:
                    return implementation, reasons
                reasons[name] = reason
        found = self.implementations.get(_checked(request, ENVIRONMENT))
        reason = "this op has no such implementation" if found is None else self._reason(found, args, _formula_reason())
        if found is None or reason is not None:
            raise BackendError(
                f"{self.name}: backend {request!r} was requested, but {reason}; "
                "expected 'auto' (no EDM_FAST_BACKEND) or 'reference' for this op"
            )
        return found, self._others[request]

    def _reason(self, implementation: Implementation, args: Any, formula: str | None) -> str | None:
        if implementation.reason is None:
            return None
        reason = formula or implementation.reason(args)
        # last, as most implementations are of another device
        if reason is None and not implementation.differentiable and torch.is_grad_enabled():
            if any(t.requires_grad for t in tensors(args)):
                return "it has no backward and a gradient is needed"
        return reason

    def __call__(self, args: Any) -> Any:
        self.check(args)
        if torch.compiler.is_compiling():
            return self._select(args)[0].forward(args)
        if (recorder := _recorder.get()) is not None:
            return recorder(self, args)
        implementation, reasons = self._select(args)
        self.note(implementation.name, reasons)
        return implementation.forward(args)

    def reference_first(self) -> list[Implementation]:
        """The implementations with the reference, which others are compared with, before them."""
        return sorted(self.implementations.values(), key=lambda implementation: implementation.name != "reference")

    def note(self, backend: str, reasons: dict[str, str], calls: int = 1) -> None:
        """Remember, for `explain`, that the op ran on this backend and why on no other."""
        self._reasons[backend] = reasons  # first: another thread's explain() looks for those of every call
        self._calls[backend] = self._calls.get(backend, 0) + calls

    def explain(self) -> list[Choice]:
        """One Choice per backend that has run since the last reset, with the reasons of its latest call."""
        return [Choice(self.name, name, self._reasons[name], calls) for name, calls in list(self._calls.items())]

    def reset(self) -> None:
        self._calls.clear()


def explain(reset: bool = False) -> list[Choice]:
    """What each op has run on so far, how often, and why not on something else. Print the items to read them."""
    choices = [choice for op in _ops.values() for choice in op.explain()]
    if reset:
        for op in _ops.values():
            op.reset()
    return choices


def ops() -> dict[str, Op]:
    """All ops by name."""
    return dict(_ops)
