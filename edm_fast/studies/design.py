"""What each of the paper's changes to training does: configurations A to F (Karras et al. 2022, Table 2), briefly."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edm_fast.checkpoint import save
from edm_fast.data import ImageFolderDataset, demo_digits
from edm_fast.data.convert import write_dataset
from edm_fast.diffusion.loss import EDMLoss
from edm_fast.errors import UserError
from edm_fast.networks import ARCHITECTURES
from edm_fast.sampling import edm_sampler
from edm_fast.studies._study import Chart, Entry, Grid, Option, Pictures, Session, Study
from edm_fast.training import AUGMENT, AUGMENT_LABELS, latest_state, training_loop

BASELINES = {"ddpmpp": ("VPPrecond", "VPLoss"), "ncsnpp": ("VEPrecond", "VELoss")}
CONFIGS = {
    "A": "baseline of Song et al. 2021",
    "B": "larger batch, higher learning rate",
    "C": "capacity moved to the higher resolutions",
    "D": "preconditioning of EDM",
    "E": "noise levels and weights of EDM in the loss",
    "F": "augmentation that does not leak",
}
PUBLISHED = {  # FID of CIFAR-10 without classes, VP and VE
    "A": (3.01, 3.77),
    "B": (2.51, 2.94),
    "C": (2.31, 2.83),
    "D": (2.29, 3.10),
    "E": (2.05, 1.99),
    "F": (1.97, 1.98),
}
LEVELS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)
JUDGED, ROUND = 256, 64  # images that the losses are compared on, and at a time
STEPS = 18  # of the sampler
FIRST = 4  # steps after which the speed is known
TICKS = 15  # of the rest
ENOUGH = 0.95  # of the time


class TrainingImages(NamedTuple):
    """What is trained on, and what the results are judged by, in [-1, 1]."""

    path: str
    labelled: bool
    resolution: int
    judged: Tensor  # (N, C, R, R)
    labels: Tensor  # (N, L)


def small_digits(part: Any) -> tuple[np.ndarray, np.ndarray]:
    """The demo's digits at half their size: (N, 16, 16) uint8, and their classes (N,)."""
    images, labels = demo_digits(part)
    n, _, height, width = images.shape
    halved = images.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4))
    return halved.round().astype(np.uint8), labels


def prepare(session: Session) -> TrainingImages:
    path = session.options["data"]
    if path is not None:
        dataset = ImageFolderDataset(path, use_labels=True)
        items = [dataset[i] for i in np.random.RandomState(0).permutation(len(dataset))[:JUDGED]]
        images, labels = np.stack([image for image, _ in items]), np.stack([label for _, label in items])
        judged = torch.from_numpy(images).float() / 127.5 - 1
        return TrainingImages(
            str(path), dataset.has_labels, dataset.resolution, judged, torch.from_numpy(labels).float()
        )
    path = session.outdir / "design-digits.zip"
    if not path.exists():
        images, classes = small_digits("train")
        write_dataset(path, zip(images, classes.tolist()), report=lambda text: None)
    images, classes = small_digits("heldout")
    chosen = np.random.RandomState(0).permutation(len(images))[:JUDGED]
    judged = torch.from_numpy(images[chosen, None]).float() / 127.5 - 1
    return TrainingImages(str(path), True, images.shape[-1], judged, torch.eye(10)[classes[chosen]])


def points(session: Session) -> list[Entry]:
    chosen = session.options["configs"]
    if unknown := [name for name in chosen if name not in CONFIGS]:
        raise UserError(f"configuration {unknown[0]!r} is unknown; expected some of {', '.join(CONFIGS)}")
    if session.options["arch"] not in BASELINES:
        raise UserError(f"--arch is {session.options['arch']!r}; expected one of {', '.join(BASELINES)}")
    return [{"config": name} for name in CONFIGS if name in chosen]


def settings(session: Session, config: str) -> Entry:
    """Keywords of `training_loop`. Each configuration keeps what those before it changed."""
    options, images = session.options, session.shared
    precond, loss = BASELINES[options["arch"]]
    network = {
        **ARCHITECTURES[options["arch"]],
        "class_name": precond if config < "D" else "EDMPrecond",
        "model_channels": options["width"],
        "channel_mult": [1, 2, 2, 2] if config < "C" else [2, 2, 2],
        "num_blocks": 1,
        "attn_resolutions": [images.resolution // 2],
        "dropout": 0.1 if config < "B" else 0.13,
        **({"augment_dim": AUGMENT_LABELS} if config >= "F" else {}),
    }
    return {
        "dataset_kwargs": {"path": images.path, "use_labels": images.labelled, "cache": True},
        "network_kwargs": network,
        "loss_kwargs": {"class_name": loss if config < "E" else "EDMLoss"},
        "optimizer_kwargs": {"class_name": "Adam", "lr": 2e-4 if config < "B" else 1e-3},
        "augment_kwargs": {"p": 0.12, **AUGMENT} if config >= "F" else None,
        "batch_size": 16 if config < "B" else 64,
        "lr_rampup_kimg": 1,
        "ema_halflife_kimg": 2,
        "snapshot_ticks": None,
        "state_dump_ticks": 1_000_000,  # at the end of each part alone, and by the clock
        "dump_minutes": 0.25,
        "preview_images": 0,
        "progress": False,
        "device": session.device,
    }


def measure(session: Session, point: Entry) -> Entry:
    folder = session.outdir / "design-runs" / point["config"]
    ema, rows = train(settings(session, point["config"]), folder, session.options["seconds"], session.resume)
    save(ema, folder / "network.safetensors")
    # the sigmas and noise of all configurations are the same
    found = {"images": round(rows[-1]["kimg"] * 1000), "training_seconds": rows[-1]["seconds"]}
    found |= judge(ema, session.shared.judged.to(session.device), session.shared.labels.to(session.device))
    images = session.draw(edm_sampler, ema, num_steps=STEPS)
    curve = [[row["seconds"], row["loss"]] for row in rows]
    return {**found, "curve": curve, "picture": session.keep(point["config"], images)}


def train(settings: Entry, folder: Path, seconds: float, resume: bool) -> tuple[torch.nn.Module, list[Entry]]:
    """Train for a time, in parts each of which goes on where the one before ended; the average and what each tick says.

    The first part tells the speed, the second should take the rest, and so on until the time is used.
    """
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    batch = settings["batch_size"]
    while True:
        state = latest_state(folder)
        rows = progress(folder) if state else []
        done, spent = (round(rows[-1]["kimg"] * 1000), rows[-1]["seconds"]) if rows else (0, 0.0)
        if not rows:
            left = FIRST * batch
        else:  # the first tick is one step that also waits for the data
            images, time = done - rows[0]["kimg"] * 1000, spent - rows[0]["seconds"]
            left = int((seconds - spent) * images / max(time, 1e-3) / batch) * batch
        finished = bool(rows) and (spent >= ENOUGH * seconds or left < batch)
        total = done + (0 if finished else left)
        start: Entry = {} if state is None else {"resume_state_dump": str(state[0])}
        with open(folder / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            run = training_loop(
                run_dir=folder,
                total_kimg=total / 1000,
                kimg_per_tick=max(left / TICKS, batch) / 1000,
                **settings,
                **start,
            )
        if finished:
            return run.ema, rows
        newest = latest_state(folder)
        for path in folder.glob("training-state-*"):
            if newest is not None and path != newest[0]:
                path.unlink()


def progress(folder: Path) -> list[Entry]:
    """What each tick so far has said."""
    with open(folder / "stats.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    names = {"kimg": "Progress/kimg", "seconds": "Timing/total_sec", "loss": "Loss/loss"}
    return [{name: line[key]["mean"] for name, key in names.items()} for line in lines]


def parts(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    for x, y in zip(images.split(ROUND), labels.split(ROUND)):
        yield x, y if y.shape[1] else None


@torch.no_grad()
def judge(net: Any, images: Tensor, labels: Tensor) -> Entry:
    """The loss of E for any configuration: by E's own noise levels, and at some levels apart.

    lambda(sigma) (D - y)^2, lambda = (sigma^2 + sigma_d^2)/(sigma sigma_d)^2: Karras et al. 2022, Table 1.
    """
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        torch.manual_seed(0)
        common = [EDMLoss()(net, x, y).mean((1, 2, 3)) for x, y in parts(images, labels)]
        by_level = []
        for sigma in LEVELS:
            torch.manual_seed(0)
            fixed = EDMLoss(P_mean=float(np.log(sigma)), P_std=0)
            by_level.append(torch.cat([fixed(net, x, y).mean((1, 2, 3)) for x, y in parts(images, labels)]).mean())
    return {"loss": torch.cat(common).mean().item(), "by_level": [value.item() for value in by_level]}


def show(rows: Sequence[Entry], session: Session) -> list[Chart | Grid | Pictures]:
    which = 0 if session.options["arch"] == "ddpmpp" else 1
    names = {row["config"]: f"{row['config']}: {CONFIGS[row['config']]}" for row in rows}
    return [
        Grid(
            f"After {session.options['seconds']:g} seconds each",
            ["configuration", "images seen", "loss of E on the same images", "published FID"],
            [[names[r["config"]], str(r["images"]), r["loss"], PUBLISHED[r["config"]][which]] for r in rows],
            "Published: CIFAR-10 without classes after 200 million images (Table 2 of the paper), quoted, not measured "
            "here.",
        ),
        Chart(
            "Error by noise level",
            "noise level sigma",
            "weighted error, lambda(sigma) (D - y)^2",
            {names[row["config"]]: list(zip(LEVELS, row["by_level"])) for row in rows},
            "xy",
            "The same images and noise for all.",
        ),
        Chart(
            "Loss in training",
            "seconds",
            "loss of the configuration",
            {row["config"]: [tuple(pair) for pair in row["curve"]] for row in rows},
            "y",
            "A to D weight noise levels in another way than E and F, so that their losses do not compare with these.",
        ),
        Pictures("Samples", {names[row["config"]]: row["picture"] for row in rows}, "The same seeds for all."),
    ]


STUDY = Study(
    name="design",
    summary="What each of the paper's changes to training does",
    words=(
        "Small networks are trained by the configurations A to F of the paper's Table 2 for the same time each; every "
        "one keeps the changes of those before it. Sizes are those of a processor, not of eight GPUs: narrow networks "
        "of one block for each resolution, batches of 16 (A) and 64, short ramps.",
        "The networks are compared by one loss, that of configuration E, on the same images and noise, which none of "
        "the networks has seen when they are the demo's digits (at 16x16). A few minutes decide nothing about 200 "
        "million images: the study shows how fast each configuration starts.",
    ),
    prepare=prepare,
    points=points,
    measure=measure,
    show=show,
    options={
        "data": Option("path", None, "Training images, a folder or zip.  [default: the demo's digits at 16x16]"),
        "configs": Option("words", list(CONFIGS), f"Of {', '.join(CONFIGS)}."),
        "arch": Option("word", "ddpmpp", "ddpmpp (VP) or ncsnpp (VE)."),
        "seconds": Option("positive", 75.0, "Of training, for each configuration."),
        "width": Option("count", 16, "Channels of the networks; the paper's have 128."),
    },
    seeds="0-31",
    needs_network=False,
)
