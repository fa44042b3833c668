"""What bench measures: one evaluation, one sampling run, one training step. Each call returns what it computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from edm_fast.backend import use_backend
from edm_fast.diffusion.loss import EDMLoss
from edm_fast.evaluation._networks import DEMO
from edm_fast.evaluation._peers import Subject
from edm_fast.evaluation._rows import ROWS, Row
from edm_fast.sampling import edm_sampler, sample_seeds

DDPMPP, NCSNPP = "edm-cifar10-32x32-cond-vp", "edm-cifar10-32x32-cond-ve"
ADM = "edm-imagenet-64x64-cond-adm"
STEPS = 18

Results = list[torch.Tensor]


class Target(NamedTuple):
    unit: str  # what one call is
    prepare: Callable[[Row, Subject], Callable[[], Results]]
    networks: tuple[str, ...]
    batches: tuple[int, ...]
    rows: tuple[str, ...]


def evaluation(row: Row, subject: Subject) -> Callable[[], Results]:
    """One evaluation D(x; sigma)."""
    run = row.build(subject)

    def call() -> Results:
        with torch.no_grad(), use_backend(row.backend):
            return [run(*subject.example)]

    return call


def sampling(row: Row, subject: Subject) -> Callable[[], Results]:
    """The deterministic sampler of the paper from seeds to images."""
    run = row.build(subject)

    def call() -> Results:
        with use_backend(row.backend):
            return [sample_seeds(run, edm_sampler, range(subject.batch), num_steps=STEPS)]

    return call


def training(row: Row, subject: Subject) -> Callable[[], Results]:
    """Forward, backward and Adam on a batch of noise; returns the gradients.

    Without dropout: a mask is drawn in memory order, so that rows of another layout would have another.
    """
    net = copy.deepcopy(subject.net).train().requires_grad_(True)
    for module in net.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    loss_fn, images = EDMLoss(), subject.example.x.clamp(-1, 1)
    labels = subject.example.labels

    def call() -> Results:
        optimizer.zero_grad(set_to_none=True)
        with use_backend(row.backend), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss_fn(net, images, labels).sum().div(subject.batch).backward()
        optimizer.step()
        return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]

    return call


TARGETS = {
    "networks": Target("evaluation", evaluation, (DDPMPP, NCSNPP, ADM, DEMO), (1, 8, 32), tuple(ROWS)),
    "sampling": Target(
        f"{STEPS}-step run", sampling, (DEMO,), (64,), tuple(name for name, row in ROWS.items() if row.samples)
    ),
    "training": Target("step", training, (DDPMPP,), (8,), tuple(name for name, row in ROWS.items() if row.trains)),
}


def default_batches(target: str, network: str) -> Sequence[int]:
    """ADM at 64x64 takes ten times the work of the others, so its batches are smaller."""
    return (1, 2, 8) if target == "networks" and network == ADM else TARGETS[target].batches
