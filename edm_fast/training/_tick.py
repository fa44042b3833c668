"""What happens between steps every now and then: a status line, snapshots with previews, state dumps, statistics."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from edm_fast import checkpoint, distributed, sampling
from edm_fast.errors import UserError
from edm_fast.training._run import Run
from edm_fast.training._state import ENDING, save_state
from edm_fast.training._stats import StatsWriter, resident_gb

SNAPSHOT_FORMATS = ("safetensors", "pkl")
PREVIEW_STEPS = 18


class Clock:
    """Time since the start, since the last tick, spent between the last tick's end and the next tick's start, and
    since the last training state.
    """

    def __init__(self, run: Run) -> None:
        now = time.time()
        self.start, self.tick_start = now - run.elapsed_sec, now - run.tick_sec
        self.maintenance = 0.0
        self.state_written = time.monotonic()

    def next_tick(self, tick_end: float) -> None:
        self.tick_start = time.time()
        self.maintenance = self.tick_start - tick_end

    def wants_state(self, minutes: float) -> bool:
        """Once every so many minutes; never if 0."""
        due = minutes > 0 and time.monotonic() >= self.state_written + 60 * minutes
        if due:
            self.state_written = time.monotonic()
        return due


def tick_is_due(run: Run) -> bool:
    """After the first step of a run, at its end, and every kimg_per_tick thousand images."""
    step = run.options.kimg_per_tick * 1000
    return run.done or run.tick == 0 or run.cur_nimg >= run.tick_start_nimg + step


def is_multiple(run: Run, ticks: int | None) -> bool:
    return bool(ticks) and (run.done or run.tick % ticks == 0)  # type: ignore[operator]


def report_progress(run: Run, clock: Clock, tick_end: float) -> dict[str, dict[str, float]]:
    """The row of stats.jsonl for this tick, and on rank 0 the status line."""
    seconds = tick_end - clock.tick_start
    images = run.cur_nimg - run.tick_start_nimg
    gpu = reserved = 0.0
    if run.device.type == "cuda":
        gpu = torch.cuda.max_memory_allocated(run.device) / 2**30
        reserved = torch.cuda.max_memory_reserved(run.device) / 2**30
        torch.cuda.reset_peak_memory_stats(run.device)
    values = {
        "Progress/tick": run.tick,
        "Progress/kimg": run.cur_nimg / 1e3,
        "Timing/total_sec": tick_end - clock.start,
        "Timing/sec_per_tick": seconds,
        "Timing/sec_per_kimg": seconds / images * 1e3,
        "Timing/maintenance_sec": clock.maintenance,
        "Resources/cpu_mem_gb": resident_gb(),
        "Resources/peak_gpu_mem_gb": gpu,
        "Resources/peak_gpu_mem_reserved_gb": reserved,
    }
    if distributed.rank() == 0:
        for name, value in values.items():
            run.stats.report(name, value)
    row = run.stats.collect(shared=["Loss/loss", "Loss/sigma"])
    if distributed.rank() == 0:
        skipped = row.get("Progress/skipped_steps")
        tail = "" if skipped is None else f" skipped {round(skipped['mean'] * skipped['num'])} steps"
        print(status_line(run, values, row["Loss/loss"]["mean"]) + tail, flush=True)
        if not np.isfinite(row["Loss/loss"]["mean"]):
            print("Warning: the loss is not finite; gradients that are not finite count as 0", flush=True)
    return row


def status_line(run: Run, values: dict[str, float], loss: float) -> str:
    per_kimg = values["Timing/sec_per_kimg"]
    left = max(run.options.total_kimg - values["Progress/kimg"], 0) * per_kimg
    fields = [
        f"tick {run.tick:<5d}",
        f"kimg {run.cur_nimg / 1e3:<9.1f}",
        f"time {format_time(values['Timing/total_sec']):<12s}",
        f"sec/tick {values['Timing/sec_per_tick']:<7.1f}",
        f"sec/kimg {per_kimg:<7.2f}",
        f"maintenance {values['Timing/maintenance_sec']:<6.1f}",
        f"cpumem {values['Resources/cpu_mem_gb']:<6.2f}",
    ]
    if run.device.type == "cuda":
        fields.append(f"gpumem {values['Resources/peak_gpu_mem_gb']:<6.2f}")
        fields.append(f"reserved {values['Resources/peak_gpu_mem_reserved_gb']:<6.2f}")
    fields.append(f"loss {loss:<9.4g}")
    fields.append(f"lr {run.optimizer.param_groups[0]['lr']:<9.3g}")
    fields.append(f"img/s {1e3 / max(per_kimg, 1e-9):<8.4g}")
    fields.append(f"left {format_time(left)}")
    return " ".join(fields)


def format_time(seconds: float) -> str:
    """3723 -> "1h 02m 03s"."""
    whole = int(round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours:02d}h {minutes:02d}m"
    if hours:
        return f"{hours}h {minutes:02d}m {whole % 60:02d}s"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"


@torch.no_grad()
def check_same_everywhere(module: torch.nn.Module) -> None:
    """All ranks hold the same tensors as rank 0."""
    if not dist.is_initialized():
        return
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        mine = torch.nan_to_num(tensor.detach())
        theirs = mine.clone()
        dist.broadcast(theirs, src=0)
        if not torch.equal(mine, theirs):
            raise RuntimeError(f"{name} differs between rank 0 and rank {distributed.rank()}")


def save_snapshot(run: Run) -> None:
    """Each weight average as network-snapshot-NNNNNN, with its width if there are several, and a grid of samples of the
    first beside them.
    """
    for average in run.averages:
        check_same_everywhere(average)
    if distributed.rank() != 0:
        return
    options = run.options
    stem = f"{run.cur_nimg // 1000:0{run.recipe.digits}d}"
    for net, suffix in run.recipe.snapshots(run):
        path = options.run_dir / f"network-snapshot-{stem}{suffix}.{options.snapshot_format}"
        if options.snapshot_format == "pkl":
            data = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in options.dataset_kwargs.items()}
            checkpoint.save_pkl(net, path, run.loss_fn, run.augment_pipe, data)
        else:
            checkpoint.save(net, path)
    if options.preview_images:
        save_preview(run, options.run_dir / f"preview-{stem}.png")


@torch.no_grad()
def save_preview(run: Run, path: Path) -> None:
    """A grid of samples of the average, the same latents every time; one class after the other if there are classes."""
    count = run.options.preview_images
    channels, height, width = run.dataset.image_shape
    if channels not in (1, 3):
        return
    generator = torch.Generator(run.device).manual_seed(0)
    latents = torch.randn([count, channels, height, width], generator=generator, device=run.device)
    labels = None
    if run.dataset.label_dim:
        labels = torch.eye(run.dataset.label_dim, device=run.device)[torch.arange(count) % run.dataset.label_dim]
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        images = sampling.edm_sampler(run.ema, latents, labels, num_steps=PREVIEW_STEPS)
    sampling.save_grid(path, list(sampling.to_uint8(images)))


def maintain(run: Run, clock: Clock, writer: StatsWriter | None) -> Path | None:
    """One tick. The state dump, if one is due (its path is returned), comes last and already counts the tick as over,
    so that nothing before it is done twice.
    """
    options, tick_end = run.options, time.time()
    row = report_progress(run, clock, tick_end)
    if is_multiple(run, options.snapshot_ticks):
        save_snapshot(run)
        if options.measure is not None and writer is not None:
            row |= measured(run)
    dump = run.tick != 0 and is_multiple(run, options.state_dump_ticks)
    if writer is not None:
        writer.write(row, run.cur_nimg)
    run.tick += 1
    run.tick_start_nimg = run.cur_nimg
    clock.next_tick(tick_end)
    return write_state(run, clock, writer, automatic=False) if dump else None


def measured(run: Run) -> dict[str, dict[str, float]]:
    """What `measure` finds of the average, as entries of a row; the run's random numbers stay as they are."""
    assert run.options.measure is not None
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        values = run.options.measure(run.ema)
    found = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    print(f"Snapshot at kimg {run.cur_nimg / 1e3:g}: {found}", flush=True)
    return {name: {"num": 1, "mean": float(value), "std": 0.0} for name, value in values.items()}


def write_state(run: Run, clock: Clock, writer: StatsWriter | None, automatic: bool) -> Path:
    """A dump of this moment, in the middle of a tick or between two. `automatic`: by the clock or a signal."""
    path = run.options.run_dir / f"training-state-{run.cur_nimg // 1000:0{run.recipe.digits}d}{ENDING}"
    lines, now = writer.lines if writer else 0, time.time()
    begun = run.cur_nimg > run.tick_start_nimg  # the tick
    times = {"elapsed_sec": now - clock.start, "tick_sec": now - clock.tick_start if begun else 0.0}
    save_state(run, path, automatic, stats_lines=lines, **times)
    clock.state_written = time.monotonic()
    return path


def check_options(snapshot_format: str) -> None:
    if snapshot_format not in SNAPSHOT_FORMATS:
        raise UserError(f"snapshot format {snapshot_format}; expected one of {', '.join(SNAPSHOT_FORMATS)}")
