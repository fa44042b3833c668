"""The training loop: steps, and a tick every kimg_per_tick thousand images, until total_kimg.

Keywords and defaults are the published ones; `run_dir` receives snapshots, state dumps and stats.jsonl. Karras et al.
2022, Appendix F.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from edm_fast import distributed
from edm_fast.errors import UserError, near
from edm_fast.training import _build, _stop
from edm_fast.training._boards import Logger
from edm_fast.training._folder import check_free
from edm_fast.training._precision import Precision
from edm_fast.training._progress import Progress
from edm_fast.training._recipes import check_parts, recipe_for
from edm_fast.training._resume import data_position, read_dump, resume
from edm_fast.training._run import Options, Run, make_loader, start_run
from edm_fast.training._stats import StatsWriter
from edm_fast.training._step import train_step
from edm_fast.training._tick import (
    Clock,
    check_options,
    check_same_everywhere,
    maintain,
    save_snapshot,
    tick_is_due,
    write_state,
)


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
    dump_minutes: float = 10,
    keep_states: int = 2,
    lr_kwargs: Mapping[str, Any] | None = None,
    ema_kwargs: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    log_to: str | None = None,
    measure: Callable[[torch.nn.Module], Mapping[str, float]] | None = None,
) -> Run:
    """Train; returns the finished run (net, ema, cur_nimg, ...). precision: see `_precision`, log_to: `_boards`.

    network_kwargs need a `class_name` and, like the others, name classes bare or dotted. resume_state_dump continues a
    run where this project's dump left it; with a published dump of EDM, resume_pkl is the snapshot beside it. With the
    class Precond the run is one of EDM2 (Karras et al. 2024): lr_kwargs are those of `inverse_sqrt_rate` in place of
    lr_rampup_kimg, ema_kwargs name the averages in place of the half-life, see `_recipes`. resume_pkl alone starts from
    the weights of a snapshot. preview_images: samples beside a snapshot, 0 = none; measure(average): numbers of one.

    Besides the dumps of state_dump_ticks, which stay, there is one every dump_minutes (0 = none), of which the newest
    keep_states stay. SIGTERM, SIGUSR1, SIGHUP and Ctrl-C, to any rank, write one after the next step on all ranks and
    raise SystemExit(0), for Ctrl-C KeyboardInterrupt. A run_dir that holds another run's results is refused.
    """
    settings = {name: value for name, value in locals().items() if name != "device"}
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options = check_settings(device, **settings)
    stored, published = read_dump(resume_state_dump)
    kept = {name: value for name, value in (stored or {}).items() if name in ("seed", "ema_rampup_ratio")}
    options = dataclasses.replace(options, **kept)
    set_numerics(cudnn_benchmark, tf32=precision == "tf32")
    with _stop.Signals() as signals, one_line_for_lost_ranks():
        run = start_run(options, device, data_position=data_position(stored, published))
        resume(run, stored, published, resume_pkl, resume_state_dump)
        check_free(options.run_dir, resume_state_dump)
        train(run, signals, stats_lines=stored["stats_lines"] if stored else None)
    return run


def check_settings(device: torch.device | None = None, **settings: Any) -> Options:
    """The options of a run with these keywords of training_loop. UserError for those that it does not take, with a near
    one, and for values that it would refuse later. Nothing is read; `device`, if given, is asked for the precision and
    for a step of the optimizer.
    """
    known = inspect.signature(training_loop).parameters
    for name in (name for name in settings if name not in known):
        raise UserError(f"{name} is no setting of a training run{near(name, known)}")
    _build.check_kinds(training_loop, settings)
    arguments = {name: parameter.default for name, parameter in known.items()} | settings
    options = Options(**{field.name: arguments[field.name] for field in dataclasses.fields(Options)})
    check_options(options.snapshot_format)
    make_loader([0], [0], options, torch.device("cpu"))
    weight = torch.zeros(1, device="meta", requires_grad=True)
    recipe_for(options).start_average(torch.nn.ParameterList([weight]))
    _build.build_loss(options.loss_kwargs)
    check_parts(options)
    _build.build_augment(options.augment_kwargs)
    _build.build_optimizer(options.optimizer_kwargs, [weight])
    if device is not None:
        Precision(options.precision, device, bool(options.network_kwargs.get("use_fp16")))
        _build.try_optimizer(options.optimizer_kwargs, device)
    return options


def set_numerics(cudnn_benchmark: bool, tf32: bool) -> None:
    """Full float32 products, unless tf32, and sums, as published."""
    torch.backends.cudnn.benchmark = cudnn_benchmark
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def train(run: Run, signals: _stop.Signals, stats_lines: int | None) -> None:
    """Steps and ticks until the run is done or a signal stops it; nothing if it already is done."""
    options = run.options
    main = distributed.rank() == 0
    options.run_dir.mkdir(parents=True, exist_ok=True)
    check_same(run)
    ranks, clock = _stop.Agreement(), Clock(run)
    what = "nothing is left to train" if run.done else "training starts"
    distributed.print0(f"Image {run.cur_nimg} of {round(options.total_kimg * 1000)}: {what}", flush=True)
    progress = Progress(run, shown=main and options.progress)
    writer = open_writer(options, stats_lines) if main else None
    first, state = run.cur_nimg, None
    if first == 0 and run.recipe.first_tick and options.snapshot_ticks:
        save_snapshot(run)
    with progress.bar, writer or contextlib.nullcontext():
        wish = ranks.finish(signals.wish)  # a signal may have come while the run was set up
        while not run.done and wish <= _stop.DUMP:
            train_step(run)
            progress.step()
            due = main and clock.wants_state(options.dump_minutes)
            wish = ranks.exchange(max(signals.wish, _stop.DUMP if due else _stop.NOTHING))
            state = None
            if tick_is_due(run):
                progress.bar.clear()
                state = maintain(run, clock, writer)
            if wish and state is None:
                state = write_state(run, clock, writer, automatic=True)
    if run.done:
        check_same(run)
        wish = ranks.finish(signals.wish)  # also: a rank that returns may read what rank 0 has written
        distributed.print0("Done.", flush=True)
    if wish > _stop.DUMP:
        if not run.done:
            distributed.barrier()  # a rank that ends may be started anew, and read what rank 0 has written
            say_stopped(run, _stop.signal_name(wish), state if run.cur_nimg > first else None)
        raise _stop.ending(wish)


def open_writer(options: Options, stats_lines: int | None) -> StatsWriter:
    """What takes the numbers of each tick."""
    loggers = {}
    if options.log_to is not None:
        config = {name: value for name, value in vars(options).items() if name not in ("run_dir", "measure")}
        loggers[options.log_to] = Logger(options.log_to, options.run_dir.resolve().name, config)
    return StatsWriter(options.run_dir, stats_lines, loggers)


def say_stopped(run: Run, name: str, state: Path | None) -> None:
    """The one line about a run that a signal has ended."""
    outcome = "before the first step, with nothing to keep" if state is None else f"with the state in {state}"
    go_on = "To go on: the same options with --resume=auto (no --transfer), in Python resume_state_dump"
    distributed.print0(f"Stopped by {name} at image {run.cur_nimg}, {outcome}. {go_on}", flush=True)


def check_same(run: Run) -> None:
    """All ranks hold the same network and average."""
    check_same_everywhere(run.net)
    for average in run.averages:
        check_same_everywhere(average)


@contextlib.contextmanager
def one_line_for_lost_ranks() -> Iterator[None]:
    """A collective call fails when another process has ended; that process has said why, this one need not."""
    try:
        yield
    except RuntimeError as error:
        if distributed.world_size() > 1 and re.search(r"closed by peer|reset by peer|Broken pipe", str(error)):
            line = "another process of this run has ended, so that this one cannot go on; its own message says why"
            raise UserError(line) from error
        raise
