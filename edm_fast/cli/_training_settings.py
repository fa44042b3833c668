"""Typed options of edm-fast train to keywords of the training loop, in the published layout."""

from __future__ import annotations

import os
import re
from typing import Any

import torch

from edm_fast import distributed
from edm_fast.cli import _edm2_training
from edm_fast.cli._options import Count
from edm_fast.errors import UserError
from edm_fast.networks import ARCHITECTURES
from edm_fast.training import AUGMENT, AUGMENT_LABELS, ImageFolderDataset, build_dataset, build_encoder

PRECONDS = {"vp": ("VPPrecond", "VPLoss"), "ve": ("VEPrecond", "VELoss"), "edm": ("EDMPrecond", "EDMLoss")}


def dataset_settings(opts: dict[str, Any]) -> dict[str, Any]:
    return {
        "class_name": "training.dataset.ImageFolderDataset",
        "path": opts["data"],
        "use_labels": opts["cond"],
        "xflip": opts["xflip"],
        "cache": opts["cache"],
        **({"arrays": True} if opts["arch"] == "edm2" else {}),
    }


def open_dataset(settings: dict[str, Any], file: str | None) -> ImageFolderDataset:
    """The data set of these settings, which learn its size and resolution; those of `file` must be what is found."""
    kwargs = dict(settings["dataset_kwargs"])
    stated = {name: kwargs.pop(name) for name in ("resolution", "encoder", "max_size") if name in kwargs}
    dataset = build_dataset(kwargs)
    if kwargs.get("use_labels") and not dataset.has_labels:
        asked = f"use_labels in {file}" if file else "--cond=1"
        raise UserError(f"{asked} needs labels; {dataset.path} has none (expected a dataset.json with labels)")
    found = {"resolution": dataset.resolution, "max_size": len(dataset)}
    learnt = {**found, "encoder": type(build_encoder(dataset)).__name__}
    for name in (name for name in stated if stated[name] != learnt[name]):
        fault = f"{name} is {learnt[name]}, in {file} it is {stated[name]}"
        raise UserError(f"{dataset.path}: {fault}; expected the data set of that run")
    settings["dataset_kwargs"] = kwargs | found
    return dataset


def network_settings(opts: dict[str, Any]) -> dict[str, Any]:
    """The network's keywords: the architecture, then what the options change."""
    kwargs = dict(ARCHITECTURES.get(opts["arch"], {}))
    precond = f"networks.{PRECONDS[opts['precond']][0]}" if kwargs else "networks_edm2.Precond"
    kwargs["class_name"] = f"training.{precond}"
    if opts["cbase"] is not None:
        kwargs["model_channels"] = opts["cbase"]
    if opts["cres"] is not None:
        kwargs["channel_mult"] = opts["cres"]
    if opts["num_blocks"] is not None:
        kwargs["num_blocks"] = opts["num_blocks"]
    if opts["augment"]:
        kwargs["augment_dim"] = AUGMENT_LABELS
    return {**kwargs, "dropout": opts["dropout"], "use_fp16": opts["fp16"]}


def resume_settings(resume: str | None, transfer: str | None, edm2: bool) -> dict[str, Any]:
    """Where the run goes on from, for --resume FILE and --transfer."""
    if transfer is not None:
        if resume is not None:
            raise UserError("--transfer and --resume cannot be used together; expected one of them")
        return {"resume_pkl": transfer, "ema_rampup_ratio": None}
    if resume in (None, "auto"):
        return {}
    match = re.fullmatch(r"training-state-(\d+)\.(safetensors|pt)", os.path.basename(str(resume)))
    if match is None or not os.path.isfile(str(resume)):
        raise UserError(f"--resume={resume} is not an existing file named training-state-<digits>.safetensors or .pt")
    snapshot = os.path.join(os.path.dirname(str(resume)), f"network-snapshot-{match[1]}.pkl")
    beside = {"resume_pkl": snapshot, "resume_kimg": int(match[1])}  # states of EDM2 have the averages inside
    return {**({} if edm2 else beside), "resume_state_dump": resume}


def kimg(million_images: float) -> float:
    """Thousands of images, to the image; an integer where it is whole, as published. A Count is one of images."""
    images = million_images if isinstance(million_images, Count) else round(million_images * 1e6)
    return images // 1000 if images % 1000 == 0 else images / 1000


def training_settings(opts: dict[str, Any]) -> dict[str, Any]:
    """Keywords of the training loop in the published layout."""
    settings: dict[str, Any] = {
        "dataset_kwargs": dataset_settings(opts),
        "data_loader_kwargs": {"pin_memory": True, "num_workers": opts["workers"], "prefetch_factor": 2},
        "network_kwargs": network_settings(opts),
        "loss_kwargs": {"class_name": f"training.loss.{PRECONDS[opts['precond']][1]}"},
        "optimizer_kwargs": {"class_name": "torch.optim.Adam", "lr": opts["lr"], "betas": [0.9, 0.999], "eps": 1e-8},
    }
    if opts["augment"]:
        pipe = {"class_name": "training.augment.AugmentPipe", "p": opts["augment"]}
        settings["augment_kwargs"] = {**pipe, **AUGMENT}
    settings |= {
        "total_kimg": max(kimg(opts["duration"]), 1),
        "ema_halflife_kimg": kimg(opts["ema"]),
        "batch_size": opts["batch"],
        "batch_gpu": opts["batch_gpu"] or None,
        "loss_scaling": opts["ls"],
        "cudnn_benchmark": opts["bench"],
        "kimg_per_tick": opts["tick"],
        "snapshot_ticks": opts["snap"] or None,
        "state_dump_ticks": opts["dump"] or None,
        "seed": common_seed(opts["seed"]),
    }
    if opts["arch"] == "edm2":
        settings = {**settings, **_edm2_training.changes(opts)}
        del settings["ema_halflife_kimg"]
    settings |= resume_settings(opts["resume"], opts["transfer"], opts["arch"] == "edm2")
    return settings | own_settings(opts)


def own_settings(opts: dict[str, Any]) -> dict[str, Any]:
    """Settings the published program does not have, where they differ from the loop's defaults."""
    settings: dict[str, Any] = {}
    if opts["lr_rampup"] is not None:
        settings["lr_rampup_kimg"] = opts["lr_rampup"] * 1000
    if opts["snapshot_format"] != "safetensors":
        settings["snapshot_format"] = opts["snapshot_format"]
    if opts["preview"] != 32:
        settings["preview_images"] = opts["preview"]
    if opts["dump_minutes"] != 10:
        settings["dump_minutes"] = opts["dump_minutes"]
    if opts["precision"] != "fp32":
        settings["precision"] = opts["precision"]
    if opts["log_to"] is not None:
        settings["log_to"] = opts["log_to"]
    if opts["keep_states"] != 2:
        settings["keep_states"] = opts["keep_states"]
    return settings


def common_seed(seed: int | None) -> int:
    """The seed given, or a random one that all ranks share."""
    if seed is None:
        seed = int(torch.seed() % (1 << 31))
    return distributed.broadcast_object(seed)
