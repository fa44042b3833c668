"""What bench measures: an evaluation, a sampling run, a process of edm-fast generate, a training step.

Each call returns what it computed.
"""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from edm_fast.backend import use_backend
from edm_fast.checkpoint import DEMO, save
from edm_fast.diffusion.loss import EDM2Loss, EDMLoss
from edm_fast.errors import UserError
from edm_fast.evaluation._peers import Subject
from edm_fast.evaluation._rows import ROWS, Row, names
from edm_fast.networks import Precond
from edm_fast.plan._gpu_program import tensor_float
from edm_fast.sampling import edm_sampler, load_sampler, sample, sample_seeds
from edm_fast.sampling.images import image_name, read_png

TUNED = f"--sampler={DEMO}"
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


@contextlib.contextmanager
def running(row: Row, subject: Subject) -> Iterator[None]:
    """What a row's calls run in: the backend of its ops; on a GPU also TF32 or not; autocast."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(use_backend(row.backend))
        if subject.device.type == "cuda":
            stack.enter_context(tensor_float(row.tf32))
        if row.autocast is not None:
            stack.enter_context(torch.autocast(subject.device.type, row.autocast))
        yield


def evaluation(row: Row, subject: Subject) -> Callable[[], Results]:
    """One evaluation D(x; sigma)."""
    with running(row, subject):  # what is compiled under other switches would be compiled again
        run = row.build(subject)

    def call() -> Results:
        with torch.no_grad(), running(row, subject):
            return [run(*subject.example)]

    return call


def sampling(row: Row, subject: Subject) -> Callable[[], Results]:
    """From seeds to images: by the deterministic sampler of the paper, or as a sampler file has it."""
    run = row.build(subject)
    sampler: Any = sample if row.tuned else edm_sampler
    settings = load_sampler(DEMO, subject.net).settings if row.tuned else {"num_steps": STEPS}

    def call() -> Results:
        with running(row, subject):
            seeds = range(subject.batch)
            return [sample_seeds(run, sampler, seeds, device=subject.device, **settings)]

    return call


# of edm-fast generate: the backend of its ops, and options
PROCESSES = {"reference": ("reference", ""), "accelerate-fp32": ("auto", "--precision=fp32"), "tuned": ("auto", TUNED)}


def process(row: Row, subject: Subject) -> Callable[[], Results]:
    """edm-fast generate as a process of its own, from its start to the images in their files."""
    if row.name not in PROCESSES:
        raise UserError(f"{row.name} is no way to run edm-fast generate; expected some of {', '.join(PROCESSES)}")
    backend, option = PROCESSES[row.name]
    network, outdir = subject.folder / "network.safetensors", subject.folder / row.name
    if not network.exists():
        save(subject.net, network)
    options = [f"--network={network}", f"--outdir={outdir}", f"--seeds=0-{subject.batch - 1}", f"--steps={STEPS}"]
    if row.tuned:
        load_sampler(DEMO, subject.net)  # complains
        del options[-1]
    command = [sys.executable, "-m", "edm_fast", "generate", *options, *filter(None, [option])]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "EDM_FAST_BACKEND": backend, "OMP_NUM_THREADS": threads}

    def call() -> Results:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{row.name}: {(done.stderr.strip().splitlines() or ['no output'])[-1][:160]}")
        pixels = [read_png(outdir / image_name(seed)) for seed in range(subject.batch)]
        return [torch.from_numpy(np.stack(pixels)).double() / 127.5 - 1]

    return call


def training(row: Row, subject: Subject) -> Callable[[], Results]:
    """Forward, backward and Adam on a batch of noise; returns the gradients.

    Without dropout: GPUs draw a mask in memory order, so that rows of another layout would have another.
    """
    if not row.trains:
        able = ", ".join(name for name, other in ROWS.items() if other.trains and other.device in ("any", row.device))
        raise UserError(f"{row.name} is no way to train; expected some of {able}")
    net = copy.deepcopy(subject.net).train().requires_grad_(True)
    for module in net.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    if row.memory_format == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    run = net if row.compile == "none" else torch.compile(net, dynamic=False)
    fused = True if row.backend != "reference" and subject.device.type == "cpu" else None  # as in training
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=fused)
    loss_fn = EDM2Loss() if isinstance(net, Precond) else EDMLoss()
    images = subject.example.x.clamp(-1, 1)
    labels, gpus = subject.example.labels, [subject.device] if subject.device.type == "cuda" else []

    def call() -> Results:
        optimizer.zero_grad(set_to_none=True)
        with running(row, subject), torch.random.fork_rng(devices=gpus):
            torch.manual_seed(0)
            loss_fn(run, images, labels).sum().div(subject.batch).backward()
        optimizer.step()
        return [parameter.grad for parameter in net.parameters() if parameter.grad is not None]

    return call


TARGETS = {
    "networks": Target("evaluation", evaluation, (DDPMPP, NCSNPP, ADM, DEMO), (1, 8, 32), names("cpu")),
    "sampling": Target(
        f"{STEPS}-step run",
        sampling,
        (DEMO,),
        (64,),
        (*(name for name in names("cpu") if ROWS[name].samples), "tuned"),
    ),
    "processes": Target(f"edm-fast generate with {STEPS} steps", process, (DEMO,), (64,), tuple(PROCESSES)),
    "training": Target("step", training, (DDPMPP,), (8,), ("reference", "fused")),
}


def default_batches(target: str, network: str) -> Sequence[int]:
    """ADM at 64x64 takes ten times the work of the others, EDM2 as much or more, so their batches are smaller."""
    large = network == ADM or network.startswith("edm2-")
    return (1, 2, 8) if target == "networks" and large else TARGETS[target].batches
