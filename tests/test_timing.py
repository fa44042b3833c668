"""Timing by turns: the order of calls, repeats of short ones, more rounds while times disagree, ratios by rounds."""

import pytest
import torch

from edm_fast import timing


class Machine:
    """A clock that only calls move, and what they did."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def clock(self, call, repeats=1):
        start = self.now
        for _ in range(repeats):
            call()
        return (self.now - start) / repeats

    def call(self, name, *seconds):
        """The seconds of its first runs; the last number is that of all later ones."""
        left = list(seconds)

        def run():
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_turns_alternate_and_short_calls_are_repeated():
    machine = Machine()
    calls = {"a": machine.call("a", 1.0), "b": machine.call("b", 0.1)}
    times = timing.by_turns(calls, 2, 0.2, machine.clock)
    assert times == {"a": [1.0, 1.0], "b": pytest.approx([0.1, 0.1])}
    assert machine.log == ["a", "b", "a", *"bbb", *"bbb", "a"]  # sizing, forwards, backwards; "b" warms up first


def test_what_runs_before_a_turn_is_not_timed():
    machine = Machine()
    calls = {"a": machine.call("a", 1.0), "b": machine.call("b", 2.0)}
    times = timing.by_turns(calls, 2, clock=machine.clock, before=machine.call("flush", 5.0))
    assert times == {"a": [1.0, 1.0], "b": [2.0, 2.0]}
    assert machine.log == ["flush", "a", "flush", "b", "flush", "b", "flush", "a"]


def test_rounds_are_repeated_while_times_disagree():
    machine = Machine()
    calls = {"quiet": machine.call("a", 1.0), "busy": machine.call("b", 9.0, 5.0, 7.0, 1.0)}
    times = timing.by_turns(calls, 3, clock=machine.clock, most=20)
    assert times["busy"] == [9.0, 5.0, 7.0, *[1.0] * 4]  # until the median is one of those that agree
    assert times["quiet"] == [1.0] * 7
    assert len(timing.by_turns({"busy": machine.call("b", 1.0, 2.0, 2.0)}, 2, clock=machine.clock, most=6)["busy"]) == 6
    assert len(timing.by_turns({"quiet": machine.call("a", 1.0)}, 2, clock=machine.clock, most=6)["quiet"]) == 2


def test_time_bounds_the_rounds(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(timing.time, "monotonic", lambda: machine.now)
    busy = machine.call("b", *[1.0, 2.0, 2.0] * 9)
    assert len(timing.by_turns({"busy": busy}, 2, clock=machine.clock, most=99, limit=5.0)["busy"]) == 5
    assert len(timing.by_turns({"busy": machine.call("b", 9.0)}, 2, clock=machine.clock, limit=1.0)["busy"]) == 2


def test_spread_and_quartiles():
    assert timing.spread([1.0, 1.25, 8.0]) == 0.25 and timing.spread([2.0]) == timing.spread([0.0, 1.0]) == 0
    assert timing.quartiles([1.0, 2.0, 4.0]) == [1.5, 3.0] and timing.quartiles([3.0]) == [3.0, 3.0]


def test_ratios_are_taken_round_by_round():
    found = timing.compared([1.0, 2.0, 4.0], [4.0, 2.0, 12.0])
    assert found["ratio"] == 3.0 and found["ratio_quartiles"] == [2.0, 3.5]  # not 4 / 2, that of the medians
    assert found["median_s"] == 2.0 and found["quartiles_s"] == [1.5, 3.0] and found["reference_median_s"] == 4.0
    assert timing.compared([0.5], [1.0])["ratio_quartiles"] == [2.0, 2.0]


@pytest.mark.parametrize("clock", [timing.wall_clock, timing.thread_clock])
def test_clocks_of_the_cpu(clock):
    calls = []
    assert clock(lambda: calls.append(sum(range(20_000))), 3) > 0 and len(calls) == 3


def test_the_clock_of_a_gpu_is_between_events(monkeypatch):
    """Of the stream that is current when they are recorded, with one wait, for the last of them."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            return 8.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert timing.gpu_clock(lambda: log.append("call"), 2) == 0.004
    assert log == ["record", "call", "call", "record", "wait"]
    assert timing.clock_of("cuda:1") is timing.gpu_clock and timing.clock_of(torch.device("cpu")) is timing.wall_clock
