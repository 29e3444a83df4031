import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.executors.bad_samples import BadSamples
from pipeline.plan import StreamPlan
from pipeline.views.view import RandomResizedCrop, View
from shards.reader import ShardSet
from tests.helpers.executors import plan_batches
from tests.helpers.shard_sets import encode, flip_a_byte, photo, write_shard_set

LABELS = [0, 1, 0, 1, 0, 0, 1]


@pytest.fixture
def dataset(tmp_path: Path) -> ShardSet:
    sizes = [(60, 40), (50, 50), (120, 40), (30, 90), (64, 64), (12, 9), (80, 60)]
    return write_shard_set(tmp_path / "set", [encode(photo(i, *size)) for i, size in enumerate(sizes)], LABELS)


def request_of(dataset: ShardSet, *samples: Any) -> StreamPlan:
    return plan_batches(dataset, (View(RandomResizedCrop(16)),) * 2, [samples])[0]


@pytest.mark.parametrize(
    ("bad", "sample", "substitute"),
    [
        ({0}, 0, 2),
        ({0, 2}, 0, 4),
        ({0, 2}, 2, 4),
        ({5}, 5, 0),
        ({4, 5, 0}, 4, 2),
        ({3}, 3, 6),
        ({3, 6}, 6, 1),
    ],
)
def test_the_next_usable_sample_of_the_class_takes_the_place(
    dataset: ShardSet, bad: Any, sample: int, substitute: int
) -> None:
    for each in bad:
        flip_a_byte(dataset, each)
    replaced = BadSamples(dataset, budget=10).replaced(request_of(dataset, sample))
    assert replaced.sample_ids.tolist() == [substitute]
    assert replaced.labels.tolist() == [LABELS[sample]]


def test_the_rule_depends_on_the_data_alone(dataset: ShardSet) -> None:
    """Not on the order in which bad samples are met: a resumed run meets them in another."""
    for each in (0, 2, 3):
        flip_a_byte(dataset, each)
    requests = [request_of(dataset, *samples) for samples in ([4, 0], [2, 2, 3], [0, 1])]
    forwards, backwards = BadSamples(dataset, 10), BadSamples(dataset, 10)
    first = [forwards.replaced(request).sample_ids.tolist() for request in requests]
    second = [backwards.replaced(request).sample_ids.tolist() for request in reversed(requests)]
    assert first == second[::-1] == [[4, 4], [4, 4, 6], [4, 1]]


def test_a_request_without_bad_samples_is_passed_on_as_it_is(dataset: ShardSet) -> None:
    request = request_of(dataset, 0, 1, 2)
    assert BadSamples(dataset, 0).replaced(request) is request


def test_crops_of_a_replacement_lie_inside_it_and_others_are_untouched(dataset: ShardSet) -> None:
    bad_samples = BadSamples(dataset, 10)
    for bad in (0, 2, 4):
        bad_samples.add(bad, "made up")
    for seed in range(50):
        request = plan_batches(dataset, (View(RandomResizedCrop(16)),), [[0, 5, 1]], seed)[0]
        replaced = bad_samples.replaced(request)
        before, after = request.views[0].region, replaced.views[0].region
        assert replaced.sample_ids.tolist() == [5, 5, 1]
        np.testing.assert_array_equal(before[1:], after[1:])
        top, left, height, width = after[0].tolist()  # sample 5 has 12 x 9 pixels
        assert 0 <= top < top + height <= 9
        assert 0 <= left < left + width <= 12
        # As large a share of the image as before, to the pixel.
        assert abs(height / 9 - before[0, 2] / 40) <= 1 / 9
        assert abs(width / 12 - before[0, 3] / 60) <= 1 / 12


def test_a_sample_counts_once_however_often_it_is_met(dataset: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    flip_a_byte(dataset, 0)
    bad_samples = BadSamples(dataset, budget=1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            bad_samples.replaced(request_of(dataset, 0, 0))
    assert len(bad_samples) == len(caplog.records) == 1
    assert "000000.tar: sample 0 (original/0.jpg) is corrupt: crc32" in caplog.text


def test_past_the_budget_the_error_says_how_many_and_what_to_do(dataset: ShardSet) -> None:
    bad_samples = BadSamples(dataset, budget=1)
    bad_samples.add(0, "first")
    with pytest.raises(RuntimeError, match=r"2 unusable samples, 1 are tolerated; the last is second.*verify_shards"):
        bad_samples.add(1, "second")
