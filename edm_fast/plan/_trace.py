"""trace(): what a network computes, as a list of calls in order, found by running it on tensors that hold no numbers.

The network itself stays the one description of what it does: its ops hand themselves to the recorder, and whatever else
it does to tensors is seen by torch's function mode. Python code around them, hooks too, runs now and never again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from edm_fast import backend
from edm_fast.errors import UserError, one_line
from edm_fast.plan._graph import Graph, Node, TorchArgs, Value, map_leaves, map_tensors, map_values
from edm_fast.plan._shapes import result_of

POSITIONAL = ("x", "noise_labels")  # how preconditioners pass them, which hooks see


class Recorder(TorchFunctionMode):
    """Turns calls on meta tensors into nodes."""

    def __init__(self, known: Mapping[torch.Tensor, torch.Tensor], device: torch.device) -> None:
        super().__init__()
        self.device = device
        # by identity; `metas` keeps the tensors alive, so that none gets the identity of another
        self.real = {id(meta): real for meta, real in known.items()}
        self.values: dict[int, Value] = {}
        self.metas: list[Any] = [*known]
        self.nodes: list[Node] = []
        self.writes = 0  # into tensors
        self.paused = False

    def value(self, meta: torch.Tensor, name: str = "") -> Value:
        """A new Value for a meta tensor; an older one of the same tensor is no longer what it holds."""
        self.metas.append(meta)
        found = self.values[id(meta)] = Value(tuple(meta.shape), name, meta.dtype)
        self.real.pop(id(meta), None)
        return found

    def constant(self, real: torch.Tensor) -> torch.Tensor:
        """A meta tensor that stands for numbers known now."""
        meta = torch.empty(real.shape, dtype=real.dtype, device="meta")
        self.metas.append(meta)
        self.real[id(meta)] = real
        return meta

    def written(self, func: Any, tensor: torch.Tensor, *what: Any) -> None:
        """tensor[index] = values, as a new tensor of that name."""
        if func != torch.Tensor.__setitem__ or tensor._is_view():
            raise UserError("a part of a tensor, or its data, is replaced; expected a new tensor, as of torch.where")
        func(tensor, *what)
        self.writes += 1
        self.record(with_items, TorchArgs((tensor, *what), {}), tensor, inplace=True)

    def with_effect(self, hook: Callable[..., Any], where: str, before: bool) -> Callable[..., Any]:
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
        return map_tensors(lambda tensor: tensor if tensor.is_meta else self.constant(tensor.detach()), tree)

    def described(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            known = self.values.get(id(leaf))
            return known if known is not None else self.real.get(id(leaf), leaf)
        return self.device if isinstance(leaf, torch.device) and leaf.type == "meta" else leaf

    def record(self, function: Any, args: Any, result: Any, inplace: bool = False) -> Any:
        outputs = [result] if isinstance(result, torch.Tensor) else list(result)
        described = map_leaves(self.described, args)  # before the outputs take over their names
        if not inplace and all(id(out) in self.values or id(out) in self.real for out in outputs):
            return result  # the call gave back what it was given, such as a cast to the same type
        self.nodes.append(Node(function, described, [self.value(out) for out in outputs]))
        return result

    def op(self, op: backend.Op, args: Any) -> Any:
        self.paused = True
        try:
            result = (op.like or op.reference)(args)
        finally:
            self.paused = False
        return self.record(op, args, result)

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
        inplace = bool(args) and result is args[0] and (writes or bool(kwargs.get("inplace")))
        kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}  # a new tensor holds the result
        if inplace and args[0]._is_view():
            raise UserError("a part of a tensor is written into; expected a new tensor, as of torch.where")
        self.writes += inplace
        return self.record(func, TorchArgs(args, kwargs), result, inplace)


def with_items(tensor: torch.Tensor, index: Any, values: Any) -> torch.Tensor:
    """The tensor after tensor[index] = values."""
    changed = tensor.clone()
    changed[index] = values
    return changed


def _mixed(*trees: Any) -> bool:
    """Whether there are tensors with and without numbers."""
    return len({tensor.is_meta for tensor in backend.tensors(trees)}) == 2


def trace(
    module: torch.nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    made: MutableMapping[Hashable, torch.Tensor] | None = None,
) -> Graph:
    """The graph of module(**inputs) for float32 inputs of these shapes, in inference, on the device of the module.

    made: what earlier traces of the module have made of its own tensors, such as normalised weights; they are added.
    """
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    metas = {name: tensor.detach().to("meta") for name, tensor in own.items()}
    device = next(iter(own.values())).device
    real = {name: tensor.detach() for name, tensor in own.items()}
    recorder = Recorder({metas[name]: tensor for name, tensor in real.items()}, device)
    inputs = {name: torch.empty(shape, dtype=torch.float32, device="meta") for name, shape in shapes.items()}
    values = {name: recorder.value(tensor, name) for name, tensor in inputs.items()}
    positional = _positional(inputs)
    try:
        # a copy around the meta tensors, not these put in place for a moment: other threads may be using the module
        twin = copy.deepcopy(module, {id(tensor): metas[name] for name, tensor in own.items()})
        for where, part in twin.named_modules():
            for name in ("_forward_hooks", "_forward_pre_hooks"):
                for key, hook in (hooks := getattr(part, name)).items():
                    hooks[key] = recorder.with_effect(hook, where, before="pre" in name)
        with torch.no_grad(), backend.recording(recorder.op), recorder:
            result = twin(*positional, **inputs)
        output = recorder.values[id(result)]
    except UserError as error:
        raise UserError(f"accelerate() cannot follow this network: {error}") from error
    except Exception as error:
        _check_takes(module, shapes, device)
        raise UserError(
            f"accelerate() cannot follow this network, whose layers, hooks and replaced methods may compute anything "
            f"but not read numbers of tensors ({type(error).__name__}: {one_line(error)}); expected the network itself"
        ) from error
    # tensors made in inference mode count no versions
    names = {id(t): (name, t.data_ptr(), None if t.is_inference() else t._version) for name, t in real.items()}
    nodes = _needed(_folded(recorder.nodes, names, {} if made is None else made), output)
    for node in nodes:
        if isinstance(node.function, backend.Op) and any(isinstance(w, Value) for w in _weights(node.args)):
            raise UserError(
                f"accelerate() cannot follow this network: a weight of {node.function.name} depends on its inputs; "
                "expected the network itself"
            )
    return Graph(values, nodes, output)


def _positional(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Those that are passed by position, taken out of `inputs`."""
    return [inputs.pop(name) for name in POSITIONAL if name in inputs]


def _check_takes(module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> None:
    """UserError if the module itself takes no inputs of these shapes."""
    inputs = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
    positional = _positional(inputs)
    try:
        with torch.no_grad():
            module(*positional, **inputs)
    except Exception as error:
        given = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise UserError(
            f"the network itself takes no inputs of these shapes: {given} ({type(error).__name__}: {one_line(error)})"
        ) from error


def _weights(args: Any) -> list[Any]:
    """The arguments of an op that plans prepare once."""
    return [getattr(args, name, None) for name in ("weight", "bias", "f")]


def _folded(
    nodes: list[Node], names: Mapping[int, Hashable], made: MutableMapping[Hashable, torch.Tensor]
) -> list[Node]:
    """The nodes that depend on an input; what is made of the network's own tensors alone is computed, if not before.

    names: of these tensors, by identity. Results are known by their calls, and by the places of these among all, as
    random ones differ from call to call.
    """
    keys: dict[Value, Hashable] = {}

    def key(leaf: Any) -> Hashable:
        if isinstance(leaf, torch.Tensor):
            return names.get(id(leaf), object())  # any other tensor is met this once
        return keys[leaf] if isinstance(leaf, Value) else repr(leaf)

    constant, dependent = [], []
    for place, node in enumerate(nodes):
        if any(value not in keys for value in node.inputs()):
            dependent.append(node)
            continue
        constant.append(node)
        leaves: list[Any] = []
        map_leaves(leaves.append, node.args)
        keys |= {value: (place, index, node.function, *map(key, leaves)) for index, value in enumerate(node.outputs)}
    read = dict.fromkeys(value for node in dependent for value in node.inputs() if value in keys)
    found = {value: made.get(keys[value]) for value in read}
    results = {value: tensor for value, tensor in found.items() if tensor is not None}
    wanted, missing = set(read), []
    for node in reversed(constant):
        if any(value in wanted and value not in results for value in node.outputs):
            missing.append(node)
            wanted.update(node.inputs())
    with torch.no_grad():
        for node in reversed(missing):
            result = node.run(map_values(results.__getitem__, node.args))
            results.update(zip(node.outputs, [result] if isinstance(result, torch.Tensor) else result))
    made.update((keys[value], results[value]) for value in read)
    for node in dependent:
        node.args = map_values(lambda value: results.get(value, value), node.args)
    return dependent


def _needed(nodes: list[Node], output: Value) -> list[Node]:
    """The nodes the output depends on."""
    wanted, needed = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            needed.append(node)
            wanted.update(node.inputs())
    return needed[::-1]
