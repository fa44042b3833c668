"""The Op class: picks an implementation for each call and says why. use_backend() forces one, explain() reports.

Each op has a reference (plain torch, the definition) and any number of candidates, tried in the order given. A
candidate carries a `reason` function: None if it can take this call, otherwise one phrase saying why not.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from edm_fast.errors import UserError

NAMES = ("auto", "reference", "cpu", "triton", "cuda")


class BackendError(UserError):
    """A backend was requested by name and cannot take the call."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One implementation of an op; its functions share the signature of the op's reference.

    `reason` says why it cannot take a call; `slower` why it could but would not be faster, and is not asked where the
    backend was requested by name. Its error against float64 stays within `budget` times that of the reference, and a
    floor of four roundings.
    """

    forward: Callable[..., Any]
    reason: Callable[..., str | None]
    differentiable: bool = False
    slower: Callable[..., str | None] | None = None
    budget: float = 2.0


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
    return any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)


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
    """Inside the block every op call of this thread, once checked, becomes recorder(op, *args, **kwargs)."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


class Op:
    """A function with one definition (`reference`) and several implementations.

    `check(*args)` raises UserError on bad input before anything runs; candidates get checked input only. `like(*args)`,
    if given, is an empty tensor as the result would be, for inputs that hold no numbers.
    """

    def __init__(
        self,
        name: str,
        reference: Callable[..., Any],
        check: Callable[..., None],
        like: Callable[..., torch.Tensor] | None = None,
        **candidates: Candidate,
    ) -> None:
        self.name = name
        self.reference = reference
        self.check = check
        self.like = like
        self.candidates = candidates
        self.__doc__ = reference.__doc__
        # of each request by name: why no other backend was tried
        self._others = {
            request: {name: f"{request!r} was asked for by name" for name in candidates if name != request}
            for request in NAMES
        }
        self._calls: dict[str, int] = {}
        self._reasons: dict[str, dict[str, str]] = {}
        _ops[name] = self

    def choose(self, *args: Any, **kwargs: Any) -> Choice:
        """The backend this call would run on. Raises BackendError if an explicit request cannot be honoured."""
        request = _requested.get(self.name, _requested[None])
        if request == "reference":
            return Choice(self.name, "reference", self._others[request])
        _checked(request, ENVIRONMENT)
        if request != "auto":
            reason = self._reason(request, args, kwargs)
            if reason is not None:
                raise BackendError(
                    f"{self.name}: backend {request!r} was requested, but {reason}; "
                    "expected 'auto' (no EDM_FAST_BACKEND) or 'reference' for this op"
                )
            return Choice(self.name, request, self._others[request])
        reasons: dict[str, str] = {}
        for name, candidate in self.candidates.items():
            reason = self._reason(name, args, kwargs)
            if reason is None and candidate.slower is not None:
                reason = candidate.slower(*args, **kwargs)
            if reason is None:
                return Choice(self.name, name, reasons)
            reasons[name] = reason
        return Choice(self.name, "reference", reasons)

    def _reason(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        candidate = self.candidates.get(name)
        if candidate is None:
            return "this op has no such implementation"
        if not candidate.differentiable and torch.is_grad_enabled():
            if any(t.requires_grad for t in tensors((*args, *kwargs.values()))):
                return "it has no backward and a gradient is needed"
        if transformed():
            return "torch.func and forward-mode derivatives need the plain formula"
        return candidate.reason(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.check(*args, **kwargs)
        if not torch.compiler.is_compiling() and (recorder := _recorder.get()) is not None:
            return recorder(self, *args, **kwargs)
        choice = self.choose(*args, **kwargs)
        if not torch.compiler.is_compiling():
            self.note(choice.backend, choice.reasons)
        if choice.backend == "reference":
            return self.reference(*args, **kwargs)
        return self.candidates[choice.backend].forward(*args, **kwargs)

    def note(self, backend: str, reasons: dict[str, str], calls: int = 1) -> None:
        """Remember, for `explain`, that the op ran on this backend and why on no other."""
        self._calls[backend] = self._calls.get(backend, 0) + calls
        self._reasons[backend] = reasons

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
