"""One optimizer step: gradients, learning rate, Adam, weight average. Nothing here waits for the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from edm_fast import distributed
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
            images = run.encoder.encode_latents(images.to(run.device, non_blocking=True))
            labels = labels.to(run.device, non_blocking=True)
            with noise_levels(run.net) as levels, run.precision.autocast():
                loss = run.loss_fn(net=run.model, images=images, labels=labels, augment_pipe=run.augment_pipe)
            run.stats.report("Loss/loss", loss)
            run.stats.report_by_noise("Loss/sigma", levels[-1], loss)
            run.precision.scaler.scale(loss.sum().mul(options.loss_scaling / per_rank)).backward()


@contextlib.contextmanager
def noise_levels(net: torch.nn.Module) -> Iterator[list[Tensor]]:
    """A list that takes the noise levels of every call of net(x, sigma, ...) inside."""
    levels: list[Tensor] = []
    hook = net.register_forward_pre_hook(lambda _, inputs: levels.append(inputs[1]))
    try:
        yield levels
    finally:
        hook.remove()


@torch.no_grad()
def clean_gradients(parameters: Iterable[Tensor], infinity: float = 1e5) -> None:
    """NaN -> 0, infinities -> +-infinity: one bad batch must not end a run. Those without gradient stay without."""
    for parameter in parameters:
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, nan=0, posinf=infinity, neginf=-infinity, out=parameter.grad)


def train_step(run: Run) -> None:
    """Advance `run` by one batch."""
    recipe, images = run.recipe, run.options.batch_size
    recipe.before_step(run)
    accumulate(run)
    for group in run.optimizer.param_groups:
        group["lr"] = recipe.rate(run)
    run.precision.scaler.unscale_(run.optimizer)
    clean_gradients(run.net.parameters(), recipe.infinity)
    skipped = run.precision.step(run.optimizer)
    if run.precision.name == "fp16":
        run.stats.report("Progress/skipped_steps", float(skipped))
    recipe.follow(run)
    run.cur_nimg += images
    run.data_position += images
