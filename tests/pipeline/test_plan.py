import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import sampling
from pipeline.mix_rule import MixRule
from pipeline.plan import PLAN_VERSION, Plan, Stream, part_indices
from pipeline.rng import RowDraws, generator
from pipeline.sampling import (
    ClassWeighted,
    ClassWeightedEffectiveNumber,
    ProgressivelyBalanced,
    Redrawn,
    Shuffled,
)
from pipeline.views.operations import ColorJitter, Cutout, GaussianBlur, Grayscale, PlannedOperation, Rotation
from pipeline.views.policies import AutoAugmentCifar10, RandAugment
from pipeline.views.presets import PRESETS
from pipeline.views.view import PaddedCrop, RandomResizedCrop, View, Whole
from tests.helpers.shard_sets import UnreadableSet

VIEW = View(RandomResizedCrop(64), flip_probability=0.5)
EVERY_OPERATION = (
    *(ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8), Grayscale(0.2), GaussianBlur(), Rotation(15.0)),
    *(RandAugment(), AutoAugmentCifar10(), Cutout(16)),
)
ALWAYS_MIX = MixRule(probability=1.0, plain_first=0, plain_last=0)
HALF_MIX = MixRule(plain_first=1, plain_last=1)
CMO_STREAMS = (Stream("original", Shuffled(), (VIEW,)), Stream("foreground", ClassWeighted(), (VIEW,), "mixing"))


def make_plan(
    streams: Any = CMO_STREAMS, mix_rule: Any = HALF_MIX, counts: Sequence[int] = (60, 30, 13), **changes: Any
) -> Plan:
    options = {"seed": 5, "global_batch_size": 16, "epochs": 5, **changes}
    return Plan({"train": UnreadableSet(counts)}, streams, mix_rule, **options)


def arrays(value: Any) -> Iterator[np.ndarray]:
    """All arrays and numbers of a plan, in a fixed order."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from arrays(getattr(value, field.name))
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from arrays(value[key])
    elif isinstance(value, tuple | list):
        for each in value:
            yield from arrays(each)
    elif value is not None:
        yield np.asarray(value)


def digest(value: Any) -> str:
    sha256 = hashlib.sha256()
    for array in arrays(value):
        sha256.update(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return sha256.hexdigest()


def test_golden_plan() -> None:
    """Whoever changes this file changes what a resumed run sees: raise PLAN_VERSION with it, once per release."""
    streams = (
        Stream("original", Shuffled(), (VIEW, View(PaddedCrop(32, 4), 0.5, EVERY_OPERATION))),
        Stream("foreground", ClassWeighted(), (VIEW,), "mixing"),
        Stream("meta", Redrawn(), (View(Whole(8), 0.5),), first_epoch=2, full_batches=True),
    )
    plan = make_plan(streams)
    steps = [plan.step(epoch, step) for epoch in (0, 2) for step in range(plan.steps_per_epoch)]
    last = [step for step in steps if step.mix.paste][-1]
    found = {
        "plan_version": PLAN_VERSION,
        "last mixing step": {
            "lam": last.mix.lam.tolist(),
            "boxes": last.mix.boxes.tolist(),
            "sample_ids": {name: stream.sample_ids.tolist() for name, stream in last.streams.items()},
            "first regions": {name: stream.views[0].region.tolist() for name, stream in last.streams.items()},
        },
        "all steps": digest(steps),
    }
    assert found == json.loads(Path(__file__).with_name("golden_plan.json").read_text())


def test_a_step_is_a_pure_function_of_its_position() -> None:
    straight, jumping = make_plan(), make_plan()
    positions = [(epoch, step) for epoch in range(5) for step in range(straight.steps_per_epoch)]
    expected = {position: digest(straight.step(*position)) for position in positions}
    order = np.random.default_rng(0).permutation(positions).tolist()
    assert {(epoch, step): digest(jumping.step(epoch, step)) for epoch, step in order} == expected
    assert len(set(expected.values())) == len(expected)


def test_another_seed_is_another_plan() -> None:
    assert digest(make_plan(seed=5).step(1, 0)) != digest(make_plan(seed=6).step(1, 0))


def test_an_epoch_shows_each_sample_once_and_its_last_batch_is_short() -> None:
    plan = make_plan()
    batches = [plan.step(0, step).streams["original"] for step in range(plan.steps_per_epoch)]
    assert [len(batch) for batch in batches] == [16] * 6 + [7]
    assert sorted(np.concatenate([batch.sample_ids for batch in batches]).tolist()) == list(range(103))


def test_drop_last_leaves_out_the_short_batch() -> None:
    plan = make_plan(drop_last=True)
    assert plan.steps_per_epoch == 6
    with pytest.raises(ValueError, match="no step 6 of epoch 0; there are 5 epochs of 6 steps"):
        plan.step(0, 6)


def test_labels_and_views_belong_to_the_samples() -> None:
    plan = make_plan(mix_rule=ALWAYS_MIX)
    index = plan.datasets["train"].index
    for step in range(plan.steps_per_epoch):
        streams = plan.step(1, step).streams
        assert len(streams["foreground"]) == len(streams["original"])
        for stream in streams.values():
            records = index[stream.sample_ids]
            np.testing.assert_array_equal(stream.labels, records["label"])
            region = stream.views[0].region
            assert (region >= 0).all()
            assert (region[:, 0] + region[:, 2] <= records["height"]).all()
            assert (region[:, 1] + region[:, 3] <= records["width"]).all()


def test_the_foreground_exists_only_on_steps_that_paste() -> None:
    plan = make_plan()
    for epoch in range(5):
        pasting = []
        for step in range(plan.steps_per_epoch):
            planned = plan.step(epoch, step)
            assert ("foreground" in planned.streams) == planned.mix.paste == plan.pastes(epoch, step)
            pasting += [step] if planned.mix.paste else []
        assert plan.paste_steps(epoch).tolist() == pasting
    assert not plan.paste_steps(0).size
    assert not plan.paste_steps(4).size
    assert 0 < sum(plan.paste_steps(epoch).size for epoch in (1, 2, 3)) < 21


def test_a_new_stream_view_or_operation_moves_no_other_draw() -> None:
    plain = make_plan(CMO_STREAMS[:1], None)
    more = make_plan((Stream("original", Shuffled(), (VIEW, VIEW)), CMO_STREAMS[1]), ALWAYS_MIX)
    before, after = (plan.step(2, 3).streams["original"] for plan in (plain, more))
    np.testing.assert_array_equal(before.sample_ids, after.sample_ids)
    assert digest(before.views[0]) == digest(after.views[0])
    assert digest(after.views[0]) != digest(after.views[1])


def test_the_streams_are_independent() -> None:
    plan = make_plan((CMO_STREAMS[0], Stream("second", Shuffled(), (VIEW,))), None)
    streams = plan.step(0, 0).streams
    assert streams["original"].sample_ids.tolist() != streams["second"].sample_ids.tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 64, 103])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 8])
def test_parts_cover_a_batch_once_and_are_never_smaller_than_two(size: int, parts: int) -> None:
    pieces = [part_indices(size, index, parts) for index in range(parts)]
    real = [indices[weights == 1] for indices, weights in pieces]
    assert np.concatenate(real).tolist() == list(range(size))
    lengths = [len(each) for each in real]
    assert max(lengths) - min(lengths) <= 1
    for indices, weights in pieces:
        assert len(indices) == len(weights) >= 2
        assert len(indices) == max(2, (weights == 1).sum())
        assert ((indices >= 0) & (indices < size)).all()
        assert (indices.dtype, weights.dtype) == (np.int64, np.float32)


# With every operation, both kinds of crop, and a choice of two views.
VIEWS = tuple(PRESETS[name].train for name in ("cifar-long", "imagenet-long", "cifar-auto", "cifar-ride"))


def by_drawing_everything(draws: Any, purpose: str, shape: Any) -> np.ndarray:
    """`RowDraws.uniform` the slow way: the numbers of all rows up to the last, from numpy's generator."""
    everything = generator(draws.seed, purpose, draws.epoch, draws.step).random((draws.rows.max() + 1, *shape[1:]))
    return everything[draws.rows]


@pytest.mark.parametrize("parts", [1, 3, 20])
@pytest.mark.parametrize("largest_array", [2**22, 0], ids=["arrays", "bijections"])
def test_ranks_that_draw_their_own_rows_have_the_rows_of_a_slowly_drawn_whole(
    monkeypatch: pytest.MonkeyPatch, parts: int, largest_array: int
) -> None:
    monkeypatch.setattr(sampling, "_LARGEST_EPOCH_ARRAY", largest_array)
    monkeypatch.setattr(sampling, "_LARGEST_STEP_ARRAY", largest_array)
    rules = (Shuffled(), ClassWeighted(), ClassWeightedEffectiveNumber(), ProgressivelyBalanced(5), Redrawn(3))
    streams = tuple(Stream(f"stream {number}", rule, VIEWS) for number, rule in enumerate(rules))
    streams = (*streams, Stream("full", Redrawn(), VIEWS, full_batches=True))
    plan = make_plan(streams, global_batch_size=40, counts=(60, 30, 13))
    for step, name in itertools.product((0, plan.steps_per_epoch - 1), plan.streams):  # the last has 23 samples
        with monkeypatch.context() as slowly:
            slowly.setattr(RowDraws, "uniform", by_drawing_everything)
            whole = plan.stream_step(name, 2, step)
            labels = plan.global_batch(2, step).labels(name)
        assert (
            len(whole)
            == len(labels)
            == plan.global_batch(2, step).sizes[name]
            == (40 if step == 0 or name == "full" else 23)
        )
        np.testing.assert_array_equal(labels, plan.global_batch(2, step).labels(name))
        for index in range(parts):
            part = plan.stream_step(name, 2, step, (index, parts))
            rows, weights = part_indices(len(whole), index, parts)
            np.testing.assert_array_equal(part.rows, rows)
            np.testing.assert_array_equal(part.weights, weights)
            of_part, of_whole = (list(arrays(replace(each, weights=None))) for each in (part, whole))
            for found, expected in zip(of_part, of_whole, strict=True):
                expected = expected[rows] if expected.ndim and len(expected) == len(whole) else expected
                np.testing.assert_array_equal(found, expected)


def test_the_labels_of_a_global_batch_are_drawn_once_and_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(mix_rule=ALWAYS_MIX)
    drawn = []
    original = RowDraws.uniform
    monkeypatch.setattr(RowDraws, "uniform", lambda *args: drawn.append(args[1]) or original(*args))
    whole = plan.global_batch(1, 6)
    assert (drawn, whole.sizes) == ([], {"original": 7, "foreground": 7})
    expected = plan.datasets["train"].index["label"][plan.step(1, 6).streams["foreground"].sample_ids]
    drawn.clear()
    for _ in range(2):
        np.testing.assert_array_equal(whole.labels("foreground"), expected)
    assert drawn == ["foreground/samples"]


def test_fingerprints_differ_where_plans_differ_and_are_json() -> None:
    plan = make_plan()
    assert json.loads(json.dumps(plan.fingerprint())) == make_plan().fingerprint()
    others = [
        make_plan(seed=6),
        make_plan(global_batch_size=8),
        make_plan(epochs=6),
        make_plan(drop_last=True),
        make_plan(mix_rule=ALWAYS_MIX),
        make_plan(CMO_STREAMS[:1]),
        make_plan((CMO_STREAMS[0], dataclasses.replace(CMO_STREAMS[1], sampling=ClassWeighted(0.5)))),
        make_plan((dataclasses.replace(CMO_STREAMS[0], views=(View(RandomResizedCrop(32)),)), CMO_STREAMS[1])),
        make_plan(counts=(60, 29, 14)),
    ]
    assert all(other.fingerprint() != plan.fingerprint() for other in others)


def test_description_names_the_derived_sizes() -> None:
    text = make_plan().describe()
    assert "5 epochs x 7 steps, global batch 16, last batch 7, seed 5" in text
    assert "mixing: epochs 1 to 3" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 104}, r"'train' has 103 samples, fewer than one global batch of 104; .* at most 103"),
        ({"global_batch_size": 1}, "global batch of at least 2"),
        ({"epochs": 0}, "at least 1 epoch, found 16 and 0"),
        ({"seed": -1}, "seed must be in"),
        ({"mix_rule": None}, "foreground exists only on mixing steps, but there is no mix rule"),
        ({"streams": ()}, "expected a first stream"),
        ({"streams": CMO_STREAMS[1:]}, "expected a first stream that is used on every step"),
        ({"streams": (CMO_STREAMS[0], CMO_STREAMS[0])}, "names must differ"),
        ({"streams": (Stream("original", Shuffled(), ()),)}, "has no view"),
        ({"streams": (Stream("original", Shuffled(), (VIEW,), dataset="meta"),)}, r"'meta'; given are \['train'\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(**changes)


def test_a_second_shuffled_stream_needs_a_data_set_as_long_as_the_epoch() -> None:
    datasets = {"train": UnreadableSet((60, 30)), "meta": UnreadableSet((10, 10))}
    streams = (CMO_STREAMS[0], Stream("meta", Shuffled(), (VIEW,), dataset="meta"))
    with pytest.raises(ValueError, match="meta shuffles 20 samples, but an epoch has 90"):
        Plan(datasets, streams, None, 0, 16, 1)


def test_planned_operations_are_part_of_the_digest() -> None:
    """The golden test relies on it."""
    operation = PlannedOperation(np.zeros(2, np.uint8), np.zeros((2, 2)))
    other = PlannedOperation(np.ones(2, np.uint8), np.zeros((2, 2)))
    assert digest(operation) != digest(other)
