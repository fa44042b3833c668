"""How far a whole network on a CPU is from float64, and what each algorithm adds: for accelerate(max_error=...).

Images of noise go through the network in float64, and each algorithm of each convolution takes the same input in
float32. Its error e becomes J e in the network's output F, J their Jacobian. For e without a direction |J e|^2 is
mean(e^2) |J|^2, with |J|^2 the mean of |J^T v|^2 over random v of +-1 (Hutchinson 1990): one backward pass finds it for
all convolutions. Errors of different ones are taken as independent, so that their squares add. What this sum leaves out
shows when a plan is measured, and the next one is chosen for less or more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from edm_fast import backend
from edm_fast.errors import UserError
from edm_fast.native import Algorithm
from edm_fast.ops.conv2d.cpu import convolve, pack
from edm_fast.plan._algorithms import Shape, fits
from edm_fast.plan._convolutions import Seconds, convolutions, merged, shape_of, with_algorithms
from edm_fast.plan._gradients import DifferentiableProgram
from edm_fast.plan._graph import AnyNode, Fused, Graph, Node, map_tensors
from edm_fast.plan._pool import Shapes
from edm_fast.plan._rewrite import rewrite, rewritten

IMAGES = 2  # of noise
SIGMA = 0.5  # their level: what F errs by weighs less in D below it, and no more above
EXPONENTS = 0.0, 20.0  # of ten: prices of errors, in seconds for all of the output's square
HALVINGS = 14
ATTEMPTS = 6  # plans that are made and measured
ENOUGH = 0.9  # of the allowance: with so much spent no other plan is tried


class Allowance(NamedTuple):
    """The relative error of F that a whole network is allowed, and the noise level as F is told it."""

    max_error: float
    level: float


class _Program(Protocol):
    error: float | None

    def run(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor: ...


P = TypeVar("P", bound=_Program)


class Chosen(NamedTuple):
    """What `with_algorithms` gives, and what its algorithms add to the square of the error."""

    graph: Graph
    algorithms: dict[Node, Algorithm]
    added: float


def probe_shapes(graph: Graph) -> Shapes:
    """Of a network's inputs for the images of noise: one row for all of them where the graph has one."""
    n = graph.inputs["x"].shape[0]
    rows = {name: 1 if value.shape[0] < n else IMAGES for name, value in graph.inputs.items()}
    return tuple(sorted((name, (rows[name], *value.shape[1:])) for name, value in graph.inputs.items()))


class NetworkErrors:
    """Of the convolutions of a traced network, in the order of its nodes.

    level: what the network is told of the noise; allowed: the algorithms, each for convolutions that it fits.
    """

    def __init__(self, graph: Graph, level: float, allowed: Sequence[Algorithm]) -> None:
        self.inputs = _noise(graph, level)
        self.layers = layers(graph)
        graph = rewrite(rewritten(graph), merged)
        gains = _gains(graph, self.inputs)
        errors: dict[AnyNode, dict[Algorithm, torch.Tensor]] = {}

        def call(node: AnyNode, args: Any) -> torch.Tensor:
            exact = _plain(node, map_tensors(_to(torch.float64), args))
            if node in gains:
                different = {_bits(algorithm): algorithm for algorithm in allowed if fits(algorithm, shape_of(node))}
                errors[node] = {bits: _error(node, args, a, exact) for bits, a in different.items()}
            return exact

        with torch.no_grad():
            self.truth = DifferentiableProgram(graph, call, torch.Tensor.double).output(self.inputs)
        size = _squares(self.truth)
        self.added = [
            {bits: float(_share(gain * error, size).max()) for bits, error in errors[node].items()}
            for node, gain in gains.items()
        ]

    def choose(self, graph: Graph, seconds: Seconds, limit: float, price: float) -> Chosen:
        """The algorithms with the least sum of their seconds and of `price` times what they add to the square."""
        places = {node: place for place, node in enumerate(convolutions(graph))}

        def added(node: AnyNode, algorithm: Algorithm) -> float:
            return self.added[places[node]][_bits(algorithm)] if node in places else 0.0

        chosen, algorithms = with_algorithms(graph, seconds, limit, lambda node, a: price * added(node, a))
        return Chosen(chosen, algorithms, sum(added(*pair) for pair in algorithms.items()))

    def of(self, run: Callable[[Mapping[str, torch.Tensor]], torch.Tensor], n: int) -> float:
        """||F - F64|| / ||F64|| of what run(inputs), which takes n images, gives of the noise; the largest one."""
        places = (torch.arange(max(n, IMAGES)) % IMAGES).split(n)
        parts = [{name: t if n > 1 and len(t) == 1 else t[p] for name, t in self.inputs.items()} for p in places]
        error = torch.cat([run(part) for part in parts])[:IMAGES].double() - self.truth
        return float(_share(_squares(error), _squares(self.truth)).max().sqrt())


def layers(graph: Graph) -> list[Shape]:
    """The convolutions of one image, in order."""
    return [dataclasses.replace(shape_of(node), n=1) for node in convolutions(rewritten(graph))]


def cheapest(choose: Callable[[float], Chosen], most: float) -> Chosen:
    """The choice at the least price of errors that adds at most so much, or the one that adds the least."""
    found = choose(0.0)
    if found.added <= most:
        return found
    low, high = EXPONENTS
    found = choose(10**high)
    if found.added <= most:
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            tried = choose(10**middle)
            if tried.added <= most:
                high, found = middle, tried
            else:
                low = middle
    return found


def within(
    max_error: float, choose: Callable[[float], Chosen], build: Callable[[Chosen], P], error: Callable[[P], float]
) -> P:
    """The program of the least time that errs by at most so much when it is measured; UserError if none does.

    The sum of what the algorithms add is scaled until what is measured spends the allowance.
    """
    fastest, best = choose(0.0).algorithms, None
    seen: list[dict[Node, Algorithm]] = []
    low, most, high = 0.0, max_error**2, math.inf  # sums: one that will do, the one to try, one that is too much
    while len(seen) < ATTEMPTS:
        chosen = cheapest(choose, 0.0 if best is None and len(seen) == ATTEMPTS - 1 else most)
        if chosen.algorithms in seen:
            break
        seen.append(chosen.algorithms)
        program = build(chosen)
        program.error = error(program)
        if program.error <= max_error:
            best, low = program, chosen.added
            if chosen.algorithms == fastest or program.error >= ENOUGH * max_error:
                break
        else:
            high, least = chosen.added, program.error
        most = 0.95 * chosen.added * (max_error / program.error) ** 2
        if not low < most < high:
            most = math.sqrt(low * high)
    if best is None:
        raise UserError(
            f"max_error is {max_error:g}, and this network errs by {least:.1e} with its most exact algorithms; "
            "expected as much or more"
        )
    return best


def _noise(graph: Graph, level: float) -> dict[str, torch.Tensor]:
    """Images of unit variance, all at one noise level, each of its own class; no augmentation."""
    found = {name: torch.zeros(value.shape) for name, value in graph.inputs.items()}
    found["x"].normal_(generator=torch.Generator().manual_seed(0))
    if "noise_labels" in found:
        found["noise_labels"].fill_(level)
    for row, labels in enumerate(found.get("class_labels", ())):
        labels[row % len(labels)] = 1
    return found


def _gains(graph: Graph, inputs: Mapping[str, torch.Tensor]) -> dict[AnyNode, torch.Tensor]:
    """|J|^2 of each image's output by that of each convolution, in order."""
    made: dict[AnyNode, Any] = dict.fromkeys(convolutions(graph))

    def call(node: AnyNode, args: Any) -> Any:
        result = _plain(node, args)
        if node in made:
            made[node] = result
        return result

    with torch.enable_grad():
        output = DifferentiableProgram(graph, call, lambda t: t.clone().requires_grad_()).output(inputs)
        v = torch.randint(2, output.shape, generator=torch.Generator().manual_seed(1)) * 2.0 - 1
        found = torch.autograd.grad(output, [*made.values()], v, allow_unused=True)
    return {node: torch.zeros(len(v)) if g is None else _squares(g) for node, g in zip(made, found)}


def _plain(node: AnyNode, args: Any) -> Any:
    """A node in plain torch."""
    if isinstance(node, Fused):
        first, second = args
        return _plain(node.second, second._replace(x=_plain(node.first, first)))
    return node.function.reference(args) if isinstance(node.function, backend.Op) else node.run(args)


def _error(node: AnyNode, args: Any, algorithm: Algorithm, exact: torch.Tensor) -> torch.Tensor:
    """The mean square of an algorithm's error, of each image."""
    args = map_tensors(_to(torch.float32), args)
    if isinstance(node, Fused):
        first, conv = args
        conv = conv if algorithm.doubled else conv._replace(x=_plain(node.first, first))
    else:
        conv = args
    y = torch.empty(exact.shape, memory_format=torch.channels_last)
    convolve(y, conv.x, conv.weight, conv.pad(), (lambda *_: algorithm, pack), tail=conv)
    return _squares(y.double() - exact) / exact[0].numel()


def _squares(images: torch.Tensor) -> torch.Tensor:
    return images.double().square().flatten(1).sum(1)


def _share(error: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """error / size, of a network that gives zeros, too."""
    return torch.where(error == 0, 0.0, error / size)


def _bits(algorithm: Algorithm) -> Algorithm:
    """The same for algorithms that give the same bits."""
    return algorithm._replace(name="", packed=False, error="", place=-1)


def _to(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor
