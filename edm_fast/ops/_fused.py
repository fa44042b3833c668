"""Fused kernels as torch ops with derivatives.

Every implementation that runs on a kernel of ours is one op of torch.ops.edm_fast, which torch.compile and fake tensors
see as one node. Its arguments are the fields of the record, in their order. autograd.Function stands outside of it:
that costs less per call than a formula registered with torch.library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

import torch

from edm_fast.backend import transformed

_library = torch.library.Library("edm_fast", "FRAGMENT")
_OPTIONAL = torch.Tensor | None
_TYPES: dict[Any, str] = {torch.Tensor: "Tensor", _OPTIONAL: "Tensor?", int: "int", float: "float", bool: "bool"}
_TYPES |= {int | None: "int?", float | None: "float?"}


def torch_op(
    name: str,
    device: str,
    arguments: Any,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    before: Sequence[str] = (),
    returns: str = "Tensor",
) -> Callable[..., Any]:
    """torch.ops.edm_fast.NAME on CPUs ("cpu") or GPUs ("cuda"; of Triton "cuda cpu", for its interpreter).

    function(*tensors, args) takes the tensors named in `before` and a record; `fake` gives its results without numbers.
    """
    fields = [f"{_TYPES[hint]} {field}" for field, hint in get_type_hints(arguments).items()]
    _library.define(f"{name}({', '.join([*(f'Tensor {tensor}' for tensor in before), *fields])}) -> {returns}")
    count = len(before)

    def on_record(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *flat: call(*flat[:count], arguments(*flat[count:]))

    for key in device.upper().split():
        _library.impl(name, on_record(function), key)
    torch.library.register_fake(f"edm_fast::{name}", on_record(fake), lib=_library)
    return getattr(torch.ops.edm_fast, name).default


def _replaced(args: Sequence[Any], places: Sequence[int], tensors: Sequence[Any]) -> list[Any]:
    """The arguments with other tensors in the places of theirs."""
    flat = list(args)
    for place, tensor in zip(places, tensors):
        flat[place] = tensor
    return flat


def _in_order(gradients: Callable[..., dict[str, Any]], fields: Sequence[str]) -> Callable[..., list[Any]]:
    """The same gradients, one for each field of the record, in the dtype of its tensor; None for numbers."""

    def on_kernel(args: Any, needs: Any, dy: torch.Tensor, *more: torch.Tensor) -> list[Any]:
        found = gradients(args, needs, dy, *more)
        for name, gradient in found.items():
            dtype = getattr(args, name).dtype
            if gradient.dtype != dtype:
                found[name] = gradient.to(dtype)
        return [found.get(name) for name in fields]

    return on_kernel


def _through_reference(reference: Callable[[Any], torch.Tensor], args: Any, places: list[int], dy: Any) -> list[Any]:
    """Gradients, one for each field; dy may carry a tangent, or be one of a batch."""
    own = [place for place in places if args[place] is not None]

    def formula(*tensors: torch.Tensor) -> torch.Tensor:
        return reference(type(args)(*_replaced(args, own, tensors)))

    with torch.enable_grad():  # or torch has no forward mode for these backward functions
        found = torch.func.vjp(formula, *[args[place] for place in own])[1](dy)
    # views taken outside keep the tangent but no graph
    return _replaced([None] * len(args), own, [g.view_as(g) for g in found])


def _differentiable_gradients(
    arguments: Any, reference: Callable[[Any], torch.Tensor], places: list[int], on_kernel: Callable[..., list[Any]]
) -> Any:
    """The gradients `on_kernel` as a function whose own backward goes through the reference."""

    class Gradients(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, needs: Any, count: int, dy: torch.Tensor, *rest: Any) -> tuple[Any, ...]:
            args = rest[count:]
            ctx.save_for_backward(dy, *[args[place] for place in places])
            ctx.rest, ctx.count = _replaced(args, places, [None] * len(places)), count
            return tuple(on_kernel(arguments(*args), needs, dy, *rest[:count]))

        @staticmethod
        def backward(ctx: Any, *dds: Any) -> Any:
            saved = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors]
            with torch.enable_grad():
                # aliases, so that a tensor that was computed from another one counts once
                aliases: list[Any] = [None if t is None else t.view_as(t) for t in saved]
                dy, *tensors = aliases
                inputs = [t for t, place in zip(tensors, places) if dds[place] is not None]
                y = reference(arguments(*_replaced(ctx.rest, places, tensors)))
                first = torch.autograd.grad(y, inputs, dy, create_graph=True)
            wanted, outer = [t for t in aliases if t is not None], [dd for dd in dds if dd is not None]
            again = torch.is_grad_enabled()
            second = iter(torch.autograd.grad(first, wanted, outer, create_graph=again, allow_unused=True))
            ddy, *found = [None if t is None else next(second) for t in aliases]
            return None, None, ddy, *[None] * ctx.count, *_replaced([None] * len(ctx.rest), places, found)

    return Gradients


def _divided(
    args: Sequence[Any], readers: list[tuple[int, list[int]]], needs: Sequence[bool]
) -> tuple[list[Any], list[Any], list[Any]]:
    """The tensors whose numbers a gradient needs, shape and dtype of the others, and the arguments without tensors."""
    kept: list[Any] = []
    shapes: list[Any] = []
    rest = list(args)
    for place, of in readers:
        tensor, rest[place] = args[place], None
        keep = True in [needs[i] for i in of]
        kept.append(tensor if keep else None)
        shapes.append(None if keep or tensor is None else (list(tensor.shape), tensor.dtype))
    return kept, shapes, rest


def differentiable(
    arguments: Any,
    reference: Callable[[Any], torch.Tensor],
    forward: Callable[..., Any],
    gradients: Callable[..., dict[str, Any]],
    saved: Mapping[str, Sequence[str]],
    keeps_result: bool = False,
) -> Callable[[Any], torch.Tensor]:
    """A function of the record with derivatives of any order.

    forward(*args) is a torch op; what it returns beside the result, and with `keeps_result` the result before it, is
    handed to gradients(args, needs, dy, *more). This gives gradients by the names of arguments, those that are True in
    `needs` at least. `saved`: the tensors whose numbers gradients depend on, each with the arguments that these are the
    gradients of. Of others, and where those need none, the shape alone is right in `args`. Second derivatives,
    torch.func and forward mode go through the reference.
    """
    fields = arguments._fields
    names = [name for name, hint in get_type_hints(arguments).items() if hint in (torch.Tensor, _OPTIONAL)]
    places, count = [fields.index(name) for name in names], len(names)
    # of each tensor its place, and those of the arguments whose gradients need its numbers
    readers = [(fields.index(name), [fields.index(field) for field in saved.get(name, ())]) for name in names]

    on_kernel = _in_order(gradients, fields)
    Gradients = _differentiable_gradients(arguments, reference, places, on_kernel)

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> torch.Tensor:
            found = forward(*args)
            results = found if isinstance(found, tuple) else (found,)
            kept, ctx.shapes, ctx.rest = _divided(args, readers, ctx.needs_input_grad)
            ctx.save_for_backward(*kept, *results[0 if keeps_result else 1 :])
            return results[0]

        @staticmethod
        def backward(ctx: Any, dy: torch.Tensor) -> Any:
            unpacked = ctx.saved_tensors  # once: torch does it anew each time
            more, flat = unpacked[count:], ctx.rest[:]
            for place, tensor, shape in zip(places, unpacked, ctx.shapes):
                if shape is not None:
                    tensor = dy.new_empty_strided(shape[0], [0] * len(shape[0]), dtype=shape[1])
                flat[place] = tensor
            args = arguments(*flat)
            needs = arguments(*ctx.needs_input_grad)
            if transformed():  # a kernel would lose what `dy` carries
                found = _through_reference(reference, args, places, dy)
            elif torch.is_grad_enabled():
                found = Gradients.apply(needs, len(more), dy, *more, *args)
            else:
                found = on_kernel(args, needs, dy, *more)
            return tuple(found)

    def run(args: Any) -> torch.Tensor:
        if torch.is_grad_enabled() and any([args[i] is not None and args[i].requires_grad for i in places]):
            return Fused.apply(*args)
        found = forward(*args)
        return found[0] if isinstance(found, tuple) else found

    return run
