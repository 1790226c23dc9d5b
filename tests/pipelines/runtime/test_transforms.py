"""Reshuffle and CombineGlobally in fewer steps: nothing lost, nothing twice, and to a runner what Beam's own are."""

from __future__ import annotations

from collections import Counter

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from pipelines.runtime import transforms
from pipelines.runtime.transforms import Gather, MergeBundles, Spread


def test_nothing_gathers_to_what_merge_says_of_nothing():
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        assert_that(pipeline | beam.Create([]) | Gather(sum), equal_to([0]))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 40])
def test_bundles_are_merged_before_one_worker_reads_them(monkeypatch, count):
    """A few at a time, nothing twice, nothing lost; what travels on is one element a bundle."""
    monkeypatch.setattr(transforms, "_MERGED", 3)

    def merge(parts):
        return Counter(sum(parts, Counter()))

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        ones = pipeline | beam.Create(range(count)) | beam.Map(lambda n: Counter({n: 1}))
        parts = ones | beam.ParDo(MergeBundles(merge))
        assert_that(ones | Gather(merge), equal_to([Counter(range(count))]))
        assert_that(parts | beam.combiners.Count.Globally(), lambda found: check_few(found, count), label="few")


def check_few(found, count):
    assert found[0] <= min(count, 4), "bundles, not elements"


@pytest.mark.parametrize("sizes", [(0, 0), (3, 0, 2), (1,)])
def test_several_collections_gather_to_one(sizes):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        sources = tuple(pipeline | f"Make{at}" >> beam.Create([10**at] * size) for at, size in enumerate(sizes))
        expected = sum(10**at * size for at, size in enumerate(sizes))
        assert_that(sources | Gather(sum), equal_to([expected]))


@pytest.mark.parametrize("elements", [[], [7], [*range(50), *range(25)]])
def test_what_is_spread_is_the_same(elements):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        assert_that(pipeline | beam.Create(elements) | Spread(), equal_to(elements))


def test_a_spread_is_a_reshuffle_of_typed_elements():
    pipeline = beam.Pipeline(runner=FnApiRunner())
    spread = pipeline | beam.Create([(1, b"a")]).with_output_types(tuple[int, bytes]) | "Deal" >> Spread()
    assert spread.element_type == beam.typehints.Tuple[int, bytes]
    steps = {step.unique_name: step for step in pipeline.to_runner_api().components.transforms.values()}
    assert steps["Deal"].spec.urn == "beam:transform:reshuffle:v1"
    assert [name for name, step in steps.items() if step.spec.urn == "beam:transform:group_by_key:v1"] == ["Deal/Deal"]
