"""The fastest algorithm of a convolution: measured once, kept in a file, one choice for all processes."""

import dataclasses
import functools
import json
import math
import threading

import pytest
import torch

from edm_fast import backend, native
from edm_fast.ops.conv2d import Conv2dArgs
from edm_fast.ops.upfirdn import UpfirdnArgs
from edm_fast.plan import _algorithms, _table, _tune
from edm_fast.plan._algorithms import Shape, fits
from edm_fast.plan._convolutions import with_algorithms
from edm_fast.plan._graph import Graph, Node, Value
from edm_fast.plan._table import Measurement
from edm_fast.plan._tune import MeasuredAlgorithms
from helpers import native_conv as nc

pytestmark = nc.needs_native
SHAPE = Shape(1, 8, 6, 6, 8, 3, 1)
NAMES = "direct", "winograd2x2", "winograd4x4", "winograd4x4-unpacked", "winograd4x4-unpacked-paired"
DIRECT, WINOGRAD2, WINOGRAD4, UNPACKED4, PAIRED4 = map(native.ALGORITHMS.get, NAMES)
ALLOWED = [a for a in _algorithms.ALLOWED["fp32"] if fits(a, SHAPE)]
CONV2D = backend.ops()["conv2d"]


def fastest(seconds):
    return min(seconds, key=seconds.get)


MERGED = [a for a in nc.ALGORITHMS if a.doubled]


@pytest.fixture
def clock(monkeypatch):
    """Seconds by algorithm, in place of measurements; `calls` counts them. No table is left in memory."""

    def measure(shape, algorithms, cold=True):
        measure.calls += 1
        return {a: Measurement(measure.seconds.get(a, 9.0)) for a in algorithms}

    measure.calls, measure.seconds = 0, {DIRECT: 3.0, WINOGRAD2: 2.0, WINOGRAD4: 1.0}
    monkeypatch.setattr(_tune, "measure", measure)
    _table._tables.clear()
    yield measure
    _table._tables.clear()


def forget():
    """As a new process starts."""
    _table._tables.clear()


def file(folder):
    (path,) = (folder / "plans").glob("*.json")
    return path


def test_the_fastest_that_the_precision_allows(clock, tmp_path):
    assert fastest(MeasuredAlgorithms("fp32", tmp_path)(SHAPE)) == WINOGRAD4
    assert fastest(MeasuredAlgorithms("exact", tmp_path)(SHAPE)) == WINOGRAD2
    assert [*MeasuredAlgorithms("exact", tmp_path)(Shape(1, 8, 6, 6, 8, 1, 0))] == [
        DIRECT
    ]  # no other has a kernel for it
    assert clock.calls == 1


def test_a_precision_allows_its_error_class_and_those_before_it():
    classes = [{a.error for a in _algorithms.ALLOWED[precision]} for precision in ("exact", "fp32", "bf16")]
    assert classes == [{"exact"}, {"exact", "fp32"}, {"exact", "fp32", "bf16"}]


def test_small_networks_have_measurements_of_their_own(clock, tmp_path):
    """Their weights are in the caches when a layer is called again."""
    assert fastest(MeasuredAlgorithms("fp32", tmp_path)(SHAPE)) == WINOGRAD4
    clock.seconds = {DIRECT: 0.0, WINOGRAD2: 1.0, WINOGRAD4: 2.0}
    assert fastest(MeasuredAlgorithms("fp32", tmp_path, cold=False)(SHAPE)) == DIRECT
    assert fastest(MeasuredAlgorithms("fp32", tmp_path)(SHAPE)) == WINOGRAD4
    assert clock.calls == 2


def test_measurements_outlive_the_process(clock, tmp_path):
    MeasuredAlgorithms("fp32", tmp_path)(SHAPE)
    assert len(json.loads(file(tmp_path).read_text())) == len(ALLOWED)
    forget()
    clock.seconds = {DIRECT: 0.0, WINOGRAD2: 1.0, WINOGRAD4: 2.0}
    assert fastest(MeasuredAlgorithms("fp32", tmp_path)(SHAPE)) == WINOGRAD4 and clock.calls == 1


def test_who_stores_first_decides(clock, tmp_path):
    slow = _table.Table(tmp_path / "table.json")
    first = _table.Table(tmp_path / "table.json")
    allowed = [DIRECT, WINOGRAD2, WINOGRAD4]
    measured = _tune.measure

    def overtaken(shape, algorithms, cold):
        _tune.measure = measured
        _tune.costs(first, shape, algorithms)
        return {DIRECT: Measurement(0.0), WINOGRAD2: Measurement(1.0), WINOGRAD4: Measurement(2.0)}

    _tune.measure = overtaken
    try:
        assert _tune.costs(slow, SHAPE, allowed) == _tune.costs(first, SHAPE, allowed) == clock.seconds
    finally:
        _tune.measure = measured
    assert sorted(row.seconds for row in slow.stored().values()) == [1, 2, 3]


def test_tables_filled_at_the_same_time_agree(clock, tmp_path, monkeypatch):
    together = threading.Barrier(4)

    def measure(shape, algorithms, cold):
        together.wait()
        return {a: Measurement(float((threading.get_ident() >> 8) % 1000 + int(a is DIRECT))) for a in algorithms}

    monkeypatch.setattr(_tune, "measure", measure)
    tables = [_table.Table(tmp_path / "table.json") for _ in range(4)]
    found = []
    threads = [
        threading.Thread(target=lambda t=t: found.append(_tune.costs(t, SHAPE, [DIRECT, WINOGRAD2]))) for t in tables
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(costs == found[0] for costs in found)


DAMAGED = ["", "{", "[]", "1", "null", "\x00\xff", "PK\x03\x04", "[" * 100_000, '{"a":' * 100_000]
DAMAGED += [f'{{"a": {value}}}' for value in ('"b"', "null", "[1]", "{}", "1" + "0" * 400, "NaN", "-1", "Infinity")]
ROW = '{"a": {"seconds": 1.0, "spread": 0.0, "fault": "", "date": "2026-01-01T00:00:00+00:00", "count": 1}}'
CHANGES = [("1.0", "-1"), ("1.0", '"1"'), ("0.0", "NaN"), ('""', "null"), (": 1}", ": 0}"), ("date", "data")]
CHANGES += [("2026-01-01T00:00:00+00:00", ""), ("+00:00", ""), ("2026", "99999")]
DAMAGED += [ROW.replace(*change, 1) for change in CHANGES]
DAMAGED += [slice(1), slice(30), slice(-1), slice(5, None)]  # cut short, or the start lost


@pytest.mark.parametrize("damage", DAMAGED, ids=lambda damage: str(damage)[:99])
def test_a_damaged_file_is_measured_anew(clock, tmp_path, damage):
    MeasuredAlgorithms("fp32", tmp_path)(SHAPE)
    path = file(tmp_path)
    path.write_bytes(damage.encode("latin-1") if isinstance(damage, str) else path.read_bytes()[damage])
    forget()
    assert fastest(MeasuredAlgorithms("fp32", tmp_path)(SHAPE)) == WINOGRAD4 and clock.calls == 2
    assert len(json.loads(path.read_text())) == len(ALLOWED)


def unwritable(folder, what):
    """A cache folder in which something lies where a file or folder of ours belongs."""
    MeasuredAlgorithms("fp32", folder / "other")(SHAPE)
    name = file(folder / "other").name
    if what == "a file for the cache folder":
        (folder / "cache").write_text("in the way")
    elif what == "a file for the folder of tables":
        (folder / "cache").mkdir()
        (folder / "cache" / "plans").write_text("in the way")
    elif what == "a folder for the lock":
        (folder / "cache" / "plans" / name).with_suffix(".lock").mkdir(parents=True)
    elif what == "a link to nothing":
        (folder / "cache").symlink_to("/proc/nothing")
    elif what == "a folder for the table":
        (folder / "cache" / "plans" / name).mkdir(parents=True)
        (folder / "cache" / "plans" / name / "full").touch()
    forget()
    return folder / "cache"


@pytest.mark.parametrize(
    "what",
    [
        "a file for the cache folder",
        "a file for the folder of tables",
        "a folder for the lock",
        "a folder for the table",
        "a link to nothing",
    ],
)
def test_a_folder_that_cannot_be_written(clock, tmp_path, what):
    folder = unwritable(tmp_path, what)
    for _ in range(2):
        assert fastest(MeasuredAlgorithms("fp32", folder)(SHAPE)) == WINOGRAD4
    assert clock.calls == 2  # for another folder, and once for this one


def test_measuring_leaves_random_numbers_alone():
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    found = _tune.measure(SHAPE, [DIRECT, WINOGRAD2])
    assert all(row.seconds > 0 and not row.fault for row in found.values()) and torch.equal(torch.rand(1), want)


def test_a_doubled_image_has_merged_algorithms_and_others_have_not(tmp_path):
    doubled = dataclasses.replace(SHAPE, doubled=True)
    allowed = [a for a in _algorithms.ALLOWED["bf16"] if fits(a, doubled)]
    assert {*MERGED} - {*nc.PAIRED} < {*allowed} and not any(fits(a, SHAPE) for a in MERGED)
    assert not any(fits(a, dataclasses.replace(doubled, padding=0)) for a in MERGED)
    assert not fits(native.ALGORITHMS["winograd4x4-doubled-int16"], dataclasses.replace(doubled, channels=4097))
    assert doubled.output() == (SHAPE.n, SHAPE.outputs, 2 * SHAPE.h, 2 * SHAPE.w)
    found = _tune.measure(doubled, allowed)
    assert found.keys() == {*allowed} and all(row.seconds > 0 and not row.fault for row in found.values())
    assert fastest(MeasuredAlgorithms("exact", tmp_path)(doubled)) in _algorithms.ALLOWED["exact"]


def test_pairs_where_there_are_registers_and_channels_for_them():
    pointwise = native.ALGORITHMS["direct-paired"]
    for isa in nc.isas():
        with native.use_isa(isa):
            wide, padded = dataclasses.replace(SHAPE, channels=48), dataclasses.replace(SHAPE, channels=48, kernel=1)
            found = [a for a in nc.PAIRED if fits(a, wide)]
            assert bool(found) == (isa in ("avx512", "avx512vnni"))
            assert len(found) == (len([a for a in nc.PAIRED if not a.doubled]) - 1 if found else 0)  # but for the 1x1
            assert not any(fits(a, dataclasses.replace(wide, channels=47)) for a in nc.PAIRED)
            assert not fits(pointwise, padded)
            assert fits(pointwise, dataclasses.replace(padded, padding=0)) == bool(found)


def algorithms_of(sizes, seconds, limit):
    """Those of convolutions of 64 channels and images of these heights and widths; seconds of each by the height."""
    nodes, weight = [], torch.empty(64, 64, 3, 3)
    for size in sizes:
        nodes.append(Node(CONV2D, Conv2dArgs(Value((1, 64, size, size)), weight), [Value((1, 64, size, size))]))
    graph = Graph({}, nodes, nodes[-1].output)
    return [*with_algorithms(graph, lambda shape: seconds[shape.h], limit)[1].values()]


def test_packed_weights_stay_within_their_limit():
    """What is given up first saves the least time for its memory; what needs none is taken where it is the fastest."""
    seconds = {
        32: {DIRECT: 30.0, WINOGRAD4: 10.0, UNPACKED4: 11.0},
        16: {DIRECT: 9.0, WINOGRAD4: 2.0, UNPACKED4: 5.0},
        8: {DIRECT: 3.0, WINOGRAD4: 1.0, UNPACKED4: 0.5},
    }
    found = functools.partial(algorithms_of, (32, 16, 8))
    assert found(seconds, math.inf) == [WINOGRAD4, WINOGRAD4, UNPACKED4]
    assert found(seconds, 8 / 3) == [WINOGRAD4, WINOGRAD4, UNPACKED4]  # each packs four times its own
    assert found(seconds, 7 / 3) == [UNPACKED4, WINOGRAD4, UNPACKED4]
    assert found(seconds, 1) == found(seconds, 0) == [UNPACKED4] * 3
    assert found(dict.fromkeys(seconds, {DIRECT: 1.0}), 0) == [DIRECT] * 3  # nothing takes less
    fast = {DIRECT: 9.0, UNPACKED4: 2.0, PAIRED4: 1.0}
    assert found(dict.fromkeys(seconds, fast), 0) == [PAIRED4] * 3  # a few floats do not count


def test_a_doubled_image_keeps_to_merged_algorithms():
    image, wide, y = (Value((1, 64, size, size)) for size in (8, 16, 16))
    up = Node(backend.ops()["upfirdn"], UpfirdnArgs(image, torch.ones(2, 2) / 4, 2), [wide])
    graph = Graph({"x": image}, [up, Node(CONV2D, Conv2dArgs(wide, torch.empty(64, 64, 3, 3)), [y])], y)
    packed, unpacked = (native.ALGORITHMS[f"winograd4x4-doubled{suffix}"] for suffix in ("", "-unpacked"))
    for seconds, limit, expected in (
        ({DIRECT: 2.0, packed: 1.0, unpacked: 3.0}, math.inf, packed),
        ({DIRECT: 2.0, packed: 1.0, unpacked: 3.0}, 1, unpacked),
        ({DIRECT: 0.5, packed: 1.0, unpacked: 3.0}, math.inf, DIRECT),
    ):
        found, algorithms = with_algorithms(graph, lambda shape, seconds=seconds: seconds, limit)
        assert [*algorithms.values()] == [expected] and len(found.nodes) == 1 + (expected is DIRECT)
