"""What is shown between ticks and about the network; busy processors are noticed, and waiting for data is not."""

import io
import os
import re
import subprocess
import sys
import time
import types

import pytest
import torch

from edm_fast.training import _build, _forecast, _progress, _stats, check_settings, forecast
from helpers import tiny_training as tiny


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fake_run(device="cpu"):
    group = {"lr": 0.00025}
    return types.SimpleNamespace(
        options=types.SimpleNamespace(total_kimg=1, batch_size=10),
        device=torch.device(device),
        optimizer=types.SimpleNamespace(param_groups=[group]),
        stats=_stats.Stats(),
        cur_nimg=0,
    )


def test_the_bar_shows_loss_rate_speed_and_time_left(monkeypatch):
    monkeypatch.setattr(_progress, "REFRESH_SEC", 0)
    run, terminal = fake_run(), Terminal()
    progress = _progress.Progress(run, shown=True, file=terminal)
    for value in (1.0, 2.0, 3.0):
        run.stats.report("Loss/loss", torch.tensor([value, value]))
        progress.step()
    progress.bar.refresh()
    line = terminal.getvalue().split("\r")[-1]
    assert "loss 1.5, lr 0.00025" in line and "30.0/1.00k" in line and "img/s" in line and "<" in line
    run.stats.collect(shared=[])  # a tick: nothing to show until the next step, and no error
    progress.step()
    progress.bar.close()


def test_the_bar_does_not_wait_for_the_device(monkeypatch):
    """On a GPU the copy is asked for, and read at a step when it has arrived."""
    arrived, asked = [False], []

    class Event:
        def record(self):
            asked.append(1)

        def query(self):
            return arrived[0]

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(_progress, "REFRESH_SEC", 0)
    run, terminal = fake_run("cuda"), Terminal()
    monkeypatch.setattr(_progress, "peak_gb", lambda device: 1.5)
    monkeypatch.setattr(_progress, "_wait", lambda device: None)
    progress = _progress.Progress(run, shown=True, file=terminal)
    run.stats.report("Loss/loss", torch.tensor([1.0]))
    for _ in range(3):
        progress.step()
    assert len(asked) == 1 and "loss" not in terminal.getvalue()
    arrived[0] = True
    progress.step()
    progress.bar.refresh()
    assert len(asked) == 2 and "loss 1, lr 0.00025, 1.5 GiB" in terminal.getvalue()
    progress.bar.close()


def test_speed_is_told_once_after_the_first_steps(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: clock[0])
    run = fake_run()
    progress = _progress.Progress(run, shown=True, file=io.StringIO())
    progress._processors = None
    for seconds in (100, 2, 2, 2, 2):  # the first step sets things up
        clock[0] += seconds
        run.cur_nimg += 10
        progress.step()
    assert capsys.readouterr().out == "Speed: 5 images/s; the rest takes about 3m 12s\n"


def test_no_bar_without_a_terminal():
    run, file = fake_run(), io.StringIO()
    progress = _progress.Progress(run, shown=True, file=file)
    run.stats.report("Loss/loss", 1.0)
    progress.step()
    progress.bar.close()
    assert file.getvalue() == ""


@pytest.mark.skipif(not _progress.delays(), reason="the system does not tell how long threads wait")
def test_busy_processors_are_noticed_and_waiting_is_not(monkeypatch, capsys):
    monkeypatch.setattr(_progress, "WATCH_SEC", 0.3)
    before = os.sched_getaffinity(0)
    idle = _progress.Processors()
    time.sleep(0.4)  # as if for data
    assert not idle.are_busy()
    os.sched_setaffinity(0, {min(before)})  # two others and this process share one
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        progress = _progress.Progress(fake_run(), shown=True, file=io.StringIO())
        end = time.monotonic() + 20
        while progress._processors is not None and time.monotonic() < end:
            sum(range(10000))
            progress.step()
    finally:
        os.sched_setaffinity(0, before)
        for other in others:
            other.kill()
            other.wait()
    for _ in range(3):
        progress.step()
    assert capsys.readouterr().out.count("The processors are busy with other work") == 1  # once


def test_describing_a_network_takes_no_random_numbers(tmp_path):
    """The start values of a run must not depend on what was printed before it."""
    dataset = _build.build_dataset({"path": tiny.write_dataset(tmp_path / "d.zip")})
    before = torch.get_rng_state()
    text = _build.describe_network(tiny.NETWORK, dataset)
    assert text.startswith("EDMPrecond, ") and "images of 4x4" in text
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["total_kimg", "batch_size", "keep_states", "dump_minutes", "kimg_per_tick"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "2"])
def test_numbers_that_make_no_sense(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} .*expected (a finite number|int|float)"):
        tiny.run_loop(tmp_path / "none.zip", tmp_path, **{name: value})


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_workers": 0, "persistent_workers": True}, "data loader: .*persistent_workers"),
        ({"num_workers": 1.5}, "num_workers is 1.5; expected int"),
        ({"num_workers": 1, "prefetch_factor": "2"}, "prefetch_factor is '2'; expected int or nothing"),
    ],
)
def test_loader_settings_that_torch_refuses(tmp_path, kwargs, message):
    data = tiny.write_dataset(tmp_path / "d.zip")
    with pytest.raises(ValueError, match=message):
        tiny.run_loop(data, tmp_path / "run", data_loader_kwargs=kwargs)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tick", [1, 0.7, 0.1])
def test_what_a_run_will_take(tmp_path, tick):
    """Its work against a count by hand, and its files against those that it leaves."""
    data = tiny.write_dataset(tmp_path / "d.zip")
    dataset = _build.build_dataset({"path": data, "use_labels": True})
    network = {**tiny.NETWORK, "model_type": "SongUNet"}
    settings = {
        "network_kwargs": network,
        "batch_size": 500,
        "total_kimg": 5,
        "kimg_per_tick": tick,
        "snapshot_ticks": 2,
        "state_dump_ticks": 3,
        "dump_minutes": 0,
    }
    before = torch.get_rng_state()
    work, disk = forecast(check_settings(**settings), dataset, str(tmp_path / "none/run"))
    assert torch.equal(before, torch.get_rng_state())
    one, three = re.search(r"Work: (\S+) kFLOP for an image, with gradients (\S+) kFLOP; in all", work).groups()
    assert float(three) == pytest.approx(3 * float(one), rel=0.01)
    # at least the convolutions from and to the images, and those of the first block, 4 x 4 pixels each
    assert 2 * 16 * 9 * (4 + 4 + 2 * 16) / 1000 < float(one) < 500
    del settings["network_kwargs"]
    tiny.run_loop(data, tmp_path / "run", **settings)
    for kind, files in (("snapshots", "network-*"), ("training states", "training-*")):
        sizes = [path.stat().st_size / 1000 for path in (tmp_path / "run").glob(f"{files}.safetensors")]
        number, size = re.search(rf"(\d+) {kind} of (\S+) kB", disk).groups()
        assert len(sizes) == int(number)
        assert all(float(size) - 0.1 <= found < float(size) + 80 for found in sizes)  # and names, generators


def test_a_full_disk_is_foretold(tmp_path, monkeypatch):
    dataset = _build.build_dataset({"path": tiny.write_dataset(tmp_path / "d.zip")})
    monkeypatch.setattr(_forecast, "_free", lambda folder: 1000)
    settings = {"network_kwargs": tiny.NETWORK, "total_kimg": 1, "batch_size": 10}
    settings |= {"kimg_per_tick": 1, "snapshot_ticks": 1, "state_dump_ticks": None}
    assert (
        "Warning: the results need more than what is free"
        in forecast(check_settings(**settings), dataset, str(tmp_path))[-1]
    )


@pytest.mark.parametrize("ema, files", [(None, 2), ({"stds": [0.1]}, 1), ({"class_name": "TraditionalEMA"}, 1)])
def test_averages_of_edm2_are_counted(tmp_path, ema, files):
    """In half precision in each snapshot; in a state beside network, first average and two moments."""
    dataset = _build.build_dataset({"path": tiny.write_dataset(tmp_path / "d.zip", size=8, channels=3)})
    network = {"class_name": "Precond", "model_channels": 8, "channel_mult": [1, 1]}
    settings = {"network_kwargs": network, "loss_kwargs": {"class_name": "EDM2Loss"}, "ema_kwargs": ema}
    options = check_settings(**settings, batch_size=1024, kimg_per_tick=1.024, total_kimg=1.024)
    _, disk = forecast(options, dataset, str(tmp_path))
    values = 4 * sum(tensor.numel() for tensor in _build.build_network(network, dataset).state_dict().values())
    snapshot, state = (float(size) * 1000 for size in re.findall(r"of (\S+) kB", disk))
    assert snapshot == pytest.approx(values / 2 * files, rel=0.01)
    assert state == pytest.approx(values * (4 + files), rel=0.01)
