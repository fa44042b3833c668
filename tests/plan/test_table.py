"""Tables of measurements: what a process goes by, what later ones measure again, and what processes agree on."""

import dataclasses
import datetime
import json

import pytest

from edm_fast import distributed
from edm_fast.plan import _table
from edm_fast.plan._table import MAX_COUNT, Measurement, Table


def hours_ago(hours):
    then = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=hours)
    return then.isoformat(timespec="seconds")


class Process:
    """A process with a table, and measurements in place of a clock."""

    def __init__(self, folder, **rows):
        self.table, self.measured, self.rows = Table(folder / "table.json"), [], rows

    def measure(self, keys):
        self.measured += keys
        return {key: self.rows[key] for key in keys}

    def seconds(self, *keys):
        return self.table.seconds([*keys], self.measure)


def store(folder, **rows):
    document = {key: dataclasses.asdict(row) for key, row in rows.items()}
    (folder / "table.json").write_text(json.dumps(document))


QUIET, WIDE = Measurement(1.0, 0.01, date=hours_ago(2)), Measurement(1.1, 0.5, date=hours_ago(2))


def test_a_later_process_measures_again_what_disagreed(tmp_path):
    store(tmp_path, a=QUIET, b=WIDE)
    later = Process(tmp_path, b=Measurement(0.9, 0.2))
    assert later.seconds("a", "b") == {"a": 1.0, "b": 0.9} and later.measured == ["b"]
    row = later.table.stored()["b"]
    assert (row.seconds, row.spread, row.count) == (0.9, 0.2, 2) and row.age() < 60
    # its spread is still wide, but the next one is too soon
    soon = Process(tmp_path)
    assert soon.seconds("a", "b") == {"a": 1.0, "b": 0.9} and not soon.measured


def test_what_came_with_the_package_need_not_be_measured(tmp_path, monkeypatch):
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    shipped.mkdir(), own.mkdir()
    store(shipped, a=QUIET, b=QUIET)
    store(own, b=dataclasses.replace(QUIET, seconds=3.0))
    monkeypatch.setattr(_table, "SHIPPED", shipped)
    process = Process(own, c=Measurement(5.0))
    assert process.seconds("a", "b", "c") == {"a": 1.0, "b": 3.0, "c": 5.0} and process.measured == ["c"]


@pytest.mark.parametrize(
    "later, seconds", [(Measurement(0.5, 0.6), 1.1), (Measurement(2.0, 0.3), 2.0), (Measurement(1.0, 0.5), 1.0)]
)
def test_the_better_measurement_stays(tmp_path, later, seconds):
    store(tmp_path, b=WIDE)
    assert Process(tmp_path, b=later).seconds("b") == {"b": seconds}
    assert Table(tmp_path / "table.json").stored()["b"].count == 2


def test_rows_are_measured_so_often_and_no_more(tmp_path):
    row = WIDE
    for _ in range(MAX_COUNT + 2):
        store(tmp_path, b=dataclasses.replace(row, date=hours_ago(2)))
        Process(tmp_path, b=Measurement(1.0, 0.9)).seconds("b")
        row = Table(tmp_path / "table.json").stored()["b"]
    assert row.count == MAX_COUNT and row.settled()


def test_what_is_hopeless_is_left_alone(tmp_path):
    store(tmp_path, a=QUIET, b=dataclasses.replace(WIDE, seconds=1.6))
    process = Process(tmp_path)
    assert process.seconds("a", "b") == {"a": 1.0, "b": 1.6} and not process.measured


def test_a_process_goes_by_what_it_met_first(tmp_path):
    store(tmp_path, b=dataclasses.replace(WIDE, date=hours_ago(0)))
    process = Process(tmp_path, c=QUIET)
    assert process.seconds("b") == {"b": 1.1}
    store(tmp_path, b=dataclasses.replace(WIDE, seconds=7.0))
    assert process.seconds("b", "c") == {"b": 1.1, "c": 1.0} and process.measured == ["c"]
    assert Table(tmp_path / "table.json").stored()["b"].seconds == 7.0  # and leaves the file to others


def test_of_two_that_measure_again_the_first_to_store_decides(tmp_path):
    store(tmp_path, b=WIDE)
    first, second = Process(tmp_path, b=Measurement(0.8, 0.4)), Process(tmp_path, b=Measurement(0.7, 0.0))

    def overtaken(keys):
        assert first.seconds("b") == {"b": 0.8}
        return second.rows

    second.measure = overtaken
    assert second.seconds("b") == {"b": 0.8} and Table(tmp_path / "table.json").stored()["b"].count == 2


def test_processes_of_a_group_do_not_measure_again(tmp_path, monkeypatch):
    """They start one after the other, and would not agree."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    store(tmp_path, b=WIDE)
    process = Process(tmp_path, c=QUIET)
    assert process.seconds("b", "c") == {"b": 1.1, "c": 1.0} and process.measured == ["c"]


def test_a_table_that_is_cleared_meanwhile(tmp_path):
    store(tmp_path, b=WIDE)
    process = Process(tmp_path)

    def cleared(keys):
        (tmp_path / "table.json").unlink()
        return {"b": Measurement(0.9, 0.0)}

    process.measure = cleared
    assert process.seconds("b") == {"b": 0.9} == {k: r.seconds for k, r in process.table.stored().items()}


def test_what_is_dropped_is_tried_again_later(tmp_path):
    """Memory may have been short."""
    store(tmp_path, a=QUIET, b=Measurement(fault="it raised"), c=Measurement(fault="it raised", date=hours_ago(2)))
    process = Process(tmp_path, c=Measurement(0.5, 0.0))
    assert process.seconds("a", "b", "c") == {"a": 1.0, "c": 0.5} and process.measured == ["c"]
    store(tmp_path, a=QUIET, c=WIDE)
    process = Process(tmp_path, c=Measurement(fault="it is wrong"))
    assert process.seconds("a", "c") == {"a": 1.0} and process.table.stored()["c"].fault == "it is wrong"


def test_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("EDM_FAST_CACHE_DIR", str(tmp_path))
    path = tmp_path / "plans/t.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"b": dataclasses.asdict(Measurement(1.0, 0.5))}))
    rows = {"b": Measurement(0.9, 0.0)}
    assert _table.table(None, "t").seconds(["b"], lambda keys: rows) == {"b": 1.0}
    with _table.at_once():
        assert _table.table(None, "t").seconds(["b"], lambda keys: rows) == {"b": 0.9}
    (table,) = _table.tables()
    assert table.path == path and table.rows["b"].count == 2 and Table.retry_after > 0
    _table._tables.clear()
