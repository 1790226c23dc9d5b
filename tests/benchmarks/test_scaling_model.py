"""The simulation behind the docs' figures, where its answer is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "support"))

from scaling_model import Circumstances, simulate, units_of

EVEN = Circumstances(start_secs=10.0, slowness_sigma=0.0, price_per_hour=3600.0)


def units(count: int, fragments: int = 4, secs: float = 5.0) -> list[np.ndarray]:
    return [np.full(fragments, secs)] * count


@pytest.mark.parametrize(
    ("workers", "secs", "efficiency"), [(1, 130.0, 120 / 130), (3, 50.0, 120 / 150), (4, 50.0, 120 / 200)]
)
def test_even_work_on_even_machines(workers, secs, efficiency):
    found = simulate(units(6), workers, EVEN)
    assert (found.secs, found.efficiency, found.preempted) == (pytest.approx(secs), pytest.approx(efficiency), 0)
    assert found.cost == pytest.approx(workers * secs)


def test_the_longest_unit_is_a_bound():
    assert simulate([np.full(40, 5.0), *units(3)], 100, EVEN).secs == pytest.approx(210.0)


def test_preemption_costs_the_fragment_in_work_and_a_start_and_nothing_else():
    calm = simulate(units(50), 2, EVEN)
    rough = simulate(units(50), 2, Circumstances(10.0, 0.0, preemptions_per_hour=20.0), seed=1)
    assert rough.preempted > 0
    lost = 2 * (rough.secs - calm.secs)
    assert 0 < lost <= rough.preempted * (5.0 + 10.0) + 2 * 20.0, "of two workers; the last unit may end alone"


def test_slow_machines_are_drawn_around_one():
    found = [simulate(units(2000), 10, Circumstances(0.0, 0.3), seed=seed).efficiency for seed in range(10)]
    assert np.mean(found) == pytest.approx(1.0, abs=0.1)


def test_fragments_are_all_there_and_have_the_mean():
    drawn = units_of(np.array([1.0, 2.0, 3.0]), fragments=1001, per_unit=10, mean_secs=20.0)
    assert [len(unit) for unit in drawn] == [*[10] * 100, 1]
    assert np.concatenate(drawn).mean() == pytest.approx(20.0, rel=0.05)
    assert set(np.concatenate(drawn)) == {10.0, 20.0, 30.0}
