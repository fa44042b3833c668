"""The training loop: steps, and a tick every kimg_per_tick thousand images, until total_kimg.

Keywords and defaults are the published ones; `run_dir` receives snapshots, state dumps and stats.jsonl. Karras et al.
2022, Appendix F.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import tqdm

from edm_fast import distributed
from edm_fast.training._resume import resume, stored_state
from edm_fast.training._run import Options, Run, start_run
from edm_fast.training._stats import StatsWriter
from edm_fast.training._step import train_step
from edm_fast.training._tick import Clock, check_options, maintain, tick_is_due


def training_loop(
    run_dir: str | Path = ".",
    dataset_kwargs: Mapping[str, Any] | None = None,
    data_loader_kwargs: Mapping[str, Any] | None = None,
    network_kwargs: Mapping[str, Any] | None = None,
    loss_kwargs: Mapping[str, Any] | None = None,
    optimizer_kwargs: Mapping[str, Any] | None = None,
    augment_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 512,
    batch_gpu: int | None = None,
    total_kimg: float = 200000,
    ema_halflife_kimg: float = 500,
    ema_rampup_ratio: float | None = 0.05,
    lr_rampup_kimg: float = 10000,
    loss_scaling: float = 1,
    kimg_per_tick: float = 50,
    snapshot_ticks: int | None = 50,
    state_dump_ticks: int | None = 500,
    resume_pkl: str | None = None,
    resume_state_dump: str | None = None,
    resume_kimg: int = 0,
    cudnn_benchmark: bool = True,
    device: torch.device | str | None = None,
    snapshot_format: str = "safetensors",
    preview_images: int = 32,
    progress: bool = True,
) -> Run:
    """Train; returns the finished run (net, ema, cur_nimg, ...).

    network_kwargs need a `class_name` and, like the others, name classes bare or dotted. resume_state_dump continues a
    run exactly where this project's dump left it; with a published dump, resume_pkl is the snapshot beside it.
    resume_pkl alone starts from the weights of a snapshot. preview_images: samples drawn beside a snapshot, 0 = none.
    """
    given = dict(locals())
    check_options(snapshot_format)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    stored = stored_state(resume_state_dump)
    if stored is not None:
        given["seed"] = stored["seed"]
    options = Options(**{field.name: given[field.name] for field in dataclasses.fields(Options)})
    set_numerics(cudnn_benchmark)
    run = start_run(options, device, data_position=stored["data_position"] if stored else 0)
    resume(run, stored, resume_pkl, resume_state_dump, resume_kimg)
    train(run, stats_lines=stored["stats_lines"] if stored else None)
    return run


def set_numerics(cudnn_benchmark: bool) -> None:
    """Full float32 products and sums, as published."""
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def train(run: Run, stats_lines: int | None) -> None:
    """Steps and ticks until the run is done; nothing if it already is."""
    options = run.options
    main = distributed.rank() == 0
    options.run_dir.mkdir(parents=True, exist_ok=True)
    writer = StatsWriter(options.run_dir, keep_lines=stats_lines) if main else None
    clock = Clock(run.elapsed_sec)
    distributed.print0(f"Image {run.cur_nimg} of {int(options.total_kimg * 1000)}: training starts", flush=True)
    bar = tqdm.tqdm(
        total=int(options.total_kimg * 1000),
        initial=run.cur_nimg,
        unit="img",
        unit_scale=True,
        dynamic_ncols=True,
        disable=None if main and options.progress else True,  # None: shown on a terminal only
    )
    with bar:
        while not run.done:
            train_step(run)
            bar.update(options.batch_size)
            if tick_is_due(run):
                bar.clear()
                maintain(run, clock, writer)
    distributed.barrier()  # a rank that returns may read what rank 0 has written
    distributed.print0("Done.", flush=True)
