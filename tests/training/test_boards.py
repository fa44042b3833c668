"""Where the numbers of a run also go, modules with wandb's functions, and what is measured at its snapshots."""

import json
import sys
import types

import pytest
import torch

from edm_fast.cli._snapshot_quality import snapshot_quality
from edm_fast.errors import UserError
from helpers import tiny_training as tiny
from helpers.command_line import refused


@pytest.fixture
def logger(monkeypatch):
    """A stand-in for wandb or trackio; `calls` of its functions."""
    module = types.SimpleNamespace(calls=[])

    def noted(name):
        return lambda **given: module.calls.append((name, given))

    module.init, module.finish = noted("init"), noted("finish")
    module.log = lambda numbers, step: module.calls.append(("log", {"step": step, **numbers}))
    monkeypatch.setitem(sys.modules, "a_logger", module)
    return module


def test_a_run(tmp_path, logger):
    """The module gets what stats.jsonl has, with what is measured; the training is the same without both."""
    data = tiny.write_dataset(tmp_path / "data.zip")

    def measure(net):
        torch.rand(3)
        return {"Quality/FD": 2.5, "Quality/weights": sum(float(p.sum()) for p in net.parameters())}

    plain = tiny.run_loop(data, tmp_path / "plain", snapshot_ticks=2)
    run = tiny.run_loop(data, tmp_path / "run", snapshot_ticks=2, log_to="a_logger", measure=measure)
    assert all(torch.equal(a, b) for a, b in zip(plain.ema.state_dict().values(), run.ema.state_dict().values()))
    names, given = zip(*logger.calls)
    rows = tiny.read_stats(tmp_path / "run")
    assert names == ("init", *["log"] * len(rows), "finish")
    assert (given[0]["project"], given[0]["name"], given[0]["resume"]) == ("edm-fast", "run", "allow")
    assert json.loads(json.dumps(given[0]["config"]))["batch_size"] == 10
    for row, numbers in zip(rows, given[1:-1]):
        assert numbers.pop("step") == round(1000 * row["Progress/kimg"]["mean"])
        assert numbers == {name: value["mean"] for name, value in row.items() if name != "timestamp"}
    measured = [row.get("Quality/FD") for row in rows]
    assert measured[0] == {"num": 1, "mean": 2.5, "std": 0.0} and measured[1] is None


def test_one_that_fails(tmp_path, logger, capsys):
    def log(numbers, step):
        raise ConnectionError("no route")

    logger.log = log
    data = tiny.write_dataset(tmp_path / "data.zip")
    assert tiny.run_loop(data, tmp_path / "run", log_to="a_logger").done
    assert capsys.readouterr().out.count("Going on without a_logger, which failed (ConnectionError: no route)") == 1
    del logger.finish
    with pytest.raises(UserError, match="the module a_logger has no finish; expected"):
        tiny.run_loop(data, tmp_path / "other", log_to="a_logger")
    with pytest.raises(UserError, match="no_such_module does not begin a run .*; expected a module with wandb's init"):
        tiny.run_loop(data, tmp_path / "other", log_to="no_such_module")


def test_quality(tmp_path):
    """The same numbers for the same weights, larger ones for images that are far from the data."""
    data = tiny.write_dataset(tmp_path / "data.zip", size=8)
    common = ["train", f"--outdir={tmp_path / 'runs'}", f"--data={data}", "--device=cpu", "--cres=1", "--batch=4"]
    assert "--quality=3; expected 0, or at least 4 images" in refused(*common, "--quality=3")
    measure = snapshot_quality(8, str(data), torch.device("cpu"))
    run = tiny.run_loop(data, tmp_path / "run", total_kimg=0)
    first, again = measure(run.ema), measure(run.ema)
    assert first == again and first.keys() == {"Quality/FD-ENL0", "Quality/KID"}

    class Gray(type(run.ema)):
        def forward(self, x, *args, **kwargs):
            return 0 * super().forward(x, *args, **kwargs)

    run.ema.__class__ = Gray
    assert all(value > 1.1 * first[name] for name, value in measure(run.ema).items())
