"""What a training run consists of, set up in the order that fixes its random numbers."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm_fast import distributed
from edm_fast.data import ImageFolderDataset
from edm_fast.errors import UserError
from edm_fast.files import user_path
from edm_fast.training import _build
from edm_fast.training._precision import Precision
from edm_fast.training._recipes import EdmRecipe, recipe_for
from edm_fast.training._stats import Stats
from edm_fast.training._stop import outlive_signals

Batch = tuple[Tensor, Tensor]

LOWEST = {"seed": 0, "batch_size": 1, "total_kimg": 0, "ema_halflife_kimg": 0, "lr_rampup_kimg": 0, "kimg_per_tick": 0}
LOWEST |= {"preview_images": 0, "dump_minutes": 0, "keep_states": 1, "resume_kimg": 0}
LOWEST_OR_NONE = {"batch_gpu": 0, "snapshot_ticks": 0, "state_dump_ticks": 0}


def deal_batch(batch_size: int, batch_gpu: int | None) -> tuple[int, int]:
    """A batch among the processes: (images of one backward pass on one rank, backward passes of a step)."""
    world = distributed.world_size()
    per_rank = batch_size // world
    size = min(batch_gpu or per_rank, per_rank)
    if size < 1 or size * (per_rank // size) * world != batch_size:
        raise UserError(
            f"batch size {batch_size} cannot be dealt to {world} process(es) in rounds of "
            f"{batch_gpu or per_rank}; expected a multiple of processes times round size"
        )
    return size, per_rank // size


@dataclass
class Options:
    """Settings of a run; names as the keywords of training_loop."""

    run_dir: Path
    dataset_kwargs: Mapping[str, Any]
    data_loader_kwargs: Mapping[str, Any]
    network_kwargs: Mapping[str, Any]
    loss_kwargs: Mapping[str, Any]
    optimizer_kwargs: Mapping[str, Any]
    augment_kwargs: Mapping[str, Any] | None
    seed: int
    batch_size: int
    batch_gpu: int | None
    total_kimg: float
    ema_halflife_kimg: float
    ema_rampup_ratio: float | None
    lr_rampup_kimg: float
    loss_scaling: float
    kimg_per_tick: float
    snapshot_ticks: int | None
    state_dump_ticks: int | None
    snapshot_format: str
    preview_images: int
    progress: bool
    dump_minutes: float
    keep_states: int
    lr_kwargs: Mapping[str, Any] | None = None
    ema_kwargs: Mapping[str, Any] | None = None
    precision: str = "fp32"
    log_to: str | None = None
    measure: Callable[[torch.nn.Module], Mapping[str, float]] | None = None
    resume_kimg: int = 0

    def __post_init__(self) -> None:
        self.run_dir = Path(user_path(self.run_dir))
        for name, low in (LOWEST | LOWEST_OR_NONE).items():
            value = getattr(self, name)
            if value is None and name in LOWEST_OR_NONE:
                continue
            if not isinstance(value, numbers.Real) or not low <= float(value) < float("inf"):
                raise UserError(f"{name} {value!r}; expected a finite number, at least {low}")
        if self.seed >= 1 << 32:
            raise UserError(f"seed {self.seed}; expected an integer below 2^32")
        if not 0 < self.loss_scaling < float("inf"):
            raise UserError(f"loss_scaling {self.loss_scaling}; expected a finite number above 0")
        for name in ("dataset_kwargs", "data_loader_kwargs", "network_kwargs", "loss_kwargs", "optimizer_kwargs"):
            setattr(self, name, dict(getattr(self, name) or {}))

    def rounds(self) -> tuple[int, int]:
        """(images of one backward pass on one rank, backward passes of a step)."""
        return deal_batch(self.batch_size, self.batch_gpu)


@dataclass
class Run:
    """The moving parts of a run, and how far it has come."""

    options: Options
    device: torch.device
    dataset: ImageFolderDataset
    batches: Iterator[Batch]
    net: torch.nn.Module
    model: torch.nn.Module  # net, or net inside DistributedDataParallel
    ema: torch.nn.Module  # the average, or the first of several
    recipe: EdmRecipe
    encoder: Any  # of items of the data set to images
    optimizer: torch.optim.Optimizer
    loss_fn: Any
    augment_pipe: Any
    base_lr: float
    precision: Precision
    stats: Stats = field(default_factory=Stats)
    cur_nimg: int = 0
    tick: int = 0
    tick_start_nimg: int = 0
    data_position: int = 0  # places of the common index stream used up
    elapsed_sec: float = 0.0  # by earlier parts of an interrupted run
    tick_sec: float = 0.0  # the same, of the current tick
    automatic_states: list[str] = field(default_factory=list)  # oldest first: dumps that make room for newer ones

    @property
    def averages(self) -> list[torch.nn.Module]:
        """All averages of the weights."""
        return [self.ema] if self.recipe.averages is None else list(self.recipe.averages.averages)

    @property
    def done(self) -> bool:
        return self.cur_nimg >= self.options.total_kimg * 1000


def _loader_kinds(
    num_workers: int,
    prefetch_factor: int | None,
    timeout: float,
    pin_memory: bool,
    persistent_workers: bool,
    drop_last: bool,
    collate_fn: Callable[..., Any] | None,
    worker_init_fn: Callable[..., Any] | None,
) -> None:
    """Keywords of torch's loader, which reads some only when it starts."""


def make_loader(dataset: Any, sampler: Any, options: Options, device: torch.device) -> Any:
    """torch's loader of rounds of the items of `dataset` that `sampler` names."""
    kwargs = dict(options.data_loader_kwargs)
    kwargs.pop("class_name", None)
    _build.check_kinds(_loader_kinds, kwargs)
    kwargs["pin_memory"] = bool(kwargs.get("pin_memory", False)) and device.type == "cuda"
    if kwargs.get("num_workers", 0) == 0:
        kwargs.pop("prefetch_factor", None)
    kwargs["worker_init_fn"] = functools.partial(start_loader_process, kwargs.get("worker_init_fn"))
    # a generator of its own, and the draw made here: how often a loader draws is torch's business and may change
    with _build.as_user_error("data loader"):
        return torch.utils.data.DataLoader(
            dataset, sampler=sampler, batch_size=options.rounds()[0], generator=torch.Generator(), **kwargs
        )


def endless_batches(
    dataset: ImageFolderDataset, options: Options, recipe: EdmRecipe, device: torch.device, start: int
) -> Iterator[Batch]:
    """Batches of the index stream from place `start` on."""
    loader = make_loader(dataset, recipe.order(dataset, options.seed, start), options, device)
    recipe.loader_draws()
    return _with_short_errors(loader)


def start_loader_process(own: Callable[[int], None] | None, index: int) -> None:
    outlive_signals()
    if own is not None:
        own(index)


def _with_short_errors(loader: torch.utils.data.DataLoader[Batch]) -> Iterator[Batch]:
    """A loader process hands on its traceback as the text of an error; only the last line is for the user.

    The processes start with the first batch, so that a run that fails before it leaves none behind.
    """
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except (UserError, OSError) as error:
            last = str(error).strip().splitlines()[-1]
            raise type(error)(last.rpartition(f"{type(error).__name__}: ")[2]) from None
        yield batch


@torch.no_grad()
def summarize(net: torch.nn.Module, dataset: ImageFolderDataset, batch: int, device: torch.device) -> None:
    """One pass over zeros in training mode, as published (it may draw dropout masks), and a line about the network."""
    channels: Any = net.img_channels
    images = torch.zeros([batch, channels, *dataset.image_shape[1:]], device=device)
    net(images, torch.ones([batch], device=device), torch.zeros([batch, dataset.label_dim], device=device))
    print(f"Network: {_build.describe(net)}", flush=True)


@torch.no_grad()
def same_as_rank0(net: torch.nn.Module) -> None:
    """Parameters and buffers of rank 0, on every rank: each drew its own, such as the Fourier frequencies of NCSN++."""
    if distributed.world_size() > 1:
        for tensor in [*net.parameters(), *net.buffers()]:
            torch.distributed.broadcast(tensor, src=0)


def distribute(net: torch.nn.Module, device: torch.device, augmented: bool) -> torch.nn.Module:
    """`net` as DistributedDataParallel where there are several processes."""
    if distributed.world_size() == 1:
        return net
    ddp = torch.nn.parallel.DistributedDataParallel
    idle = not augmented and any("map_augment" in name for name, _ in net.named_parameters())
    # buffers are constants: not sent at each step. The keyword has a new name since torch 2.13
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in inspect.signature(ddp).parameters else ""
    kwargs: dict[str, Any] = {buffers or "broadcast_buffers": False, "find_unused_parameters": idle}
    return ddp(net, device_ids=[device] if device.type == "cuda" else None, **kwargs)


def start_run(options: Options, device: torch.device, data_position: int = 0) -> Run:
    """A run at image 0, with data from `data_position` on. The order of the lines fixes the random numbers."""
    round_size, _ = options.rounds()
    precision = Precision(options.precision, device, bool(options.network_kwargs.get("use_fp16")))
    recipe = recipe_for(options)
    recipe.seed(options.seed)
    dataset = _build.build_dataset({**recipe.dataset_kwargs, **options.dataset_kwargs})
    batches = endless_batches(dataset, options, recipe, device, data_position)
    encoder = _build.build_encoder(dataset)
    recipe.first_item(torch.as_tensor(dataset[0][0])[None].to(device), encoder)
    net = _build.build_network(options.network_kwargs, dataset).to(device)
    if distributed.rank() == 0:
        summarize(net, dataset, round_size, device)
    same_as_rank0(net)  # of EDM2 the summary has put the weights to unit magnitude
    net = precision.laid_out(net)
    augment_pipe = _build.build_augment(options.augment_kwargs)
    optimizer = _build.build_optimizer(options.optimizer_kwargs, net.parameters())
    model = distribute(net, device, augmented=augment_pipe is not None)
    return Run(
        options=options,
        device=device,
        dataset=dataset,
        batches=batches,
        net=net,
        model=model,
        ema=recipe.start_average(net),
        recipe=recipe,
        encoder=encoder,
        optimizer=optimizer,
        loss_fn=_build.build_loss(options.loss_kwargs),
        augment_pipe=augment_pipe,
        base_lr=optimizer.param_groups[0]["lr"],
        precision=precision,
        tick=recipe.first_tick,
        data_position=data_position,
    )
