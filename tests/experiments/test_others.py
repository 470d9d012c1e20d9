"""What a run says of the work beside it."""

import collections

import pytest

from experiments._command import others

Times = collections.namedtuple("Times", "user nice system idle iowait steal guest")


def test_what_others_did_is_what_the_machine_did_less_one_s_own(monkeypatch):
    seen = {
        "perf_counter": iter([0.0, 100.0]),
        "cpu_times": iter(
            [Times(10, 1, 5, 50, 3, 0, 4), Times(70, 11, 25, 160, 9, 5, 8)]
        ),
        "times": iter([(2.0, 1.0, 0.0, 0.0, 0.0), (30.0, 6.0, 8.0, 1.0, 100.0)]),
    }
    monkeypatch.setattr(others.time, "perf_counter", lambda: next(seen["perf_counter"]))
    monkeypatch.setattr(others.psutil, "cpu_times", lambda: next(seen["cpu_times"]))
    monkeypatch.setattr(others.os, "times", lambda: next(seen["times"]))
    watch = others.Others()
    # 60 + 10 + 20 + 5 (stolen) seconds of the machine, 28 + 5 + 8 + 1 of one's own
    assert watch.cores() == pytest.approx((95 - 42) / 100)
