"""What EDM and EDM2 do differently in the same loop: random numbers, order of the data, rates, averages, file names.

EDM: Karras et al. 2022, Appendix F. EDM2: Karras et al. 2024, Section 3 and Appendix B; the random numbers of a step
depend on the seed and the images seen alone, so that nothing else counts when a run goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from edm_fast import distributed
from edm_fast.data import EpochSampler, InfiniteSampler, mixed_seed
from edm_fast.errors import UserError
from edm_fast.training._averages import PowerFunctionEMA, TraditionalEMA, update_ema
from edm_fast.training._build import build, split
from edm_fast.training._schedule import ema_beta, inverse_sqrt_rate, learning_rate

Run = Any  # that of _run, which builds on this file
Options = Any
AVERAGES = {"PowerFunctionEMA": PowerFunctionEMA, "TraditionalEMA": TraditionalEMA}
IMAGES_OF_A_NAME = 1024  # file names of EDM2 tell the images seen in thousands; multiples of it can be told apart


def seed_everything(seed: int) -> None:
    np.random.seed((seed * distributed.world_size() + distributed.rank()) % (1 << 31))
    torch.manual_seed(np.random.randint(1 << 31))


class EdmRecipe:
    """One average with a half-life, which starts as a copy of the network."""

    infinity = 1e5  # what infinite gradients count as
    digits = 6  # of the thousands of images in names of snapshots
    first_tick = 0  # 0: it ends after the first step
    averages: Any = None  # those of several widths
    dataset_kwargs: Mapping[str, Any] = {}  # unless the options say otherwise

    def seed(self, seed: int) -> None:
        """Before the network is made."""
        seed_everything(seed)

    def order(self, dataset: Any, seed: int, start: int) -> torch.utils.data.Sampler[int]:
        """The indices this rank reads, from place `start` of the common stream on."""
        rank, world = distributed.rank(), distributed.world_size()
        return InfiniteSampler(dataset, rank=rank, num_replicas=world, seed=seed, start=start)

    def loader_draws(self) -> None:
        """What the loader takes from the global generator. As published, whichever torch makes the loader."""
        torch.empty([], dtype=torch.int64).random_()

    def first_item(self, raw: torch.Tensor, encoder: Any) -> None:
        """Before the network is made."""

    def before_step(self, run: Run) -> None:
        pass

    def rate(self, run: Run) -> float:
        return learning_rate(run.cur_nimg, run.base_lr, run.options.lr_rampup_kimg)

    def follow(self, run: Run) -> None:
        """The average after a step; cur_nimg is still that of its start."""
        options, nimg = run.options, run.cur_nimg
        beta = ema_beta(nimg, options.batch_size, options.ema_halflife_kimg, options.ema_rampup_ratio)
        update_ema(run.ema, run.net, beta)

    def start_average(self, net: torch.nn.Module) -> torch.nn.Module:
        """The average, or the first of several."""
        return copy.deepcopy(net).eval().requires_grad_(False)

    def snapshots(self, run: Run) -> Iterator[tuple[torch.nn.Module, str]]:
        """(network to store, end of the name of its file)."""
        yield run.ema, ""


class Edm2Recipe(EdmRecipe):
    """Averages by `ema_kwargs` (power functions of widths 0.05 and 0.1 unless it says otherwise), stored in half
    precision; learning rate by `lr_kwargs`, see `inverse_sqrt_rate`.
    """

    infinity = 0.0
    digits = 7
    first_tick = 1
    dataset_kwargs: Mapping[str, Any] = {"arrays": True}

    def __init__(self, options: Options) -> None:
        self.lr_kwargs = {k: v for k, v in (options.lr_kwargs or {}).items() if k != "func_name"}
        self.ema_kwargs = dict(options.ema_kwargs or {"class_name": "PowerFunctionEMA"})
        named = {"class_name": (options.lr_kwargs or {}).get("func_name", "learning_rate_schedule"), **self.lr_kwargs}
        build({"learning_rate_schedule": inverse_sqrt_rate}, named, "learning rate", "", 0, 1)  # complains, if need be
        self.seed_of_run = options.seed
        tick = options.kimg_per_tick * 1000
        if tick % IMAGES_OF_A_NAME or (tick / options.batch_size) % 1:
            raise UserError(
                f"a tick of {tick:g} images with batches of {options.batch_size}; expected a multiple of both "
                f"{IMAGES_OF_A_NAME} and the batch, so that names of snapshots tell their times"
            )

    def seed(self, seed: int) -> None:
        self._mix(seed, distributed.rank())

    def _mix(self, *numbers: int) -> None:
        np.random.seed(mixed_seed(*numbers))
        torch.manual_seed(mixed_seed(*numbers))

    def order(self, dataset: Any, seed: int, start: int) -> torch.utils.data.Sampler[int]:
        rank, world = distributed.rank(), distributed.world_size()
        return EpochSampler(dataset, rank=rank, num_replicas=world, seed=seed, start_idx=start)

    def loader_draws(self) -> None:
        pass

    def first_item(self, raw: torch.Tensor, encoder: Any) -> None:
        """As published, the first item is encoded, which of latents draws random numbers."""
        encoder.encode_latents(raw)

    def before_step(self, run: Run) -> None:
        self._mix(self.seed_of_run, distributed.rank(), run.cur_nimg)

    def rate(self, run: Run) -> float:
        lr = inverse_sqrt_rate(run.cur_nimg, run.options.batch_size, **self.lr_kwargs)
        run.stats.report("Loss/learning_rate", lr)
        return lr

    def follow(self, run: Run) -> None:
        self.averages.update(run.cur_nimg + run.options.batch_size, run.options.batch_size)

    def start_average(self, net: torch.nn.Module) -> torch.nn.Module:
        self.averages = build(AVERAGES, self.ema_kwargs, "average", "PowerFunctionEMA", net)
        return self.averages.averages[0]

    def snapshots(self, run: Run) -> Iterator[tuple[torch.nn.Module, str]]:
        for average, suffix in self.averages.get():
            yield copy.deepcopy(average).half(), suffix


def is_edm2(network_kwargs: Mapping[str, Any]) -> bool:
    """Whether a network is one of EDM2, by its class."""
    return str(network_kwargs.get("class_name", "")).rpartition(".")[2] == "Precond"


def check_parts(options: Options) -> None:
    """UserError for a loss or an augmentation that the network cannot take."""
    edm2, (loss, _) = is_edm2(options.network_kwargs), split(options.loss_kwargs, "loss", "EDMLoss")
    if (loss == "EDM2Loss") != edm2:
        kind = "of EDM2 (class Precond)" if edm2 else "of EDM"
        raise UserError(f"loss {loss} for a network {kind}; expected EDM2Loss for those of EDM2 and no others")
    if edm2 and options.augment_kwargs is not None:
        raise UserError("EDM2's networks know no augmentation; expected no augment_kwargs")


def recipe_for(options: Options) -> EdmRecipe:
    """That of the network's class."""
    if is_edm2(options.network_kwargs):
        return Edm2Recipe(options)
    for name in (name for name in ("lr_kwargs", "ema_kwargs") if getattr(options, name) is not None):
        raise UserError(f"{name} are settings of EDM2's networks; expected none, or a network of the class Precond")
    return EdmRecipe()
