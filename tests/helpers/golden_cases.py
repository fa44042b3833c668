"""Reads a golden folder (index.json and .npz files) and compares results at the tolerance each entry states."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm_fast import networks

# (entry id, array name, bit-identical, largest error relative to the largest value) of each float comparison so far
results: list[tuple[str, str, bool, float]] = []
ROOT = Path(os.environ.get("EDM_FAST_GOLDEN") or Path(__file__).parents[1] / "golden").resolve()
Entry = dict[str, Any]


def _revive(value: Any) -> Any:
    """The text "inf" stands for infinity in configs."""
    if isinstance(value, dict):
        return {k: _revive(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_revive(v) for v in value]
    return float("inf") if value == "inf" else value


@functools.cache
def index(name: str = "index.json") -> dict[str, Entry]:
    """The entries of an index by id; "solvers.json" and "edm2.json" are the others."""
    entries = json.loads((ROOT / name).read_text())["entries"]
    for entry in entries:
        entry["config"] = _revive(entry["config"])
    return {entry["id"]: entry for entry in entries}


def entries(kind: str, where: Callable[[Entry], bool] = lambda entry: True, name: str = "index.json") -> list[Entry]:
    """All entries of a kind in an index for which `where` holds, in its order."""
    return [entry for entry in index(name).values() if entry["kind"] == kind and where(entry)]


def edm2(kind: str, where: Callable[[Entry], bool] = lambda entry: True) -> list[Entry]:
    """`entries` of the index of EDM2."""
    return entries(kind, where, "edm2.json")


def entry_id(entry: Entry) -> str:
    return entry["id"]


def by_id(id: str) -> Entry:
    return index()[id]


def path(entry: Entry, name: str | None = None) -> Path:
    """Absolute path of `name` (default: the entry's own file) in the golden folder."""
    return ROOT / (name or entry["file"])


@functools.lru_cache(maxsize=4)
def _read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as npz:
        return {name: npz[name] for name in npz.files}


def arrays(entry: Entry) -> dict[str, np.ndarray]:
    """Arrays of the test's own, by name."""
    if not str(entry.get("file", "")).endswith(".npz"):
        return {}
    return {name: value.copy() for name, value in _read(path(entry)).items()}


def tolerance(entry: Entry, name: str = "") -> dict[str, Any]:
    """The terms that apply to array `name`: grad_rtol, say, is for names like grad/w, out/grad_in_0 and x_grad."""
    table = entry["tolerance"]
    terms = ("exact", "rtol", "atol", "atol_rel_max")
    prefixes = [k[: -len(t) - 1] for k in table for t in terms if k.endswith("_" + t) and k not in terms]
    parts = name.split("/")
    for prefix in sorted(set(prefixes), key=len, reverse=True):
        if any(part.startswith(prefix) or part.endswith(f"_{prefix}") for part in parts):
            return {t: table[f"{prefix}_{t}"] for t in terms if f"{prefix}_{t}" in table}
    return {t: table[t] for t in terms if t in table}


def check(entry: Entry, name: str, got: Any, want: Any = None) -> None:
    """Assert |got - want| <= rtol |want| + atol + atol_rel_max max|want| for every element."""
    want = np.asarray(_read(path(entry))[name] if want is None else want)
    got = np.asarray(got.detach().cpu().numpy() if hasattr(got, "detach") else got)
    assert got.shape == want.shape, f"{entry['id']}:{name}: shape {got.shape}, golden {want.shape}"
    if want.dtype.kind not in "fc":
        np.testing.assert_array_equal(got, want, err_msg=f"{entry['id']}:{name}")
        return
    limits = tolerance(entry, name)
    assert limits, f"{entry['id']}:{name}: no tolerance given"
    scale = np.abs(want[np.isfinite(want)], dtype=np.float64).max(initial=0)
    gap = np.abs(got.astype(np.float64) - want)[np.isfinite(want)].max(initial=0)
    results.append((entry["id"], name, bool(np.array_equal(got, want, equal_nan=True)), float(gap / (scale or 1))))
    if limits.get("exact"):
        np.testing.assert_array_equal(got, want, err_msg=f"{entry['id']}:{name}")
        return
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=f"{entry['id']}:{name}")
    if not finite.any():
        return
    got, want = got[finite], want[finite]
    bound = limits.get("rtol", 0) * np.abs(want) + limits.get("atol", 0)
    bound = bound + limits.get("atol_rel_max", 0) * np.abs(want).max()
    error = np.abs(got - want)
    worst = int(np.argmax(error - bound))
    ok = np.all(error <= bound)  # false for nan, too
    assert ok, f"{entry['id']}:{name}: |{got[worst]} - {want[worst]}| = {error[worst]:.3g} > {bound[worst]:.3g}"


def same_arithmetic() -> str | None:
    """None where torch rounds as it did when the golden data were recorded, otherwise why bits cannot be compared."""
    recorded = json.loads((ROOT / "index.json").read_text())["made_with"]["torch"].split("+")[0]
    if torch.__version__.split("+")[0] != recorded:
        return f"torch {torch.__version__}; the golden data are of torch {recorded}"
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        None
        if capability in ("AVX2", "AVX512")
        else f"torch runs its {capability} kernels; the golden data are of AVX512"
    )


# what torch 2.13, which made the golden data, keeps of twelve numbers at seed 0; torch 2.6 draws other masks
MASK = [0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1]


def same_dropout() -> bool:
    """Whether dropout draws the masks of the golden data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return bool(torch.nn.functional.dropout(torch.ones(12), 0.3).gt(0).int().tolist() == MASK)


def check_bits(entry: Entry, name: str, got: torch.Tensor) -> None:
    """Assert that a result is the recorded array to the last bit."""
    np.testing.assert_array_equal(got.detach().numpy(), _read(path(entry))[name], err_msg=f"{entry['id']}:{name}")


def heads(tensors: Iterable[Any], columns: int = 8) -> np.ndarray:
    """(n, columns) as the golden head rows: sum, sum of absolute values and the first values of each, NaN-padded."""
    flat = [torch.as_tensor(tensor).detach().double().flatten() for tensor in tensors]
    out = np.full([len(flat), columns], np.nan)
    for row, values in zip(out, flat, strict=True):
        row[:2] = values.sum(), values.abs().sum()
        row[2 : 2 + len(values)] = values[: columns - 2]
    return out


def check_initial_state(entry):
    """The fresh network of an entry: the random numbers it takes, and its names, shapes and values. Returns it."""
    found, config = arrays(entry), entry["config"]
    torch.manual_seed(config["torch_manual_seed"])
    net = networks.build(config["class"], config["kwargs"])
    check(entry, "randn_after", torch.randn([4]))
    state = net.state_dict()
    assert list(state) == [str(key) for key in found["head_keys"]]
    for name, shape in config.get("state_dict", {}).items():
        assert list(state[name].shape) == shape, name
    check(entry, "head_rows", heads(state.values(), found["head_rows"].shape[1]))
    return net
