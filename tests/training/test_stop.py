"""Signals, states by the clock, and what belongs to another run: nothing is lost, doubled or overwritten."""

import errno
import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from edm_fast import checkpoint, training
from edm_fast.errors import UserError
from edm_fast.training import _stats, _stop, loop
from helpers import tiny_training as tiny
from helpers.tiny_training import losses, run_loop, same_state

AUGMENT = {"class_name": "AugmentPipe", "p": 0.5, "xflip": 1e8, "scale": 1, "translate_frac": 1}
SETTINGS = {"network_kwargs": {**tiny.NETWORK, "augment_dim": 4}, "augment_kwargs": AUGMENT, "ema_halflife_kimg": 0.02}


@pytest.fixture
def data(tmp_path):
    return tiny.write_dataset(tmp_path / "data.zip")


@pytest.fixture
def at_call(monkeypatch):
    """at_call(n, action): the action in the middle of the n-th step from here on."""

    def arrange(count, action):
        real, calls = training.EDMLoss.__call__, []

        def call(*args, **kwargs):
            calls.append(1)
            if len(calls) == count:
                action()
            return real(*args, **kwargs)

        monkeypatch.setattr(training.EDMLoss, "__call__", call)

    return arrange


def raise_signal(name):
    return lambda: signal.raise_signal(getattr(signal, name))


def state(folder, name="training-state-000000.safetensors"):
    return checkpoint.load_state_file(folder / name)


@pytest.mark.parametrize(
    "name, step, ending",
    [
        ("SIGTERM", 1, SystemExit),  # the first step is a tick of its own
        ("SIGUSR1", 2, SystemExit),  # in the middle of a tick
        ("SIGHUP", 3, SystemExit),  # at the end of a tick
        ("SIGINT", 4, KeyboardInterrupt),
    ],
)
def test_stopped_and_resumed_is_bit_identical(data, tmp_path, at_call, capsys, name, step, ending):
    whole = run_loop(data, tmp_path / "whole", **SETTINGS)
    handler = signal.getsignal(getattr(signal, name))
    at_call(step, raise_signal(name))
    with pytest.raises(ending) as caught:
        run_loop(data, tmp_path / "parts", **SETTINGS)
    assert signal.getsignal(getattr(signal, name)) is handler
    assert ending is KeyboardInterrupt or caught.value.code == 0
    stopped = tmp_path / "parts" / "training-state-000000.safetensors"
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Stopped by"))
    assert f"at image {step * 10}, with the state in {stopped}" in line and "--resume=auto" in line
    assert state(tmp_path / "parts")["cur_nimg"] == step * 10
    parts = run_loop(data, tmp_path / "parts", **SETTINGS, resume_state_dump=str(stopped))
    assert whole.cur_nimg == parts.cur_nimg == 100
    same_state(state(tmp_path / "whole"), state(tmp_path / "parts"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_signal_before_the_first_step_or_in_the_last(data, tmp_path, at_call, monkeypatch, capsys):
    at_call(10, raise_signal("SIGINT"))
    with pytest.raises(KeyboardInterrupt):
        run_loop(data, tmp_path / "last")
    assert "Done." in capsys.readouterr().out and state(tmp_path / "last")["cur_nimg"] == 100
    real = loop.resume
    monkeypatch.setattr(loop, "resume", lambda *args: (real(*args), raise_signal("SIGTERM")()))
    with pytest.raises(SystemExit):
        run_loop(data, tmp_path / "first")
    assert "before the first step" in capsys.readouterr().out and not list((tmp_path / "first").iterdir())


def test_second_interrupt_ignored_signals_and_other_threads(monkeypatch, capfd):
    with _stop.Signals() as signals:
        raise_signal("SIGINT")()
        raise_signal("SIGINT")()  # the same key press, which torchrun has handed on
        assert signals.wish == _stop.INTERRUPT
        monkeypatch.setattr(_stop, "AGAIN_SEC", -1)
        with pytest.raises(KeyboardInterrupt):
            raise_signal("SIGINT")()
    assert "once more stops at once" in capfd.readouterr().err
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    with _stop.Signals() as signals:
        raise_signal("SIGHUP")()
        assert signals.wish == _stop.NOTHING
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN
    seen = []

    def inside():
        with _stop.Signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_loader_processes_outlive_signals_to_the_group(data, tmp_path, at_call):
    def signal_loaders():
        for child in multiprocessing.active_children():
            for number in ("INT", "TERM", "USR1"):  # from another process than their parent
                subprocess.run(["sh", "-c", f"kill -{number} {child.pid}"], check=True)

    at_call(2, signal_loaders)
    run = run_loop(data, tmp_path / "run", data_loader_kwargs={"num_workers": 1, "prefetch_factor": 1})
    assert run.done
    del run
    for child in multiprocessing.active_children():  # and their parent can end them
        child.terminate()
        child.join(10)
        assert not child.is_alive()


def test_states_by_the_clock_make_room_and_those_asked_for_stay(data, tmp_path, at_call):
    options = {"batch_size": 1000, "kimg_per_tick": 2, "total_kimg": 5, "dump_minutes": 1e-9, "lr_rampup_kimg": 0}
    options["dataset_kwargs"] = {"path": str(data), "use_labels": True, "cache": True}
    run_loop(data, tmp_path, **options, state_dump_ticks=1)  # ticks end at 1, 3 and 5 kimg
    names = [f"training-state-{n:06d}.safetensors" for n in range(12)]

    def states():
        return [names.index(path.name) for path in sorted(tmp_path.glob("training-state-*"))]

    assert states() == [2, 3, 4, 5]
    options |= {"total_kimg": 8, "resume_state_dump": str(tmp_path / names[5])}
    run_loop(data, tmp_path, **options, state_dump_ticks=None)
    assert states() == [3, 5, 7, 8]  # 2 and 4 are known to be automatic from what they hold
    assert [state(tmp_path, names[n])["automatic"] for n in states()] == [False, False, True, True]
    options |= {"total_kimg": 11, "resume_state_dump": str(tmp_path / names[8]), "keep_states": 1}
    run_loop(data, tmp_path, **options, state_dump_ticks=None)
    assert states() == [3, 5, 11]
    options |= {"dump_minutes": 0, "resume_state_dump": str(tmp_path / names[3])}
    run_loop(data, tmp_path, **options, state_dump_ticks=None)
    assert states() == [3, 5, 11]


def test_a_damaged_state_makes_room_when_its_turn_comes(data, tmp_path):
    run_loop(data, tmp_path, total_kimg=0.04)
    good = tmp_path / "training-state-000000.safetensors"
    (tmp_path / "training-state-000001.safetensors").write_bytes(b"junk of a crash")
    run_loop(data, tmp_path, total_kimg=1, batch_size=480, resume_state_dump=str(good))
    assert state(tmp_path, "training-state-000001.safetensors")["cur_nimg"] == 1000


def test_results_of_another_run_are_refused(data, tmp_path):
    run_loop(data, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    run_loop(data, tmp_path / "b", total_kimg=0.04)
    other = str(tmp_path / "b" / "training-state-000000.safetensors")
    for more in ({}, {"resume_state_dump": other}, {"resume_pkl": None, "seed": 3}):
        with pytest.raises(UserError, match="holds results of a run"):
            run_loop(data, tmp_path / "a", **more)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"network_kwargs": {**tiny.NETWORK, "class_name": "VPPrecond"}}, "run with EDMPrecond; the options say VP"),
        ({"loss_kwargs": {"class_name": "VELoss"}}, "run with None; the options say VELoss"),
        ({"loss_scaling": 2, "optimizer_kwargs": {"lr": 0.5}}, None),
    ],
)
def test_resuming_with_other_settings(data, tmp_path, capsys, changes, message):
    run_loop(data, tmp_path, total_kimg=0.04)
    changes |= {"resume_state_dump": str(tmp_path / "training-state-000000.safetensors")}
    if message is not None:
        with pytest.raises(UserError, match=message):
            run_loop(data, tmp_path, **changes)
        return
    run_loop(data, tmp_path, **changes)
    assert "loss_scaling 1 -> 2, optimizer.lr None -> 0.5" in capsys.readouterr().out


def test_a_transfer_goes_on_as_one(data, tmp_path, at_call, capsys):
    """Its weight average has no ramp, and nobody says so when it goes on; and what a file gives is said."""
    run_loop(data, tmp_path / "source", snapshot_ticks=100, total_kimg=0.02)
    snapshot = {"resume_pkl": str(tmp_path / "source" / "network-snapshot-000000.safetensors")}
    whole = run_loop(data, tmp_path / "whole", **snapshot, ema_rampup_ratio=None)
    assert "tensors taken" not in capsys.readouterr().out
    at_call(3, raise_signal("SIGTERM"))
    with pytest.raises(SystemExit):
        run_loop(data, tmp_path / "parts", **snapshot, ema_rampup_ratio=None)
    parts = run_loop(
        data, tmp_path / "parts", resume_state_dump=str(tmp_path / "parts" / "training-state-000000.safetensors")
    )
    same_state(whole.ema.state_dict(), parts.ema.state_dict())
    run_loop(data, tmp_path / "more", **snapshot, network_kwargs={**tiny.NETWORK, "num_blocks": 2}, total_kimg=0)
    assert "of the network keep their start values" in capsys.readouterr().out


def test_stats_lines_are_whole(tmp_path, monkeypatch):
    """A full disk leaves no part of a line; half a line and bytes that are no text, of a kill, go on a resume."""
    writer = _stats.StatsWriter(tmp_path)
    row = {"Loss/loss": {"num": 1, "mean": 0.5, "std": 0.0}}
    writer.write(row, 1)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"stats\.jsonl: No space left"):
        patch.setattr(_stats.os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(28))))
        writer.write(row, 2)
    assert len(tiny.read_stats(tmp_path)) == 1
    with open(tmp_path / "stats.jsonl", "ab") as file:
        file.write(b'{"Loss/l\xff')
    assert _stats.StatsWriter(tmp_path, keep_lines=1).lines == 1 and len(tiny.read_stats(tmp_path)) == 1


def failing(error, *args, **kwargs):
    raise error


class Board:
    """A SummaryWriter that fails in one method."""

    def __init__(self, where, folder):
        self.where = where
        self.do("__init__")

    def do(self, name, *args, **kwargs):
        if name == self.where:
            raise AttributeError("module 'distutils' has no attribute 'version'")

    def __getattr__(self, name):
        return functools.partial(self.do, name)


@pytest.mark.parametrize("where", ["import", "exit", "ImportError", "__init__", "add_scalar", "flush", "missing"])
def test_a_broken_tensorboard_is_said_once(tmp_path, monkeypatch, capsys, where):
    class Module:
        SummaryWriter = functools.partial(Board, where)

    class Broken:
        def __init__(self, error):
            self.error = error

        def __getattr__(self, name):
            raise self.error

    descriptors = TypeError("Descriptors cannot be created directly")
    fakes = {"import": Broken(descriptors), "exit": Broken(SystemExit(3)), "ImportError": object(), "missing": None}
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fakes.get(where, Module()))
    writer = _stats.StatsWriter(tmp_path)
    for step in range(3):
        writer.write({"Loss/loss": {"num": 1, "mean": 0.5, "std": 0.0}}, step)
    assert capsys.readouterr().out.count("Going on without TensorBoard") == (where != "missing")
    assert len(tiny.read_stats(tmp_path)) == 3


# two ranks: [name, settings, what rank 1 gets as a signal at its second step] each, one after the other
TWO_RANKS = """
import json, signal, sys, torch
from edm_fast import distributed, training

distributed.init("cpu")
real = training.EDMLoss.__call__
for name, settings, stop in json.loads(sys.argv[1]):
    calls = []
    def call(*args, **kwargs):
        calls.append(1)
        if stop and len(calls) == 2 and distributed.rank() == 1:
            signal.raise_signal(getattr(signal, stop))
        return real(*args, **kwargs)
    training.EDMLoss.__call__ = call
    try:
        run, ending = training.training_loop(device="cpu", progress=False, **settings), None
        tensors = {part: getattr(run, part).state_dict() for part in ("net", "ema")}
    except (SystemExit, KeyboardInterrupt) as error:
        tensors, ending = {}, type(error).__name__
    torch.save({**tensors, "ending": ending, "steps": len(calls)}, f"{name}-{distributed.rank()}.pt")
distributed.shutdown()
"""


def test_two_ranks_share_one_network_and_stop_together(data, tmp_path):
    """NCSN++ draws Fourier frequencies: one set for all ranks; afresh, transferred, resumed, with snapshots or not."""
    network = {**tiny.NETWORK, "embedding_type": "fourier", "encoder_type": "residual"}
    base = {"dataset_kwargs": {"path": str(data), "use_labels": True}, "network_kwargs": network, "seed": 3}
    base |= {"batch_size": 8, "kimg_per_tick": 0.02, "total_kimg": 0.048, "preview_images": 0, "lr_rampup_kimg": 0}
    base |= {"snapshot_ticks": None, "state_dump_ticks": None}

    def settings(folder, **changes):
        return {**base, "run_dir": str(tmp_path / folder), **changes}

    resumed = {"resume_state_dump": str(tmp_path / "parts" / "training-state-000000.safetensors")}
    snapshot = str(tmp_path / "whole" / "network-snapshot-000000.safetensors")
    jobs = [
        ("whole", settings("whole", snapshot_ticks=1), None),
        ("plain", settings("plain"), None),
        ("stopped", settings("parts"), "SIGUSR1"),
        ("again", settings("parts", **resumed), "SIGINT"),
        ("parts", settings("parts", **resumed), None),
        ("transfer", settings("transfer", resume_pkl=snapshot, total_kimg=0.008), None),
    ]
    (tmp_path / "worker.py").write_text(TWO_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "worker.py"]
    done = subprocess.run([*command, json.dumps(jobs)], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "FutureWarning" not in done.stderr
    got = {name: [state(tmp_path, f"{name}-{rank}.pt") for rank in (0, 1)] for name, *_ in jobs}
    for ranks in got.values():
        same_state(*ranks)
    assert "model.map_noise.freqs" in got["plain"][0]["ema"]
    for other in ("plain", "parts"):
        for part in ("net", "ema"):
            same_state(got["whole"][0][part], got[other][0][part])
    assert (got["stopped"][0]["ending"], got["stopped"][0]["steps"]) == ("Stopped", 3)  # one step after the signal's
    assert (got["again"][0]["ending"], got["again"][0]["steps"]) == ("Interrupted", 3)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    freqs = [got[name][0][part]["model.map_noise.freqs"] for name in ("whole", "transfer") for part in ("net", "ema")]
    assert all(torch.equal(freqs[0], other) for other in freqs)
