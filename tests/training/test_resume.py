"""Runs that are interrupted and go on: the result is that of a run never interrupted, to the bit."""

import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors
import torch
from click.testing import CliRunner

from edm_fast import checkpoint, networks
from edm_fast.cli import main
from edm_fast.errors import UserError
from edm_fast.training import latest_state
from helpers import golden_cases as g
from helpers import tiny_training as tiny
from helpers.tiny_training import losses, run_loop, same_state

TINY = {**tiny.NETWORK, "img_resolution": 4, "img_channels": 1}
TINY.pop("class_name")
KINDS = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]
SETTINGS = [
    "--cond=1",
    "--cbase=4",
    "--cres=1",
    "--num-blocks=1",
    "--batch=40",
    "--batch-gpu=20",
    "--augment=0.5",
    "--lr-rampup=0.001",
    "--tick=1",
    "--dump=1",
    "--snap=2",
    "--seed=5",
    "--preview=2",
    "--nosubdir",
    "--device=cpu",
]


def train_command(data, outdir, kimg, *more):
    args = [f"--data={data}", f"--outdir={outdir}", f"--duration={kimg / 1000}", *SETTINGS, *more]
    return [sys.executable, "-m", "edm_fast", "train", *args]


def kill_in_mid_run(command, run_dir, wait_for, rng):
    """Start, wait until a state dump is there and a random moment longer, SIGKILL."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.time() + 120
    while not (run_dir / wait_for).exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.time() < deadline
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.5))
    assert process.poll() is None, "finished before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def test_killed_and_resumed_is_bit_identical(tmp_path):
    data = tiny.write_dataset(tmp_path / "data.zip", count=30, size=8)
    whole, parts, kimg = tmp_path / "whole", tmp_path / "parts", 4
    subprocess.run(train_command(data, whole, kimg), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    rng = random.Random(os.getpid())
    again = train_command(data, parts, kimg, "--resume=auto")
    kill_in_mid_run(again, parts, "training-state-000001.safetensors", rng)
    kill_in_mid_run(again, parts, "training-state-000002.safetensors", rng)
    (parts / ".training-state-000003.safetensors.abc.tmp").write_bytes(b"half a file")
    result = subprocess.run(again, check=True, capture_output=True, text=True)
    assert "Resuming from" in result.stdout

    name = f"training-state-{kimg:06d}.safetensors"
    same_state(*(checkpoint.load_state_file(folder / name) for folder in (whole, parts)))
    for snapshot in whole.glob("network-snapshot-*"):
        same_state(*(dict(checkpoint.load(folder / snapshot.name).state_dict()) for folder in (whole, parts)))
    assert losses(whole) == losses(parts)
    visible = [sorted(p.name for p in folder.iterdir()) for folder in (whole, parts)]
    assert visible[0] == visible[1]

    # once done, another start changes nothing
    before = (parts / name).stat().st_mtime_ns, losses(parts)
    assert CliRunner().invoke(main, again[3:]).exit_code == 0
    assert before == ((parts / name).stat().st_mtime_ns, losses(parts))


def in_torch_format(path):
    """A state as earlier versions wrote it."""
    file = io.BytesIO()
    torch.save(checkpoint.load_state_file(path), file)
    return file.getvalue()


def test_a_state_of_an_earlier_version_goes_on_to_the_same_bits(data, tmp_path):
    more = {"state_dump_ticks": 1, "augment_kwargs": {"class_name": "AugmentPipe", "p": 0.5, "xflip": 1e8}}
    more["network_kwargs"] = {**tiny.NETWORK, "augment_dim": 1}
    whole = run_loop(data, tmp_path / "a", **more)
    run_loop(data, tmp_path / "b", **more, total_kimg=0.05)
    new = tmp_path / "b" / "training-state-000000.safetensors"
    old = new.with_suffix(".pt")
    old.write_bytes(in_torch_format(new))
    same_state(checkpoint.load_state_file(old), checkpoint.load_state_file(new))
    assert isinstance(checkpoint.load_state_file(old)["optimizer_state"]["param_groups"][0]["betas"], tuple)
    new.unlink()
    assert latest_state(tmp_path / "b") == (old, 2)
    parts = run_loop(data, tmp_path / "b", **more, resume_state_dump=str(old))
    for a, b in ((whole.net, parts.net), (whole.ema, parts.ema)):
        same_state(a.state_dict(), b.state_dict())
    same_state(whole.optimizer.state_dict(), parts.optimizer.state_dict())
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert latest_state(tmp_path / "b") == (new, 2)  # the later of two of one number


def test_what_a_state_may_hold(tmp_path):
    net, path = networks.build("EDMPrecond", TINY), tmp_path / "state.safetensors"
    numbers = [torch.tensor(value, dtype=kind) for kind in KINDS for value in ([], 1, [[1, 0]])]
    state = {
        "numbers": numbers,
        "odd": {3: (1, None, "a"), "$tensor": float("inf")},
        "net": {"a.b": torch.ones(2, 3).T},
    }
    checkpoint.save_state_file(path, net, state)
    found = checkpoint.load_state_file(path)
    same_state(found, state)
    assert [t.dtype for t in found["numbers"]] == [t.dtype for t in numbers] and isinstance(found["odd"][3], tuple)
    with safetensors.safe_open(path, framework="pt") as file:
        assert "numbers.0" in file.keys()
    before = path.read_bytes()
    same_name = {"a": {"b.c": torch.ones(1)}, "a.b": {"c": torch.ones(1)}}
    for bad in ({"x": object()}, {"x": torch.ones(1, dtype=torch.complex64)}, same_name):
        with pytest.raises(UserError, match="expected|have the name"):
            checkpoint.save_state_file(path, net, bad)
    assert path.read_bytes() == before


@pytest.fixture
def data(tmp_path):
    return tiny.write_dataset(tmp_path / "data.zip")


def test_latest_state_passes_over_damaged_files(data, tmp_path):
    run_loop(data, tmp_path / "run")
    good = tmp_path / "run" / "training-state-000000.safetensors"
    assert latest_state(tmp_path / "run") == (good, 2)
    (tmp_path / "run" / "training-state-000004.safetensors").write_bytes(good.read_bytes()[:5000])
    (tmp_path / "run" / "training-state-000003.safetensors").write_bytes(good.read_bytes()[:-500])
    (tmp_path / "run" / "training-state-000002.safetensors").write_bytes(b"")
    torch.save({"other": 1}, tmp_path / "run" / "training-state-000001.pt")
    (tmp_path / "run" / "training-state-000005.pt").write_bytes(in_torch_format(good)[:-500])
    checkpoint.save(networks.build("EDMPrecond", TINY), tmp_path / "run" / "training-state-000006.safetensors")
    assert latest_state(tmp_path / "run") == (good, 2)
    assert latest_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize("workers", [0, 2])
def test_previews_ticks_and_workers_do_not_change_the_result(data, tmp_path, workers):
    plain = run_loop(data, tmp_path / "a")
    loader = {"num_workers": workers, **({"prefetch_factor": 2} if workers else {})}
    other = run_loop(
        data, tmp_path / "b", data_loader_kwargs=loader, preview_images=3, snapshot_ticks=1, kimg_per_tick=0.01
    )
    assert (tmp_path / "b" / "preview-000000.png").exists()
    same_state(plain.net.state_dict(), other.net.state_dict())
    same_state(plain.ema.state_dict(), other.ema.state_dict())


def test_networks_of_a_state_load(data, tmp_path):
    """A state says how its networks are built."""
    run = run_loop(data, tmp_path / "run")
    for key, module in (("net", run.net), ("ema", run.ema)):
        loaded = checkpoint.load(tmp_path / "run" / "training-state-000000.safetensors", key=key)
        same_state(module.state_dict(), loaded.state_dict())


def test_state_of_another_network_or_data_set(data, tmp_path):
    run_loop(data, tmp_path / "run")
    state = str(tmp_path / "run" / "training-state-000000.safetensors")
    with pytest.raises(UserError, match="another network"):
        run_loop(data, tmp_path / "b", resume_state_dump=state, network_kwargs={**tiny.NETWORK, "model_channels": 8})
    other = tiny.write_dataset(tmp_path / "other.zip", count=9)
    with pytest.raises(UserError, match="12 images"):
        run_loop(other, tmp_path / "b", resume_state_dump=state)
    with pytest.raises(UserError, match="does not exist"):
        run_loop(data, tmp_path / "b", resume_state_dump=str(tmp_path / "none.pt"))


def test_a_dump_goes_on_with_another_batch_size(data, tmp_path):
    run_loop(data, tmp_path / "a", total_kimg=0.06, state_dump_ticks=1)
    state = str(tmp_path / "a" / "training-state-000000.safetensors")
    run = run_loop(data, tmp_path / "a", resume_state_dump=state, batch_size=20)
    assert run.cur_nimg == 100
    assert [row["Progress/kimg"]["mean"] for row in tiny.read_stats(tmp_path / "a")][-1] == pytest.approx(0.1)


def published_states():
    return g.entries("checkpoints", lambda entry: "params_with_state" in entry["config"])


@pytest.mark.parametrize("entry", published_states(), ids=g.entry_id)
def test_published_state(entry, tmp_path):
    """Network and optimizer come from the state, the average from the snapshot beside it, the count from the name."""
    config = entry["config"]
    kwargs = dict(config["kwargs"])
    resolution, channels, classes = (kwargs.pop(k) for k in ("img_resolution", "img_channels", "label_dim"))
    data = tiny.write_dataset(tmp_path / "d.zip", size=resolution, channels=channels, classes=classes)
    path = g.path(entry, config["file"])
    kimg = int(path.stem.split("-")[-1])
    average = networks.build(config["class"], config["kwargs"])
    checkpoint.save_pkl(average, tmp_path / f"network-snapshot-{kimg:06d}.pkl")

    settings = {
        "network_kwargs": {"class_name": config["class"], **kwargs},
        "resume_pkl": str(tmp_path / f"network-snapshot-{kimg:06d}.pkl"),
        "resume_state_dump": str(path),
        "resume_kimg": kimg,
    }
    run = run_loop(data, tmp_path / "run", **settings, total_kimg=kimg)  # nothing left to do
    stored = checkpoint.load_training_state(path)
    assert run.cur_nimg == kimg * 1000 and run.tick == 0
    same_state(dict(run.net.state_dict()), dict(stored["net"]))
    same_state(dict(run.ema.state_dict()), dict(average.state_dict()))
    assert sorted(run.optimizer.state_dict()["state"]) == config["params_with_state"]
    assert run.optimizer.param_groups[0]["fused"] is True  # as of a run that begins here

    run = run_loop(data, tmp_path / "run", **settings, total_kimg=kimg + 0.02)  # and it trains on
    assert run.cur_nimg == kimg * 1000 + 20
    with pytest.raises(UserError, match="network given by the options"):
        bad = {**settings["network_kwargs"], "model_channels": 4}
        run_loop(data, tmp_path / "run", **{**settings, "network_kwargs": bad, "resume_pkl": None}, total_kimg=kimg)


def test_published_state_of_edm2(tmp_path):
    """Network, optimizer and averages, whose widths count; the run goes on as one that began here."""
    config = g.index("edm2.json")["edm2/training/trajectory_rgb"]["config"]
    path = g.path({}, "edm2/checkpoints/training-state-0000004.pt")
    names = ("network_kwargs", "loss_kwargs", "lr_kwargs", "batch_size", "batch_gpu", "seed")
    settings = {name: config[name] for name in names}
    settings |= {"optimizer_kwargs": {"class_name": "Adam", "betas": [0.9, 0.99]}, "kimg_per_tick": 1.024}
    settings |= {"dataset_kwargs": {**config["dataset_kwargs"], "path": g.path({}, config["dataset"].split(",")[0])}}
    published = {"resume_state_dump": str(path), "ema_kwargs": {"stds": [0.2]}}
    run = run_loop(None, tmp_path / "done", **settings, **published, total_kimg=4.096)
    stored = checkpoint.load_training_state(path)
    assert (run.cur_nimg, run.tick, run.data_position) == (4096, 5, 4096)
    assert list(stored["ema"]) == ["0.050", "0.100"] and run.recipe.averages.stds == [0.05, 0.1]
    same_state(dict(run.net.state_dict()), dict(stored["net"]))
    for average, want in zip(run.averages, stored["ema"].values(), strict=True):
        same_state(dict(average.state_dict()), dict(want))
    same_state(run.optimizer.state_dict()["state"], stored["optimizer_state"]["state"])
    run_loop(None, tmp_path / "parts", **settings, **published, total_kimg=5.12)
    run_loop(None, tmp_path / "whole", **settings, total_kimg=5.12)
    (ours,), (*_, want) = (tiny.losses(tmp_path / name) for name in ("parts", "whole"))
    assert ours[0] == want[0] == 5 and ours[1]["num"] == want[1]["num"]
    assert ours[1]["mean"] == pytest.approx(want[1]["mean"], rel=1e-4)
    with pytest.raises(UserError, match="lr_kwargs are settings of EDM2's networks"):
        run_loop(None, tmp_path / "other", **{**settings, "network_kwargs": tiny.NETWORK}, **published)
    of_edm = {**settings, "network_kwargs": tiny.NETWORK, "resume_state_dump": str(path)}
    of_edm |= {"lr_kwargs": None, "loss_kwargs": None}
    with pytest.raises(UserError, match="expected the network given by the options"):
        run_loop(None, tmp_path / "other", **of_edm)


def test_transfer_takes_weights_and_starts_at_zero(data, tmp_path):
    source = run_loop(data, tmp_path / "a", snapshot_ticks=100)
    path = str(tmp_path / "a" / "network-snapshot-000000.pkl")  # the .safetensors beside it is found
    run = run_loop(data, tmp_path / "b", resume_pkl=path, ema_rampup_ratio=None, total_kimg=0)
    same_state(run.net.state_dict(), source.ema.state_dict())
    same_state(run.ema.state_dict(), source.ema.state_dict())
    assert run.cur_nimg == 0


def test_resumed_run_equals_whole_run(data, tmp_path):
    """As with SIGKILL, within one process: dropout, augmentation, several rounds, a dump in the middle."""
    augment = {"class_name": "AugmentPipe", "p": 0.5, "xflip": 1e8, "scale": 1, "translate_frac": 1}
    more = {"augment_kwargs": augment, "batch_gpu": 5, "state_dump_ticks": 1, "ema_halflife_kimg": 0.02}
    more["network_kwargs"] = {**tiny.NETWORK, "augment_dim": 4}
    whole = run_loop(data, tmp_path / "a", **more)
    run_loop(data, tmp_path / "b", **more, total_kimg=0.05)
    state = str(tmp_path / "b" / "training-state-000000.safetensors")
    assert checkpoint.load_state_file(Path(state), tensors=False)["cur_nimg"] == 50
    parts = run_loop(data, tmp_path / "b", **more, resume_state_dump=state, seed=77)  # the dump's seed counts
    for a, b in ((whole.net, parts.net), (whole.ema, parts.ema)):
        same_state(dict(a.state_dict()), dict(b.state_dict()))
    same_state(whole.optimizer.state_dict(), parts.optimizer.state_dict())
    assert whole.data_position == parts.data_position == 100


def test_a_run_goes_on_with_the_settings_of_its_own_optimizer(data, tmp_path, capsys):
    def adam(**settings):
        return {"optimizer_kwargs": {"class_name": "Adam", "lr": 1e-3, **settings}}

    run_loop(data, tmp_path / "a", total_kimg=0.05, state_dump_ticks=1, **adam())
    state = str(tmp_path / "a" / "training-state-000000.safetensors")
    new = {"betas": [0.8, 0.9], "eps": 1e-6}
    run = run_loop(data, tmp_path / "b", resume_state_dump=state, **adam(**new))
    assert "optimizer.betas None -> [0.8, 0.9], optimizer.eps None -> 1e-06" in capsys.readouterr().out
    group = run.optimizer.param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)
    for other, moments in (
        (adam(amsgrad=True), "exp_avg, exp_avg_sq, max_exp_avg_sq, step"),
        ({"optimizer_kwargs": {"class_name": "SGD", "lr": 1e-3, "momentum": 0.9}}, "momentum_buffer"),
    ):
        with pytest.raises(UserError, match=f"its moments are exp_avg, exp_avg_sq, step; .* are {moments}$"):
            run_loop(data, tmp_path / "c", resume_state_dump=state, **other)
