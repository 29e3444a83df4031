import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Never

import numpy as np
import pytest
import torch

from pipeline.executors import factory
from pipeline.executors.pillow_reference import reference_view
from pipeline.loader import LoadedStep, Loader, evaluation_batches
from pipeline.mix_rule import MixRule
from pipeline.plan import Plan, Position, Stream
from pipeline.sampling import ClassWeighted, Shuffled
from pipeline.views.operations import ColorJitter
from pipeline.views.view import PaddedCrop, RandomResizedCrop, ResizeCenterCrop, View
from shards.reader import ShardSet
from tests.helpers.holding import open_files, thread_count
from tests.helpers.shard_sets import encode, flip_a_byte, photo, photos, small_images, write_shard_set

CPU = torch.device("cpu")
TRAIN_VIEW = View(PaddedCrop(32, 4), 0.5)
EXECUTORS = ["reference", "resident", "dali"]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_images(tmp_path_factory.mktemp("sets") / "small", (30, 12, 5))


def make_plan(dataset: Any, view: Any = TRAIN_VIEW, epochs: int = 3, batch: int = 16, probability: float = 0.5) -> Plan:
    streams = (Stream("original", Shuffled(), (view,)), Stream("foreground", ClassWeighted(), (view,), "mixing"))
    rule = MixRule(probability=probability, plain_first=1, plain_last=0)
    return Plan({"train": dataset}, streams, rule, seed=3, global_batch_size=batch, epochs=epochs)


def load(plan: Any, **options: Any) -> list[LoadedStep]:
    with Loader(plan, CPU, decode_threads=1, **options) as loader:
        return list(loader)


def contents(steps: list[LoadedStep]) -> list[Any]:
    """Everything that training sees of some steps, comparable with ==."""
    return [
        (
            step.whole.epoch,
            step.whole.step,
            [
                {
                    name: [
                        *(batch.sample_ids.tolist(), batch.labels.tolist(), batch.weights.tolist()),
                        *(image.numpy().tobytes() for image in batch.images),
                    ]
                    for name, batch in micro.batches.items()
                }
                for micro in step.micro_batches
            ],
            [(micro.mix.paste, micro.mix.lam.tolist(), micro.mix.boxes.tolist()) for micro in step.micro_batches],
        )
        for step in steps
    ]


@pytest.mark.parametrize("executor_name", EXECUTORS)
def test_batches_are_what_the_plan_says(small_set: ShardSet, executor_name: str) -> None:
    plan = make_plan(small_set)
    steps = load(plan, executor=executor_name)
    assert [(step.whole.epoch, step.whole.step) for step in steps] == [(e, s) for e in range(3) for s in range(3)]
    for step in steps:
        expected = plan.step(step.whole.epoch, step.whole.step)
        [micro] = step.micro_batches
        assert list(micro.batches) == list(expected.streams)
        assert micro.positions.tolist() == list(range(len(expected.streams["original"])))
        for name, batch in micro.batches.items():
            planned = expected.streams[name]
            np.testing.assert_array_equal(step.whole.labels(name), planned.labels)
            np.testing.assert_array_equal(batch.sample_ids, planned.sample_ids)
            np.testing.assert_array_equal(batch.labels, planned.labels)
            [images] = batch.images
            assert (images.dtype, tuple(images.shape)) == (torch.uint8, (len(planned), 32, 32, 3))
            assert batch.weights.tolist() == [1.0] * len(planned)
        assert step.wait_seconds >= 0


def test_all_executors_give_the_same_pixels(small_set: ShardSet) -> None:
    reference, *others = (contents(load(make_plan(small_set), executor=name)) for name in EXECUTORS)
    assert all(other == reference for other in others)


@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 3), (3, 2)])
def test_the_union_over_ranks_and_micro_batches_is_the_one_process_batch(
    small_set: ShardSet, world_size: int, accumulation: int
) -> None:
    plan = make_plan(small_set)
    whole = load(plan)
    ranks = [load(plan, rank=rank, world_size=world_size, accumulation=accumulation) for rank in range(world_size)]
    for number, step in enumerate(whole):
        assert {len(rank[number].micro_batches) for rank in ranks} == {accumulation}
        [one] = step.micro_batches
        micros = [ranks[rank][number].micro_batches[m] for m in range(accumulation) for rank in range(world_size)]
        for name, batch in one.batches.items():
            parts = [micro.batches[name] for micro in micros]
            mixes = [micro.mix for micro in micros]
            real = [part.weights == 1 for part in parts]
            assert torch.equal(
                torch.cat([part.images[0][kept] for part, kept in zip(parts, real, strict=True)]), batch.images[0]
            )
            assert torch.equal(
                torch.cat([part.labels[kept] for part, kept in zip(parts, real, strict=True)]), batch.labels
            )
            assert all(len(part.labels) == len(mix) >= 2 for part, mix in zip(parts, mixes, strict=True))
            for micro, part, kept in zip(micros, parts, real, strict=True):
                assert micro.mix.lam.tolist() == [one.mix.lam[0]] * len(part.labels)
                assert micro.mix.boxes.tolist() == [one.mix.boxes[0].tolist()] * len(part.labels)
                np.testing.assert_array_equal(batch.sample_ids[micro.positions], part.sample_ids)
                np.testing.assert_array_equal(part.served.weights, kept)


@pytest.mark.parametrize("executor_name", EXECUTORS)
@pytest.mark.parametrize("start", [(0, 2), (2, 1)])
def test_a_resumed_run_is_the_rest_of_an_uninterrupted_one(
    small_set: ShardSet, executor_name: str, start: tuple[int, ...]
) -> None:
    plan = make_plan(small_set)
    straight = contents(load(plan, executor=executor_name))
    resumed = contents(load(make_plan(small_set), executor=executor_name, start=Position(*start)))
    assert resumed == straight[start[0] * plan.steps_per_epoch + start[1] :]


def test_a_run_may_stop_before_the_end_of_the_plan(small_set: ShardSet) -> None:
    steps = load(make_plan(small_set), start=Position(0, 1), stop=Position(1, 1))
    assert [(step.whole.epoch, step.whole.step) for step in steps] == [(0, 1), (0, 2), (1, 0)]


@pytest.mark.parametrize("executor_name", ["reference", "dali"])
def test_the_foreground_is_decoded_only_for_steps_that_paste(
    small_set: ShardSet, monkeypatch: pytest.MonkeyPatch, executor_name: str
) -> None:
    plan = make_plan(small_set, probability=0.4)
    read = Counter()
    encoded = type(small_set).encoded
    monkeypatch.setattr(
        type(small_set), "encoded", lambda self, sample: (read.update([int(sample)]), encoded(self, sample))[1]
    )
    monkeypatch.setattr(type(small_set), "check_sample", lambda self, sample: None)
    load(plan, executor=executor_name)
    positions = [(epoch, step) for epoch in range(3) for step in range(3)]
    used = [stream for position in positions for stream in plan.step(*position).streams.values()]
    assert read == Counter(np.concatenate([stream.sample_ids for stream in used]).tolist())
    assert len(used) < 2 * len(positions)


def test_operations_after_the_flip_run_for_every_executor(small_set: ShardSet) -> None:
    plain = make_plan(small_set)
    jittered = make_plan(small_set, View(PaddedCrop(32, 4), 0.5, (ColorJitter(0.4, 0.4, 0.4),)))
    results = [contents(load(jittered, executor=name)) for name in EXECUTORS]
    assert results[0] == results[1] == results[2]
    assert results[0] != contents(load(plain))


@pytest.mark.parametrize("executor_name", EXECUTORS)
def test_nothing_is_left_after_close(small_set: ShardSet, executor_name: str) -> None:
    load(make_plan(small_set), executor=executor_name)  # what the libraries keep for good
    python_threads, system_threads, files = threading.active_count(), thread_count(), open_files()
    loader = Loader(make_plan(small_set), CPU, executor=executor_name, decode_threads=2)
    next(iter(loader))
    loader.close()
    loader.close()
    del loader
    assert threading.active_count() == python_threads
    # The kernel takes a moment to clear away a thread that has been joined.
    deadline = time.monotonic() + 5
    while thread_count() > system_threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread_count() <= system_threads
    assert open_files() <= files


@pytest.mark.parametrize("executor_name", EXECUTORS)
def test_an_error_while_planning_reaches_the_training_loop(small_set: ShardSet, executor_name: str) -> None:
    plan = make_plan(small_set)
    original = plan.stream_step
    plan.stream_step = lambda name, epoch, step, part: (
        original(name, epoch, step, part) if (epoch, step) < (1, 0) else raise_(OSError("the index went away"))
    )
    with Loader(plan, CPU, executor=executor_name) as loader:
        steps = iter(loader)
        for _ in range(3):
            next(steps)
        with pytest.raises(OSError, match="the index went away"):
            next(steps)


def raise_(error: Any) -> Never:
    raise error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank 2 of 2 .* does not exist"),
        ({"world_size": 3, "accumulation": 3}, "fewer than 2 samples for each of 9 parts .* at least 18 are needed"),
        ({"executor": "torch"}, "expected auto, dali, resident or reference, found 'torch'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(small_set: ShardSet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(make_plan(small_set), CPU, **options)


def test_auto_is_resident_for_small_equal_images_and_dali_otherwise(small_set: ShardSet, tmp_path: Path) -> None:
    assert factory.choose_executor("auto", small_set) == "resident"
    assert factory.choose_executor("auto", photos(tmp_path / "photos", (4, 2))) == "dali"
    assert factory.choose_executor("auto", small_images(tmp_path / "large", (2, 2), side=80)) == "dali"
    mixed = [encode(photo(0, 32, 32)), encode(photo(1, 32, 30))]
    assert factory.choose_executor("auto", write_shard_set(tmp_path / "mixed", mixed, [0, 1])) == "dali"


def test_cores_are_shared_by_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert factory.decode_threads_per_rank(1) == 16
    assert factory.decode_threads_per_rank(8) == 2
    assert factory.decode_threads_per_rank(64) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert factory.decode_threads_per_rank(64) == 4


@pytest.mark.parametrize("executor_name", EXECUTORS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_shows_each_image_once_in_order(small_set: ShardSet, executor_name: str, world_size: int) -> None:
    view = View(ResizeCenterCrop(36, 32))
    batches = [
        list(evaluation_batches(small_set, view, 10, CPU, rank=rank, world_size=world_size, executor=executor_name))
        for rank in range(world_size)
    ]
    shown = [batch for rank in batches for batch in rank]
    assert np.concatenate([batch.sample_ids for batch in shown]).tolist() == list(range(47))
    assert torch.cat([batch.labels for batch in shown]).tolist() == small_set.index["label"].tolist()
    assert all((batch.weights == 1).all() and batch.images[0].shape[1:] == (32, 32, 3) for batch in shown)
    assert all(len(batch.labels) == 10 for rank in batches for batch in rank[:-1])


# ---- bad samples ----


@pytest.fixture
def broken_set(tmp_path: Path, request: pytest.FixtureRequest) -> ShardSet:
    """47 images of 64 pixels. Sample 7 is of class 0; how it is broken is the parameter."""
    labels = ([0] * 8 + [1] * 4 + [2] * 2) * 3 + [0] * 5
    encoded = [encode(photo(i, 64, 64)) for i in range(len(labels))]
    if request.param == "undecodable":
        encoded[7] = encoded[7][: len(encoded[7]) // 2]
    dataset = write_shard_set(tmp_path / "broken", encoded, labels)
    if request.param == "corrupt":
        flip_a_byte(dataset, 7)
    return dataset


@pytest.mark.parametrize("executor_name", EXECUTORS)
@pytest.mark.parametrize("broken_set", ["corrupt", "undecodable"], indirect=True)
def test_a_bad_sample_is_replaced_by_the_next_of_its_class(
    broken_set: ShardSet, executor_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    view = View(RandomResizedCrop(32), 0.5)
    plan = make_plan(broken_set, view, epochs=2)
    with Loader(plan, CPU, executor=executor_name, decode_threads=1) as loader:
        steps = list(loader)
        assert list(loader.bad_samples["train"].reasons) == [7]
    assert len(steps) == 2 * plan.steps_per_epoch
    [warning] = [record.message for record in caplog.records if "bad sample" in record.message]
    assert "original/7.jpg" in warning
    assert "sample 7" in warning

    # In the place of sample 7, the pictures of sample 14 with the same crop (all images have one size).
    good = {}
    for name in ("original", "foreground"):
        for step in steps:
            if name not in step.micro_batches[0].batches:
                continue
            batch, planned = (
                step.micro_batches[0].batches[name],
                plan.step(step.whole.epoch, step.whole.step).streams[name],
            )
            assert len(batch.images[0]) == len(planned)
            for position in np.flatnonzero(planned.sample_ids == 7).tolist():
                good[name, step.whole.epoch] = (batch.images[0][position], planned.views[0], position)
    assert ("original", 0) in good
    assert ("original", 1) in good
    for image, planned_view, position in good.values():
        expected = reference_view(broken_set.encoded(14), planned_view, position).astype(int)
        assert np.abs(image.numpy().astype(int) - expected).max() <= 3


@pytest.mark.parametrize("executor_name", EXECUTORS)
@pytest.mark.parametrize("broken_set", ["corrupt", "undecodable"], indirect=True)
def test_a_resumed_run_replaces_by_the_same_sample(broken_set: ShardSet, executor_name: str) -> None:
    plan = make_plan(broken_set, View(RandomResizedCrop(32), 0.5), epochs=2)
    straight = contents(load(plan, executor=executor_name))
    assert contents(load(plan, executor=executor_name, start=Position(1, 0))) == straight[plan.steps_per_epoch :]


def test_several_undecodable_samples_of_one_batch(tmp_path: Path) -> None:
    encoded = [encode(photo(i, 64, 64)) for i in range(24)]
    for bad in (3, 4, 11, 17):
        encoded[bad] = encoded[bad][:-800]
    dataset = write_shard_set(tmp_path / "many", encoded, [0, 1] * 12)
    plan = make_plan(dataset, View(RandomResizedCrop(32)), epochs=1, batch=24)
    with Loader(plan, CPU, executor="dali", decode_threads=2) as loader:
        [step] = loader
        assert sorted(loader.bad_samples["train"].reasons) == [3, 4, 11, 17]
    assert len(step.micro_batches[0].batches["original"].images[0]) == 24


@pytest.mark.parametrize("executor_name", EXECUTORS)
@pytest.mark.parametrize("broken_set", ["corrupt", "undecodable"], indirect=True)
def test_past_the_budget_of_bad_samples_the_run_stops(broken_set: ShardSet, executor_name: str) -> None:
    plan = make_plan(broken_set, View(RandomResizedCrop(32)), epochs=1)
    with (
        pytest.raises(RuntimeError, match=r"1 unusable samples, 0 are tolerated; .*sample 7 \(original/7.jpg\)"),
        Loader(plan, CPU, executor=executor_name, decode_threads=1, bad_sample_budget=0) as loader,
    ):
        list(loader)


@pytest.mark.parametrize("executor_name", EXECUTORS)
@pytest.mark.parametrize("broken_set", ["corrupt", "undecodable"], indirect=True)
def test_other_images_do_not_notice_a_bad_sample(broken_set: ShardSet, executor_name: str, tmp_path: Path) -> None:
    view = View(RandomResizedCrop(32), 0.5)
    labels = broken_set.index["label"].tolist()
    whole = write_shard_set(tmp_path / "whole", [encode(photo(i, 64, 64)) for i in range(len(labels))], labels)
    with_bad, without = (load(make_plan(dataset, view), executor=executor_name) for dataset in (broken_set, whole))
    for one, other in zip(with_bad, without, strict=True):
        for name, batch in one.micro_batches[0].batches.items():
            expected = other.micro_batches[0].batches[name]
            kept = torch.from_numpy(expected.sample_ids != 7)
            assert torch.equal(batch.images[0][kept], expected.images[0][kept])
            assert torch.equal(batch.labels, expected.labels)
            assert batch.sample_ids[~kept].tolist() == [14] * int((~kept).sum())


def test_the_crop_is_scaled_to_a_replacement_of_another_size(tmp_path: Path) -> None:
    images = [photo(0, 60, 90), photo(1, 120, 90)]
    cut_short = encode(images[0])[:-1000]
    dataset = write_shard_set(tmp_path / "two", [cut_short, encode(images[1])], [0, 0])
    plan = Plan({"train": dataset}, (Stream("original", Shuffled(), (View(RandomResizedCrop(48)),)),), None, 0, 2, 1)
    [step] = load(plan, executor="dali")
    planned = plan.step(0, 0).streams["original"]
    position = planned.sample_ids.tolist().index(0)
    top, left, height, width = planned.views[0].region[position].tolist()
    expected = np.asarray(images[1].crop((2 * left, top, 2 * (left + width), top + height)).resize((48, 48), 2))
    shown = step.micro_batches[0].batches["original"].images[0][position].numpy()
    # The image went through JPEG, hence the tolerance.
    assert np.abs(shown.astype(int) - expected.astype(int)).mean() < 5


def test_a_class_without_any_usable_sample_stops_the_run(tmp_path: Path) -> None:
    encoded = [encode(photo(i, 40, 40)) for i in range(5)]
    dataset = write_shard_set(tmp_path / "one", encoded, [0, 0, 1, 0, 0])
    flip_a_byte(dataset, 2)
    with pytest.raises(RuntimeError, match=r"no sample of class 1 \(class 1\) is usable; sample 2: .*crc32"):
        load(make_plan(dataset, View(RandomResizedCrop(32)), epochs=1, batch=5), executor="dali")


@pytest.mark.parametrize("executor_name", EXECUTORS)
@pytest.mark.parametrize("broken_set", ["corrupt", "undecodable"], indirect=True)
def test_evaluation_does_not_replace_images(broken_set: ShardSet, executor_name: str) -> None:
    with pytest.raises(RuntimeError, match="0 are tolerated"):
        list(evaluation_batches(broken_set, View(ResizeCenterCrop(36, 32)), 8, CPU, executor=executor_name))
