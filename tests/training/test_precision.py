"""Training in bf16 and fp16 on the CPU: it trains, it resumes to the same bits, overflows are skipped and counted."""

import pytest
import torch

from edm_fast import use_backend
from edm_fast.errors import UserError
from edm_fast.training import Precision, _step
from helpers import tiny_training as tiny
from helpers.command_line import refused, run

EDM2 = {"class_name": "Precond", "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
EDM2 |= {"use_fp16": False, "dropout": 0.1}


@pytest.fixture
def data(tmp_path):
    return tiny.write_dataset(tmp_path / "data.zip")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_that_goes_on_ends_in_the_same_bits(tmp_path, data, precision):
    whole = tiny.run_loop(data, tmp_path / "whole", precision=precision)
    tiny.run_loop(data, tmp_path / "parts", precision=precision, total_kimg=0.06)
    state = str(tmp_path / "parts/training-state-000000.safetensors")
    parts = tiny.run_loop(data, tmp_path / "parts", precision=precision, resume_state_dump=state)
    plain = tiny.run_loop(data, tmp_path / "plain")
    for name in ("net", "ema", "optimizer"):
        tiny.same_state(getattr(whole, name).state_dict(), getattr(parts, name).state_dict())
    assert whole.precision.scaler.state_dict() == parts.precision.scaler.state_dict()
    assert [key for key, value in whole.net.state_dict().items() if value.dtype != torch.float32] == []
    # another rounding of the same run
    ours, exact = (torch.cat([p.detach().flatten() for p in r.net.parameters()]) for r in (whole, plain))
    assert 0 < (ours - exact).norm() / exact.norm() < 0.02
    losses = [[row["mean"] for _, row in tiny.losses(tmp_path / name)] for name in ("whole", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_state_does_not_say_how_adam_is_computed(tmp_path, data, precision):
    """That is the choice of the run that goes on: the state may come from a GPU, or from another backend."""
    last, before = None, "auto"
    for kimg, backend in enumerate(["reference", "auto", "reference"], 1):
        with use_backend(backend):
            more = {"precision": precision, "total_kimg": 0.02 * kimg, "state_dump_ticks": 1, "kimg_per_tick": 0.01}
            last = tiny.run_loop(data, tmp_path / str(kimg), resume_state_dump=last, **more)
            (group,) = last.optimizer.param_groups
        assert bool(group["fused"]) == (backend != "reference"), (before, backend)
        before, last = backend, str(tmp_path / str(kimg) / "training-state-000000.safetensors")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_networks_of_edm2(tmp_path, data, precision):
    """The loss of the first step, up to the rounding of the type."""
    kwargs = {"network_kwargs": EDM2, "loss_kwargs": {"class_name": "EDM2Loss"}, "batch_size": 1024}
    kwargs |= {"kimg_per_tick": 1.024, "total_kimg": 1.024, "state_dump_ticks": None, "lr_kwargs": {"rampup_Mimg": 0}}
    runs = {name: tiny.run_loop(data, tmp_path / name, precision=name, **kwargs) for name in (precision, "fp32")}
    ours, exact = (tiny.losses(tmp_path / name)[-1][1]["mean"] for name in runs)
    assert ours != exact and ours == pytest.approx(exact, rel=0.02)


def test_an_overflow_is_skipped_counted_and_shown(tmp_path, data, monkeypatch, capsys):
    """The gradients of the third step are made infinite."""
    steps, accumulate = [], _step.accumulate

    def broken(run):
        accumulate(run)
        steps.append(run.precision.scaler.get_scale())
        if len(steps) == 3:
            next(run.net.parameters()).grad.view(-1)[0] = float("inf")
            run.before = [p.detach().clone() for p in run.net.parameters()]
        if len(steps) == 4:
            run.kept = all(torch.equal(p, b) for p, b in zip(run.net.parameters(), run.before))

    monkeypatch.setattr(_step, "accumulate", broken)
    run = tiny.run_loop(data, tmp_path / "run", precision="fp16", kimg_per_tick=0.1)
    assert run.kept and steps[3] == steps[2] / 2
    drops = sum(after < before for before, after in zip(steps, [*steps[1:], run.precision.scaler.get_scale()]))
    rows = [row["Progress/skipped_steps"] for row in tiny.read_stats(tmp_path / "run")]
    counts = [round(row["num"] * row["mean"]) for row in rows]
    assert sum(counts) == drops < 5  # the first scale is high
    assert f"skipped {counts[-1]} steps" in capsys.readouterr().out


def test_what_does_not_run_is_refused_in_one_line(tmp_path, data):
    common = ["train", f"--outdir={tmp_path / 'runs'}", f"--data={data}", "-n", "--device=cpu"]
    assert "precision tf32 is one of NVIDIA GPUs" in refused(*common, "--precision=tf32")
    assert "does not go with a network in half precision" in refused(*common, "--precision=bf16", "--fp16=1")
    assert "--precision" in refused(*common, "--precision=int8")
    with pytest.raises(UserError, match="expected one of fp32, tf32, bf16, fp16"):
        Precision("fp8", torch.device("cpu"))
    result = run(*common, "--precision=bf16", "--arch=ddpmpp", "--cbase=4", "--cres=1", "--num-blocks=1")
    assert result.exit_code == 0 and '"precision": "bf16"' in result.output and "batch512-bf16" in result.output


@pytest.mark.parametrize(
    "device, name, last", [("cuda", "bf16", True), ("cuda", "fp32", False), ("cpu", "bf16", False)]
)
def test_weights_lie_channels_last_where_matrix_units_read_them(device, name, last, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: True)
    net = Precision(name, torch.device(device)).laid_out(torch.nn.Conv2d(8, 8, 3))
    assert net.weight.is_contiguous(memory_format=torch.channels_last) == last
