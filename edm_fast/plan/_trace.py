"""trace(): what a network computes, as a list of calls in order, found by running it on tensors that hold no numbers.

The network itself stays the one description of what it does: its ops hand themselves to the recorder, and whatever else
it does to tensors is seen by torch's function mode. Python code around them, hooks too, runs now and never again.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from edm_fast import backend
from edm_fast.errors import UserError, one_line
from edm_fast.plan._shapes import result_of

MANY = 2**30  # images: all that there are
POSITIONAL = ("x", "noise_labels")  # how preconditioners pass them, which hooks see


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor of the traced computation: an input, or an output of a node."""

    shape: tuple[int, ...]
    name: str = ""
    dtype: torch.dtype = torch.float32


@dataclasses.dataclass(eq=False)
class Node:
    """One call. `args` and `kwargs` hold Values for computed tensors and the network's own tensors as they are.

    kind: the name of an op of edm_fast.ops, whose arguments are then all in kwargs by name, or "torch".
    """

    kind: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value]

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The call with tensors in place of values."""
        op = self.function
        return op(op.arguments(**kwargs)) if isinstance(op, backend.Op) else op(*args, **kwargs)

    def inputs(self) -> list[Value]:
        found: list[Value] = []
        map_values(lambda value: found.append(value), (self.args, self.kwargs))
        return found


@dataclasses.dataclass
class Graph:
    inputs: dict[str, Value]
    nodes: list[Node]
    output: Value


def op_calls(graph: Graph) -> Counter[str]:
    """How often each op is called in one evaluation."""
    return Counter(node.kind for node in graph.nodes if node.kind != "torch")


def map_values(function: Callable[[Value], Any], tree: Any) -> Any:
    """The same structure of lists, tuples and dicts with every Value replaced by function(value)."""
    if isinstance(tree, Value):
        return function(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_values(function, item) for item in tree)
    if isinstance(tree, dict):
        return {key: map_values(function, item) for key, item in tree.items()}
    return tree


class Recorder(TorchFunctionMode):
    """Turns calls on meta tensors into nodes."""

    def __init__(self, known: Mapping[torch.Tensor, torch.Tensor], device: torch.device) -> None:
        super().__init__()
        self.device = device
        # by identity; the tensors are kept so that no number is given twice
        self.real = {id(meta): real for meta, real in known.items()}
        self.values: dict[int, Value] = {}
        self.kept: list[Any] = [*known]
        self.nodes: list[Node] = []
        self.writes = 0  # into tensors
        self.paused = False

    def value(self, meta: torch.Tensor, name: str = "") -> Value:
        """A new Value for a meta tensor; an older one of the same tensor is no longer what it holds."""
        self.kept.append(meta)
        found = self.values[id(meta)] = Value(tuple(meta.shape), name, meta.dtype)
        self.real.pop(id(meta), None)
        return found

    def constant(self, real: torch.Tensor) -> torch.Tensor:
        """A meta tensor that stands for numbers known now."""
        meta = torch.empty(real.shape, dtype=real.dtype, device="meta")
        self.kept.append(meta)
        self.real[id(meta)] = real
        return meta

    def written(self, func: Any, tensor: torch.Tensor, *what: Any) -> None:
        """tensor[index] = values, as a new tensor of that name."""
        if func != torch.Tensor.__setitem__ or tensor._is_view():
            raise UserError("a part of a tensor, or its data, is replaced; expected a new tensor, as of torch.where")
        func(tensor, *what)
        self.writes += 1
        self.record("torch", with_items, (tensor, *what), {}, tensor, inplace=True)

    def watched(self, hook: Callable[..., Any], where: str, before: bool) -> Callable[..., Any]:
        """A hook that must have an effect on what is computed; one `before` a forward may set attributes for it."""

        def call(*args: Any, **kwargs: Any) -> Any:
            done = len(self.nodes) if before else self.writes
            result = hook(*args, **kwargs)
            if result is None and done == (len(self.nodes) if before else self.writes):
                raise UserError(
                    f"a hook of {where or 'the raw network'} only looks on, but an accelerated network keeps what "
                    "hooks change and calls them no more; expected the network itself, or no such hook"
                )
            return result

        return call

    def stand_ins(self, tree: Any) -> Any:
        """The same structure with meta tensors for tensors that hold numbers, such as those a hook brings along."""
        if isinstance(tree, torch.Tensor):
            return tree if tree.is_meta else self.constant(tree.detach())
        if isinstance(tree, (list, tuple)):
            return type(tree)(self.stand_ins(item) for item in tree)
        return {key: self.stand_ins(item) for key, item in tree.items()} if isinstance(tree, dict) else tree

    def described(self, tree: Any) -> Any:
        if isinstance(tree, torch.Tensor):
            known = self.values.get(id(tree))
            return known if known is not None else self.real.get(id(tree), tree)
        if isinstance(tree, (list, tuple)):
            return type(tree)(self.described(item) for item in tree)
        if isinstance(tree, dict):
            return {key: self.described(item) for key, item in tree.items()}
        if isinstance(tree, torch.device) and tree.type == "meta":
            return self.device
        return tree

    def record(self, kind: str, function: Any, args: Any, kwargs: Any, result: Any, inplace: bool = False) -> Any:
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        described = self.described(args), self.described(kwargs)  # before the outputs take over their names
        if not inplace and all(id(out) in self.values or id(out) in self.real for out in outputs):
            return result  # the call gave back what it was given, such as a cast to the same type
        self.nodes.append(Node(kind, function, *described, [self.value(out) for out in outputs]))
        return result

    def op(self, op: backend.Op, args: Any) -> Any:
        self.paused = True
        try:
            result = (op.like or op.reference)(args)
        finally:
            self.paused = False
        return self.record(op.name, op, (), args._asdict(), result)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "arange" and not self.paused and kwargs.get("device") == torch.device("meta"):
            return self.constant(func(*args, **{**kwargs, "device": self.device}))
        writes = name.endswith("_") and not name.endswith("__") or name.startswith("__i")
        if not self.paused and _mixed(args, kwargs):  # but what is written into stays, so that torch complains of it
            args, kwargs = (*args[:writes], *self.stand_ins(args[writes:])), self.stand_ins(kwargs)
        if name in ("__setitem__", "__set__") and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            return self.written(func, *args)
        found = result_of(func, args, kwargs)
        result = found if found is not None else func(*args, **kwargs)
        tensors = [result] if isinstance(result, torch.Tensor) else result
        if self.paused or not isinstance(tensors, (list, tuple)) or not tensors:
            return result
        if not all(isinstance(item, torch.Tensor) for item in tensors):
            return result
        inplace = bool(args) and result is args[0] and writes
        if inplace and args[0]._is_view():
            raise UserError("a part of a tensor is written into; expected a new tensor, as of torch.where")
        self.writes += inplace
        return self.record("torch", func, args, kwargs, result, inplace)


def with_items(tensor: torch.Tensor, index: Any, values: Any) -> torch.Tensor:
    """The tensor after tensor[index] = values."""
    changed = tensor.clone()
    changed[index] = values
    return changed


def _mixed(*trees: Any) -> bool:
    """Whether there are tensors with and without numbers."""
    return len({tensor.is_meta for tensor in backend.tensors(trees)}) == 2


def trace(module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The graph of module(**inputs) for float32 inputs of these shapes, in inference, on the device of the module."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    metas = {name: tensor.detach().to("meta") for name, tensor in own.items()}
    device = next(iter(own.values())).device
    recorder = Recorder({metas[name]: tensor.detach() for name, tensor in own.items()}, device)
    inputs = {name: torch.empty(shape, dtype=torch.float32, device="meta") for name, shape in shapes.items()}
    values = {name: recorder.value(tensor, name) for name, tensor in inputs.items()}
    positional = [inputs.pop(name) for name in POSITIONAL if name in inputs]
    try:
        # a copy around the meta tensors, not these put in place for a moment: other threads may be using the module
        twin = copy.deepcopy(module, {id(tensor): metas[name] for name, tensor in own.items()})
        for where, part in twin.named_modules():
            for name in ("_forward_hooks", "_forward_pre_hooks"):
                for key, hook in (hooks := getattr(part, name)).items():
                    hooks[key] = recorder.watched(hook, where, before="pre" in name)
        with torch.no_grad(), backend.recording(recorder.op), recorder:
            result = twin(*positional, **inputs)
        output = recorder.values[id(result)]
    except UserError as error:
        raise UserError(f"accelerate() cannot follow this network: {error}") from error
    except Exception as error:
        raise UserError(
            f"accelerate() cannot follow this network, whose layers, hooks and replaced methods may compute anything "
            f"but not read numbers of tensors ({type(error).__name__}: {one_line(error)}); expected the network itself"
        ) from error
    return Graph(values, _needed(_folded(recorder.nodes), output), output)


def _folded(nodes: list[Node]) -> list[Node]:
    """The nodes that depend on an input; what is made of the network's own tensors alone is computed now."""
    constant: dict[Value, torch.Tensor] = {}
    kept = []
    with torch.no_grad():
        for node in nodes:
            node.args, node.kwargs = map_values(lambda value: constant.get(value, value), (node.args, node.kwargs))
            if node.inputs():
                kept.append(node)
                continue
            result = node.run(node.args, node.kwargs)
            constant.update(zip(node.outputs, [result] if isinstance(result, torch.Tensor) else result))
    return kept


def _needed(nodes: list[Node], output: Value) -> list[Node]:
    """The nodes the output depends on."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            kept.append(node)
            wanted.update(node.inputs())
    return kept[::-1]
