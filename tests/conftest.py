"""Shared test set-up: tests/ itself is importable, and golden comparisons are summed up at the end of a run."""

import json
import os
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch

# a machine that does much else draws inputs slowly, and examples take any time
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

# read when a kernel is defined: without a GPU the Triton kernels are run by Triton's interpreter, on the CPU
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test asks the hub

# run folders hold the same files whether TensorBoard is installed or not; the tests of it bring a stand-in
sys.modules["torch.utils.tensorboard"] = None

sys.path.insert(0, str(Path(__file__).parent))

from helpers import golden_cases, triton_interpreter  # noqa: E402

if os.environ.get("TRITON_INTERPRET") == "1":
    triton_interpreter.prepare()


def pytest_addoption(parser):
    parser.addoption("--isa", help="run native code on this instruction set, such as portable or avx2")
    parser.addoption("--arm-objects", help="folder of objects compiled for 64-bit ARM, to check in place of new ones")


def pytest_make_parametrize_id(val):
    """Records are called by their names."""
    return val.name if hasattr(val, "_fields") and "name" in val._fields else None


@pytest.fixture
def plain_float32(monkeypatch):
    """Of small shapes torch's algorithms may not take TF32 where they could, and could not be compared with."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def force_isa(config):
    """Native code of this process on the instruction set asked for."""
    if config.getoption("--isa"):
        from edm_fast import native

        forced = native.use_isa(config.getoption("--isa"))
        forced.__enter__()
        config.add_cleanup(lambda: forced.__exit__(None, None, None))


def pytest_configure(config):
    """A cache folder of the run's own in place of the user's. Worker processes and commands inherit it, so that the
    speed of a convolution is measured once."""
    force_isa(config)
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.TemporaryDirectory(prefix="edm-fast-tests-", ignore_cleanup_errors=True)
    before = os.environ.get("EDM_FAST_CACHE_DIR")
    os.environ["EDM_FAST_CACHE_DIR"] = folder.name

    def undo():
        folder.cleanup()
        os.environ.pop("EDM_FAST_CACHE_DIR")
        if before is not None:
            os.environ["EDM_FAST_CACHE_DIR"] = before

    config.add_cleanup(undo)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Attach what a test compared to its report, so that the summary also works across worker processes."""
    golden_cases.results.clear()
    try:
        return (yield)
    finally:
        if golden_cases.results:
            backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
            label = f" ({backend})" if backend else ""
            results = [(entry + label, *rest) for entry, *rest in golden_cases.results]
            item.user_properties.append(("golden", json.dumps(results)))


def pytest_terminal_summary(terminalreporter):
    """For each network, layer and op: is it bit-identical to the published code's output, and how far off if not."""
    rows = {}
    for report in [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]:
        for key, value in report.user_properties:
            for entry, _, identical, error in json.loads(value) if key == "golden" else []:
                arrays, same, worst = rows.get(entry, (0, 0, 0.0))
                rows[entry] = (arrays + 1, same + identical, max(worst, error))
    if rows:
        terminalreporter.section("agreement with golden data (arrays, bit-identical ones, largest relative error)")
        for entry, (arrays, same, worst) in sorted(rows.items()):
            terminalreporter.line(f"{entry:52} {arrays:4} arrays, {same:4} bit-identical, worst {worst:.1e}")
