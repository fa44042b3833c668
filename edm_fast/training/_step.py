"""One optimizer step: gradients, learning rate, Adam, weight average. Nothing here waits for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
from torch import Tensor

from edm_fast import distributed
from edm_fast.training import _schedule
from edm_fast.training._run import Run


def accumulate(run: Run) -> None:
    """Gradients of loss_scaling * (sum over pixels, mean over the batch) of the loss; ranks meet in the last round."""
    options = run.options
    per_rank = options.batch_size // distributed.world_size()
    _, rounds = options.rounds()
    run.optimizer.zero_grad(set_to_none=True)
    for index in range(rounds):
        wait = run.model is not run.net and index < rounds - 1
        with run.model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator]
            images, labels = next(run.batches)
            images = images.to(run.device, non_blocking=True).to(torch.float32) / 127.5 - 1
            labels = labels.to(run.device, non_blocking=True)
            loss = run.loss_fn(net=run.model, images=images, labels=labels, augment_pipe=run.augment_pipe)
            run.stats.report("Loss/loss", loss)
            loss.sum().mul(options.loss_scaling / per_rank).backward()


@torch.no_grad()
def clean_gradients(parameters: Iterable[Tensor]) -> None:
    """NaN -> 0, infinities -> +-1e5: one bad batch must not end a run. Parameters without gradient stay without."""
    for parameter in parameters:
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)


@torch.no_grad()
def update_ema(ema: torch.nn.Module, net: torch.nn.Module, beta: float) -> None:
    """ema <- net + beta (ema - net), parameters only: buffers keep their initial copy."""
    for average, parameter in zip(ema.parameters(), net.parameters(), strict=True):
        average.copy_(parameter.lerp(average, beta))


def train_step(run: Run) -> None:
    """Advance `run` by one batch."""
    options = run.options
    accumulate(run)
    for group in run.optimizer.param_groups:
        group["lr"] = _schedule.learning_rate(run.cur_nimg, run.base_lr, options.lr_rampup_kimg)
    clean_gradients(run.net.parameters())
    run.optimizer.step()
    beta = _schedule.ema_beta(run.cur_nimg, options.batch_size, options.ema_halflife_kimg, options.ema_rampup_ratio)
    update_ema(run.ema, run.net, beta)
    run.cur_nimg += options.batch_size
    run.data_position += options.batch_size
