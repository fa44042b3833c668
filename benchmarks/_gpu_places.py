"""What `make gpu-report` measures of networks, and in which order. The standard library alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

DDPMPP, NCSNPP = "edm-cifar10-32x32-cond-vp", "edm-cifar10-32x32-cond-ve"
ADM, EDM2 = "edm-imagenet-64x64-cond-adm", "edm2-img64-s"
BATCHES = {DDPMPP: (64, 1, 16, 256), NCSNPP: (64, 1, 16, 256), ADM: (64, 1, 16), EDM2: (64, 1)}
FIRST = ((DDPMPP, 64), (DDPMPP, 1), (ADM, 64), (NCSNPP, 64))
OTHERS = tuple((name, size) for name, sizes in BATCHES.items() for size in sizes if (name, size) not in FIRST)

SOON = ("reference", "torch-half-fp16", "accelerate-fp16")  # what there must be whatever happens afterwards
PEERS = ("reference", "reference-tf32", "torch-half-fp16", "torch-half-bf16")
FUSED = ("fused", "fused-half-fp16", "fused-half-bf16")
OURS = ("accelerate-fp16", "accelerate-bf16", "accelerate-tf32", "accelerate-fp32")
COMPILED, TUNED = ("compile-fp16",), ("compile-max-autotune-fp16",)
TRAINED = ("reference", "reference-tf32", "autocast-bf16", "fused-autocast-bf16")
TRAINED_LATER = ("compile-autocast-bf16", "fused", "autocast-fp16", "fused-autocast-fp16")
SAMPLED = ("reference", "reference-tf32", "torch-half-fp16", *OURS[:1])
SAMPLED_LATER = ("accelerate-fp16-evaluations", *OURS[1:])
ROUNDS = {"networks": 5, "autotune": 5, "training": 5, "sampling": 2}
WARM_PROCESSES = 12


class Place(NamedTuple):
    """A network at a batch, and ways to run it (rows of the benchmark)."""

    network: str
    batch: int
    rows: tuple[str, ...]


def _networks() -> Iterator[Place]:
    yield Place(*FIRST[0], SOON)
    yield Place(*FIRST[0], COMPILED)
    yield Place(*FIRST[1], SOON)
    yield Place(*FIRST[2], SOON)
    yield from (Place(*place, (*PEERS, *OURS, *FUSED)) for place in FIRST)
    yield from (Place(*place, COMPILED) for place in FIRST[1:])
    yield from (Place(*place, (*PEERS, *OURS, *FUSED)) for place in OTHERS)
    yield from (Place(*place, COMPILED) for place in OTHERS)


PLACES: dict[str, list[Place]] = {
    "networks": list(_networks()),
    "autotune": [Place(*place, TUNED) for place in FIRST],
    "training": [Place(DDPMPP, 128, rows) for rows in (TRAINED, TRAINED_LATER)],
    "sampling": [Place(DDPMPP, batch, rows) for rows in (SAMPLED, SAMPLED_LATER) for batch in (64, 1)],
}
QUICK: dict[str, list[Place]] = {  # a trial on any machine
    "networks": [
        Place("demo", 1, ("reference", "reference-tf32", "fused-half-bf16", "accelerate-fp32", "accelerate-fp16"))
    ],
    "autotune": [],
    "training": [Place("demo", 2, ("reference", "reference-tf32", "fused-autocast-bf16"))],
    "sampling": [Place("demo", 1, ("reference", "accelerate-fp32"))],
}


def warm_jobs(quick: bool) -> list[tuple[str, int, str]]:
    """Network, batch and row: plans whose kernels are compiled side by side before anything is measured."""
    if quick:
        return [("demo", 1, "accelerate-fp32")]
    jobs = [(*FIRST[0], "accelerate-fp16"), (*FIRST[0], "compile-fp16")]
    jobs += [(*place, "accelerate-fp16") for place in FIRST[1:]]
    jobs += [(*place, row) for row in OURS[1:] for place in FIRST]
    return [*jobs, *((*place, "accelerate-fp16") for place in OTHERS), *((*place, COMPILED[0]) for place in FIRST[1:3])]


SWEPT = ((DDPMPP, 64), (ADM, 64))


def sweep_jobs(quick: bool) -> list[tuple[str, int, str]]:
    """Shares of the kernels that the sweep runs."""
    processes = 1 if quick else WARM_PROCESSES
    return [("sweep", share, str(processes)) for share in range(processes)]


def seconds_allowed(row: str) -> float:
    """After which a row is given up: a compiler may take minutes, and a program that hangs takes for ever."""
    return 420 if "max-autotune" in row else 200 if row.startswith("compile") else 110 if "accel" in row else 60
