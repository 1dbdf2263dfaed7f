from __future__ import annotations

import pytest

from pleiades.simulator.body import plan
from pleiades.simulator.settings import Cut, Faults


def facts(faults: Faults, seed: int, number: int) -> tuple[object, ...]:
    return plan(faults, seed, number)[:-1]


def test_the_same_seed_and_number_give_the_same_plan() -> None:
    faults = Faults(cut_bytes=1000, error_rate=0.3, hang_rate=0.3, silence_rate=0.3)
    plans = [facts(faults, 1, number) for number in range(1, 200)]
    assert plans == [facts(faults, 1, number) for number in range(1, 200)]
    assert plans != [facts(faults, 2, number) for number in range(1, 200)]
    assert plan(faults, 1, 1).rng.random() == plan(faults, 1, 1).rng.random()


def test_nothing_goes_wrong_by_default_but_the_end_after_a_quarter_of_an_hour() -> None:
    for number in range(1, 100):
        planned = plan(Faults(), 1, number)
        assert planned.refuse_status is None
        assert not planned.hang
        assert not planned.silent
        assert 450 <= planned.cut_seconds <= 1350
        assert planned.cut_bytes == float("inf")


def test_no_limits_mean_no_cut() -> None:
    planned = plan(Faults(cut_every_seconds=0, cut_bytes=0), 1, 1)
    assert planned.cut_seconds == planned.cut_bytes == float("inf")


def test_without_jitter_the_limits_are_exact() -> None:
    planned = plan(Faults(cut_every_seconds=2, cut_bytes=5000, cut_jitter=0), 1, 1)
    assert (planned.cut_seconds, planned.cut_bytes) == (2, 5000)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 1000), (0.25, 250)])
def test_rates_are_probabilities(rate: float, expected: int) -> None:
    faults = Faults(hang_rate=rate, silence_rate=rate, other_cluster_rate=rate)
    plans = [plan(faults, 1, number) for number in range(1, 1001)]
    for count in (
        sum(p.hang for p in plans),
        sum(p.silent for p in plans),
        sum(p.data_centre == "codfw" for p in plans),
    ):
        assert count == pytest.approx(expected, abs=45 if 0 < rate < 1 else 0)


def test_all_kinds_of_cuts_occur_and_only_the_chosen_ones() -> None:
    assert {plan(Faults(), 1, number).cut for number in range(1, 50)} == set(Cut)
    clean = Faults(cuts=(Cut.CLEAN,))
    assert {plan(clean, 1, number).cut for number in range(1, 50)} == {Cut.CLEAN}


def test_errors_come_in_bursts_of_both_kinds() -> None:
    faults = Faults(error_rate=0.02, error_burst=4)
    refused = [plan(faults, 3, number).refuse_status for number in range(1, 1001)]
    assert {500, 503} <= set(refused)
    runs = "".join("x" if status else " " for status in refused).split()
    # A burst is shorter only at the first or last request.
    assert len(runs) > 5
    assert all(len(run) >= 4 for run in runs[:-1])
