"""What a study consists of, and what its points are measured with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm_fast.checkpoint import load, weights_digest
from edm_fast.evaluation import accuracy
from edm_fast.plan import accelerate, unaccelerated
from edm_fast.sampling import save_grid

Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Option:
    """An option that one study has beside those of all. kind: a key of KINDS in edm_fast/cli/study.py."""

    kind: str
    default: Any
    help: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines by name, each of points (x, y). log: the axes with a logarithmic scale, "", "x", "y" or "xy"."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table. Numbers are shown to three digits; best: of each row the least number is marked."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Files by caption, as `Session.keep` wrote them."""

    title: str
    files: Mapping[str, str]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """See `edm_fast.studies`."""

    name: str
    summary: str  # one line
    words: Sequence[str]  # paragraphs of the page: what is measured, how to read it
    points: Callable[[Session], Sequence[Entry]]
    measure: Callable[[Session, Entry], Entry]
    show: Callable[[Sequence[Entry], Session], Sequence[Chart | Grid | Pictures]]
    prepare: Callable[[Session], Any] = lambda session: None
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)
    seeds: str = "0-15"
    needs_network: bool = True  # False: the study trains its own


class Session:
    """A study of one network in progress."""

    def __init__(
        self,
        study: Study,
        network: str,
        seeds: Sequence[int],
        outdir: Path,
        options: Mapping[str, Any],
        batch: int = 64,
        device: torch.device | str = "cpu",
        resume: bool = False,
    ) -> None:
        self.study, self.network, self.seeds, self.outdir = study, network, list(seeds), outdir
        self.options, self.batch, self.device = dict(options), batch, torch.device(device)
        self.resume = resume
        self._accelerated: dict[str, Any] = {}

    @functools.cached_property
    def net(self) -> Any:
        """The network as it is stored, in float32."""
        net: Any = load(self.network, device=self.device)
        net.use_fp16 = False
        return net

    @functools.cached_property
    def digest(self) -> str:
        """Of the weights; nothing for a study that trains its own network."""
        return weights_digest(self.net) if self.study.needs_network else ""

    @functools.cached_property
    def fast(self) -> Any:
        """The network accelerated in fp32, or as it is where that cannot be done."""
        return self.accelerated("fp32") if self.can_accelerate else self.net

    @functools.cached_property
    def can_accelerate(self) -> bool:
        return unaccelerated(self.device) is None

    def accelerated(self, precision: str) -> Any:
        """edm_fast.accelerate(net, precision), once. UserError where that cannot be done."""
        if precision not in self._accelerated:
            self._accelerated[precision] = accelerate(self.net, precision)
        return self._accelerated[precision]

    @functools.cached_property
    def shared(self) -> Any:
        """What the study's `prepare` makes, once."""
        return self.study.prepare(self)

    @property
    def folder(self) -> Path:
        """Where pictures go."""
        return self.outdir / f"{self.study.name}-pictures"

    def draw(
        self, sampler: Callable[..., Tensor], net: Any = None, seeds: Sequence[int] | None = None, **options: Any
    ) -> Tensor:
        """Images (N, C, R, R) float64 of the session's seeds, or of others, by `fast` or another network."""
        return accuracy.draw(
            self.fast if net is None else net,
            sampler,
            self.seeds if seeds is None else seeds,
            self.batch,
            device=self.device,
            **options,
        )

    def keep(self, name: str, images: Tensor) -> str:
        """Write images (N, C, R, R) as one picture; returns its name, for a row."""
        save_grid(self.folder / f"{name}.png", images)
        return f"{self.folder.name}/{name}.png"


def name_of(point: Entry) -> str:
    """A point for people."""
    return " ".join(str(value) for value in point.values() if not isinstance(value, (list, dict)))
