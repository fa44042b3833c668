"""The pieces of the loop: batches and rounds, several processes, bad gradients, statistics, snapshots."""

import inspect
import json
import multiprocessing
import subprocess
import sys
import types
import zipfile
from collections import UserList
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import edm_fast
from edm_fast import training, use_backend
from edm_fast.cli._errors import error_line
from edm_fast.errors import UserError
from edm_fast.training import _averages, _build, _stats, _step, _tick
from helpers import tiny_training as tiny
from helpers.devices import DEVICES


def plain_loss(self, net, images, labels, augment_pipe=None):
    """No random numbers: with plain gradient descent, batches dealt in other ways must give equal steps."""
    sigma = torch.ones([images.shape[0], 1, 1, 1], device=images.device)
    return (net(images + 0.1 * images.roll(1, 3), sigma, labels) - images) ** 2


# runs one after the other in the same processes: [name, settings, whether with plain_loss] each
WORKER = f"""
import json, sys, torch
from edm_fast import distributed, training

{inspect.getsource(plain_loss)}

real_loss = training.EDMLoss.__call__
device = sys.argv[1]
torch.backends.cudnn.deterministic = True
distributed.init(device)
for name, settings, plain in json.loads(sys.argv[2]):
    training.EDMLoss.__call__ = plain_loss if plain else real_loss
    run = training.training_loop(device=device, progress=False, **settings)
    if distributed.rank() == 0:
        torch.save({{"net": run.net.state_dict(), "ema": run.ema.state_dict()}}, name)
distributed.shutdown()
"""


EDM2 = {"loss_kwargs": {"class_name": "EDM2Loss"}, "batch_size": 64, "kimg_per_tick": 1.024, "network_kwargs": {}}
EDM2["network_kwargs"] |= {"class_name": "Precond", "model_channels": 8, "channel_mult": [1]}


def settings(data, run_dir, **changes):
    base = {
        "run_dir": str(run_dir),
        "dataset_kwargs": {"path": str(data), "use_labels": True},
        "network_kwargs": {**tiny.NETWORK, "dropout": 0},
        "optimizer_kwargs": {"class_name": "torch.optim.SGD", "lr": 0.1},
        "batch_size": 8,
        "lr_rampup_kimg": 0,
        "ema_halflife_kimg": 0.05,
        "kimg_per_tick": 0.02,
        "snapshot_ticks": 1,
        "state_dump_ticks": 1,
        "total_kimg": 0.04,
        "seed": 3,
        "preview_images": 0,
    }
    return {**base, **changes}


@pytest.fixture
def data(tmp_path):
    return tiny.write_dataset(tmp_path / "data.zip")


def distance(a, b):
    return max((a[key] - b[key]).abs().max().item() for key in a)


def run_plain(data, run_dir, device="cpu", **changes):
    run = training.training_loop(**settings(data, run_dir, seed=0, **changes), device=device, progress=False)
    return {part: {k: v.cpu() for k, v in getattr(run, part).state_dict().items()} for part in ("net", "ema")}


@pytest.mark.parametrize("device", DEVICES)
def test_rounds_give_the_same_steps(data, tmp_path, monkeypatch, device):
    """And those of the reference on the CPU."""
    monkeypatch.setattr(training.EDMLoss, "__call__", plain_loss)
    with use_backend("reference"):
        fresh = run_plain(data, tmp_path / "fresh", total_kimg=0.001)
        one = run_plain(data, tmp_path / "one")
    whole = run_plain(data, tmp_path / "whole", device)
    rounds = run_plain(data, tmp_path / "rounds", device, batch_gpu=2)
    for part in ("net", "ema"):
        assert distance(one[part], fresh[part]) > 1e-3  # it did move
        assert distance(one[part], whole[part]) < 1e-5
        assert distance(one[part], rounds[part]) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_two_processes(data, tmp_path, monkeypatch, device):
    """Two processes (of gloo, or nccl) take the steps of one; and with random numbers they resume bit-identically."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU, and nccl wants one for each process")
    monkeypatch.setattr(training.EDMLoss, "__call__", plain_loss)
    one = run_plain(data, tmp_path / "one", device)
    # seed 0 starts rank 0 of any number of processes alike; dropout and the real loss use each rank's own numbers
    optimizer = {"class_name": "torch.optim.Adam", "lr": 1e-3}
    real = {"network_kwargs": tiny.NETWORK, "batch_size": 4, "optimizer_kwargs": optimizer}
    real["cudnn_benchmark"] = False  # a clock would choose another algorithm now and then
    state = str(tmp_path / "parts" / "training-state-000000.safetensors")
    jobs = [
        ("two", settings(data, tmp_path / "two", seed=0, batch_gpu=2), True),
        ("whole", settings(data, tmp_path / "whole", **real), False),
        ("half", settings(data, tmp_path / "parts", **real, total_kimg=0.024), False),
        ("parts", settings(data, tmp_path / "parts", **real, resume_state_dump=state), False),
    ]
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    command += [device, json.dumps([(str(tmp_path / f"{name}.pt"), *rest) for name, *rest in jobs])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    got = {name: torch.load(tmp_path / f"{name}.pt", weights_only=True, map_location="cpu") for name, *_ in jobs}
    for part in ("net", "ema"):
        assert distance(one[part], got["two"][part]) < 1e-5
        assert distance(got["whole"][part], got["half"][part]) > 0
        assert distance(got["whole"][part], got["parts"][part]) == 0
    for a, b in zip(tiny.read_stats(tmp_path / "one"), tiny.read_stats(tmp_path / "two"), strict=True):
        assert a["Loss/loss"]["num"] == b["Loss/loss"]["num"]  # summed over ranks
        assert a["Loss/loss"]["mean"] == pytest.approx(b["Loss/loss"]["mean"], rel=1e-4)
        assert a["Loss/sigma 1-3"] == pytest.approx(b["Loss/sigma 1-3"], rel=1e-4)
    for row in tiny.read_stats(tmp_path / "whole"):  # the ranks see different noise levels
        ranges = [value for name, value in row.items() if name.startswith("Loss/sigma ")]
        assert len(ranges) > 1 and sum(value["num"] for value in ranges) == row["Loss/loss"]["num"]
        assert sum(value["num"] * value["mean"] for value in ranges) == pytest.approx(
            row["Loss/loss"]["num"] * row["Loss/loss"]["mean"], rel=1e-5
        )


@pytest.mark.parametrize("batch, batch_gpu", [(7, 2), (5, 3), (512, 500)])
def test_batch_that_cannot_be_dealt(data, tmp_path, batch, batch_gpu):
    with pytest.raises(UserError, match="batch size"):
        training.training_loop(**settings(data, tmp_path, batch_size=batch, batch_gpu=batch_gpu), device="cpu")


def test_bad_gradients_become_finite():
    values = [float("nan"), float("inf"), float("-inf"), 2.5]
    a, b = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(1))
    a.grad = torch.tensor(values)
    _step.clean_gradients([a, b])
    assert a.grad.tolist() == [0, 1e5, -1e5, 2.5] and b.grad is None


def test_run_survives_losses_that_are_not_finite(data, tmp_path, monkeypatch, capsys):
    call = training.EDMLoss.__call__
    monkeypatch.setattr(training.EDMLoss, "__call__", lambda *a, **k: call(*a, **k) * float("nan"))
    run = training.training_loop(**settings(data, tmp_path / "run"), device="cpu", progress=False)
    assert all(torch.isfinite(p).all() for p in run.net.parameters())
    assert "not finite" in capsys.readouterr().out


def test_loss_scaling_multiplies_gradients(data, tmp_path):
    """It is not undone: with plain gradient descent, scale s equals learning rate times s."""
    scaled = training.training_loop(**settings(data, tmp_path / "a", loss_scaling=4.0), device="cpu", progress=False)
    optimizer = {"class_name": "SGD", "lr": 0.4}
    other = settings(data, tmp_path / "b", optimizer_kwargs=optimizer)
    plain = training.training_loop(**other, device="cpu", progress=False)
    assert distance(scaled.net.state_dict(), plain.net.state_dict()) < 1e-5


def test_snapshot_loads_and_is_the_average(data, tmp_path):
    run = training.training_loop(**settings(data, tmp_path / "run"), device="cpu", progress=False)
    net = edm_fast.load(tmp_path / "run" / "network-snapshot-000000.safetensors")
    assert distance(net.state_dict(), run.ema.state_dict()) == 0
    assert not any(p.requires_grad for p in net.parameters()) and not net.training


def test_average_keeps_buffers():
    net, ema = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    torch.nn.init.constant_(net.weight, 3.0)
    net.running_mean.fill_(7)
    _averages.update_ema(ema, net, beta=0.25)
    assert ema.weight.tolist() == [2.5, 2.5] and ema.running_mean.tolist() == [0, 0]


def test_stats_are_moments_since_the_last_line():
    stats = _stats.Stats()
    stats.report("a", torch.tensor([1.0, 3.0]))
    stats.report("a", 5)
    stats.report("b", 0.3)
    rows = stats.collect(shared=[])
    assert rows["a"] == {"num": 3, "mean": 3.0, "std": pytest.approx(np.sqrt(8 / 3))}
    assert rows["b"] == {"num": 1, "mean": float(np.float32(0.3)), "std": 0.0}
    assert stats.collect(shared=[]) == {}


def test_losses_are_told_by_ranges_of_noise_levels(tmp_path, data, monkeypatch):
    """Against the sums over all images of a tick, range by range."""
    seen = []
    loss = training.EDMLoss.__call__

    def watched(self, net, images, labels, augment_pipe):
        def denoiser(x, sigma, *args, **kwargs):
            seen.append([sigma.flatten()])
            return net(x, sigma, *args, **kwargs)

        found = loss(self, denoiser, images, labels, augment_pipe)
        seen[-1].append(found.detach().double().flatten(1))
        return found

    monkeypatch.setattr(training.EDMLoss, "__call__", lambda self, **kwargs: watched(self, **kwargs))
    tiny.run_loop(data, tmp_path / "run")
    sigma, values = (torch.cat(parts) for parts in zip(*seen[1:3]))  # the second tick
    row = tiny.read_stats(tmp_path / "run")[1]
    ranges = {name: value for name, value in row.items() if name.startswith("Loss/sigma ")}
    assert len(ranges) > 3 and sum(value["num"] for value in ranges.values()) == row["Loss/loss"]["num"]
    for name, value in ranges.items():
        low, high = map(float, name.split()[1].split("-"))
        own = values[(sigma >= low) & (sigma < high)]
        assert value["num"] == own.numel() and value["mean"] == pytest.approx(own.mean().item(), rel=1e-5)
        assert value["std"] == pytest.approx(own.std(correction=0).item(), rel=1e-3)


def test_tensorboard_gets_every_row_where_installed(tmp_path, monkeypatch):
    seen = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, global_step):
            seen.append((name, value, global_step))

        def flush(self):
            seen.append("flush")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    writer = _stats.StatsWriter(tmp_path)
    writer.write({"Loss/loss": {"num": 1, "mean": 0.5, "std": 0.0}}, cur_nimg=42)
    assert seen == [("Loss/loss", 0.5, 42), "flush"]
    assert writer.lines == 1 and len(tiny.read_stats(tmp_path)) == 1


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0s"), (59, "59s"), (62, "1m 02s"), (3723, "1h 02m 03s"), (100000, "1d 03h 46m")]
)
def test_format_time(seconds, text):
    assert _tick.format_time(seconds) == text


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"snapshot_format": "onnx"}, "snapshot format"),
        ({"loss_kwargs": {"class_name": "training.loss.L2"}}, "unknown loss L2"),
        ({"loss_kwargs": {"sigma": 1}}, "EDMLoss"),
        ({"optimizer_kwargs": {"class_name": "torch.optim.LBFGS"}}, "unknown optimizer"),
        ({"augment_kwargs": {"class_name": "AugmentPipe", "zoom": 1}}, "zoom"),
        ({"network_kwargs": {"class_name": 3}}, "class_name"),
        ({"dataset_kwargs": {"path": "/nowhere.zip"}}, "does not exist"),
        ({"network_kwargs": {**tiny.NETWORK, "channel_mult": [1, 1, 1, 1]}}, "4x4 .* multiples of 8"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1 << 32}, "seed 4294967296; expected an integer below"),
        ({"seed": 1.5}, "seed is 1.5; expected int"),
        ({"cudnn_benchmark": "no"}, "cudnn_benchmark is 'no'; expected bool"),
        ({"loss_scaling": "1"}, "loss_scaling is '1'; expected float"),
        ({"loss_scaling": 0}, "loss_scaling 0; expected a finite number above 0"),
        ({"loss_scaling": float("nan")}, "loss_scaling nan; expected"),
        ({"resume_kimg": -1}, "resume_kimg -1; expected"),
        ({"dataset_kwargs": 3}, r"dataset_kwargs is 3; expected an object \(dict\) or nothing"),
        ({"loss_kwargs": {"P_std": -1}}, "P_std -1; expected"),
        ({"loss_kwargs": {"class_name": "EDM2Loss"}}, "loss EDM2Loss for a network of EDM; expected"),
        ({**EDM2, "loss_kwargs": {}}, "loss EDMLoss for a network of EDM2 .*; expected EDM2Loss"),
        ({**EDM2, "augment_kwargs": {"p": 0.1}}, "EDM2's networks know no augmentation"),
        ({**EDM2, "ema_kwargs": {"stds": []}}, r"no width of an average \(stds\)"),
        ({**EDM2, "ema_kwargs": {"stds": [0.5]}}, "the width of an average is 0.5; expected"),
        ({"augment_kwargs": {"p": 7}}, "p 7 of the augmentation; expected a probability"),
        ({"optimizer_kwargs": {"betas": [0.9]}}, "optimizer Adam: .*index"),
        ({"optimizer_kwargs": {"betas": [0.9, 0.99, 0.999]}}, "optimizer: too many values"),
        ({"optimizer_kwargs": {"betas": {"a": 1}}}, "optimizer Adam: "),
        ({"optimizer_kwargs": {"fused": True, "foreach": True}}, "optimizer Adam: `fused` and `foreach`"),
        ({"optimizer_kwargs": {"differentiable": True}}, "optimizer: a leaf Variable"),
    ],
)
def test_bad_settings(data, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        training.training_loop(**settings(data, tmp_path / "run", **changes), device="cpu")
    assert not (tmp_path / "run").exists()


def test_lists_of_any_kind():
    """A list in settings may be any sequence, such as one of a configuration, or an array; and Any takes all."""

    def stub(stds: Sequence[float], other: Any) -> None:
        pass

    for good in ([0.1], (0.1,), UserList([0.1]), np.array([0.1])):
        _build.check_kinds(stub, {"stds": good, "other": object()})
    for bad in ("0.1", b"1", 0.1, ["0.1"], {0.1: 1}):
        with pytest.raises(UserError, match="expected a list of float"):
            _build.check_kinds(stub, {"stds": bad})


def test_damaged_image_found_by_a_loader_process_is_one_line(tmp_path):
    data = tiny.write_dataset(tmp_path / "data.zip", count=6)
    raw = bytearray(data.read_bytes())
    at = raw.rindex(b"IDAT")
    raw[at : at + 30] = bytes(30)
    data.write_bytes(raw)
    options = settings(data, tmp_path / "run", data_loader_kwargs={"num_workers": 1, "prefetch_factor": 2})
    with pytest.raises(UserError) as caught:
        training.training_loop(**options, device="cpu")
    assert "\n" not in str(caught.value) and "damaged" in str(caught.value) and "Traceback" not in str(caught.value)


def test_image_that_vanishes_is_one_line(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    with zipfile.ZipFile(tiny.write_dataset(tmp_path / "data.zip", count=4, classes=0)) as archive:
        archive.extractall(folder)
    (folder / "003.png").unlink()
    (folder / "003.png").symlink_to("nowhere.png")
    for workers in (0, 1):
        loader = {"num_workers": workers, "prefetch_factor": 2}
        options = settings(folder, tmp_path / "run", data_loader_kwargs=loader)
        with pytest.raises(OSError) as caught:
            training.training_loop(**options, device="cpu")
        line = error_line(caught.value)
        assert "003.png" in line and "Traceback" not in line and len(line) < 200


def test_loader_processes_start_with_the_first_batch(data, tmp_path):
    """A run that fails while it is set up must not have started any: their end would clutter the one line."""
    loader = {"num_workers": 1, "prefetch_factor": 2}
    options = settings(data, tmp_path / "run", data_loader_kwargs=loader, network_kwargs={"class_name": "Missing"})
    before = set(multiprocessing.active_children())
    with pytest.raises(UserError) as caught:
        training.training_loop(**options, device="cpu")
    assert set(multiprocessing.active_children()) == before and caught.tb is not None


@pytest.mark.parametrize("name", ["torch.optim.Adam", "AdamW"])
def test_adam_on_cpus_is_fused_but_where_the_published_code_is_asked_for(name):
    def stepped(backend, **choice):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 999))
        with use_backend(backend):
            optimizer = _build.build_optimizer({"class_name": name, "lr": 1e-2, **choice}, iter([parameter]))
        for step in range(3):
            parameter.grad = torch.cos(parameter.detach() * (step + 5))
            optimizer.step()
        return parameter.detach(), optimizer.param_groups[0]["fused"]

    (ours, own), (theirs, plain) = stepped("auto"), stepped("reference")
    assert own is True and not plain and (ours - theirs).abs().max() < 1e-6
    assert torch.equal(stepped("auto", foreach=False)[0], theirs)
