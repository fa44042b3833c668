"""The fastest algorithm of a convolution: measured once, kept in a file, one choice for all processes."""

import dataclasses
import json
import threading

import native_conv as nc
import pytest

from edm_fast.plan import _algorithms, _table
from edm_fast.plan._algorithms import DIRECT, MERGED, WINOGRAD2, WINOGRAD4, Measured, Shape, fits

pytestmark = nc.needs_native
SHAPE = Shape(1, 8, 6, 6, 8, 3, 1)


@pytest.fixture
def clock(monkeypatch):
    """Seconds by algorithm, in place of measurements; `calls` counts them. No table is left in memory."""

    def measure(shape, algorithms, cold=True):
        measure.calls += 1
        return {a: measure.seconds[a] for a in algorithms}

    measure.calls, measure.seconds = 0, {DIRECT: 3.0, WINOGRAD2: 2.0, WINOGRAD4: 1.0}
    monkeypatch.setattr(_algorithms, "measure", measure)
    _table._table.cache_clear()
    yield measure
    _table._table.cache_clear()


def forget():
    """As a new process starts."""
    _table._table.cache_clear()


def file(folder):
    (path,) = (folder / "plans").glob("*.json")
    return path


def test_the_fastest_that_the_precision_allows(clock, tmp_path):
    assert Measured("fp32", tmp_path)(SHAPE) == WINOGRAD4
    assert Measured("exact", tmp_path)(SHAPE) == WINOGRAD2
    assert Measured("exact", tmp_path)(Shape(1, 8, 6, 6, 8, 1, 0)) == DIRECT  # no other has a kernel for it
    assert clock.calls == 1


def test_small_networks_have_measurements_of_their_own(clock, tmp_path):
    """Their weights are in the caches when a layer is called again."""
    assert Measured("fp32", tmp_path)(SHAPE) == WINOGRAD4
    clock.seconds = {DIRECT: 0.0, WINOGRAD2: 1.0, WINOGRAD4: 2.0}
    assert Measured("fp32", tmp_path, cold=False)(SHAPE) == DIRECT
    assert Measured("fp32", tmp_path)(SHAPE) == WINOGRAD4
    assert clock.calls == 2


def test_measurements_outlive_the_process(clock, tmp_path):
    Measured("fp32", tmp_path)(SHAPE)
    assert len(json.loads(file(tmp_path).read_text())) == 3
    forget()
    clock.seconds = {DIRECT: 0.0, WINOGRAD2: 1.0, WINOGRAD4: 2.0}
    assert Measured("fp32", tmp_path)(SHAPE) == WINOGRAD4 and clock.calls == 1


def test_who_stores_first_decides(clock, tmp_path):
    slow = _table.Table(tmp_path / "table.json")
    first = _table.Table(tmp_path / "table.json")
    allowed = [DIRECT, WINOGRAD2, WINOGRAD4]
    measured = _algorithms.measure

    def overtaken(shape, algorithms, cold):
        _algorithms.measure = measured
        _algorithms.costs(first, shape, algorithms)
        return {DIRECT: 0.0, WINOGRAD2: 1.0, WINOGRAD4: 2.0}

    _algorithms.measure = overtaken
    try:
        assert _algorithms.costs(slow, SHAPE, allowed) == _algorithms.costs(first, SHAPE, allowed) == clock.seconds
    finally:
        _algorithms.measure = measured
    assert sorted(slow.stored().values()) == [1, 2, 3]


def test_tables_filled_at_the_same_time_agree(clock, tmp_path, monkeypatch):
    together = threading.Barrier(4)

    def measure(shape, algorithms, cold):
        together.wait()
        return {a: float((threading.get_ident() >> 8) % 1000 + a) for a in algorithms}

    monkeypatch.setattr(_algorithms, "measure", measure)
    tables = [_table.Table(tmp_path / "table.json") for _ in range(4)]
    found = []
    threads = [
        threading.Thread(target=lambda t=t: found.append(_algorithms.costs(t, SHAPE, [DIRECT, WINOGRAD2])))
        for t in tables
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(costs == found[0] for costs in found)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": "b"}', "\x00\xff", "1"])
def test_a_damaged_file_is_measured_anew(clock, tmp_path, text):
    Measured("fp32", tmp_path)(SHAPE)
    path = file(tmp_path)
    path.write_bytes(text.encode("latin-1"))
    forget()
    assert Measured("fp32", tmp_path)(SHAPE) == WINOGRAD4 and clock.calls == 2
    assert len(json.loads(path.read_text())) == 3


def test_a_folder_that_cannot_be_written(clock, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):
        assert Measured("fp32", tmp_path / "file")(SHAPE) == WINOGRAD4
    assert clock.calls == 1


def test_measuring_leaves_random_numbers_alone():
    import torch

    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    found = _algorithms.measure(SHAPE, [DIRECT, WINOGRAD2])
    assert all(seconds > 0 for seconds in found.values()) and torch.equal(torch.rand(1), want)


def test_a_doubled_image_has_merged_algorithms_and_others_have_not(tmp_path):
    doubled = dataclasses.replace(SHAPE, doubled=True)
    allowed = [a for a in _algorithms.ALLOWED["bf16"] if fits(a, doubled)]
    assert {*MERGED} < {*allowed} and not any(fits(a, SHAPE) for a in MERGED)
    assert not any(fits(a, dataclasses.replace(doubled, padding=0)) for a in MERGED)
    assert not fits(_algorithms.WINOGRAD4_UP_INT16, dataclasses.replace(doubled, channels=4097))
    assert doubled.output() == (SHAPE.n, SHAPE.outputs, 2 * SHAPE.h, 2 * SHAPE.w)
    found = _algorithms.measure(doubled, allowed)
    assert found.keys() == {*allowed} and all(seconds > 0 for seconds in found.values())
    assert Measured("exact", tmp_path)(doubled) in _algorithms.ALLOWED["exact"]
