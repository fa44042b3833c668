"""What is shown between ticks and about the network; busy processors are noticed, and waiting for data is not."""

import io
import os
import subprocess
import sys
import time
import types

import pytest
import torch

from edm_fast.training import _build, _progress, _stats
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
    progress = _progress.Progress(run, shown=True, file=terminal)
    run.stats.report("Loss/loss", torch.tensor([1.0]))
    for _ in range(3):
        progress.step()
    assert len(asked) == 1 and "loss" not in terminal.getvalue()
    arrived[0] = True
    progress.step()
    progress.bar.refresh()
    assert len(asked) == 2 and "loss 1" in terminal.getvalue()
    progress.bar.close()


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
    with pytest.raises(ValueError, match=f"{name} .*expected a finite number"):
        tiny.run_loop(tmp_path / "none.zip", tmp_path, **{name: value})


def test_loader_settings_that_torch_refuses(tmp_path):
    data = tiny.write_dataset(tmp_path / "d.zip")
    with pytest.raises(ValueError, match="data loader: .*persistent_workers"):
        tiny.run_loop(data, tmp_path / "run", data_loader_kwargs={"num_workers": 0, "persistent_workers": True})
