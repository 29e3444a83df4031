"""The balanced meta stream: what it draws, from which epoch on, and how large its batches are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.loader import Loader
from pipeline.plan import Plan, Stream
from pipeline.rng import RowDraws
from pipeline.sampling import Redrawn, Shuffled
from pipeline.views.view import PaddedCrop, View
from tests.helpers.shard_sets import UnreadableSet, small_images
from tools.sources.subsets import cmo_subset

VIEW = View(PaddedCrop(32, padding=4), 0.5)


def meta_plan(epochs: int = 3, batch: int = 8, **meta: object) -> Plan:
    datasets = {"train": UnreadableSet([12, 6, 3]), "meta": UnreadableSet([4, 4, 4], seed=1)}
    streams = (Stream("original", Shuffled(), (VIEW,)), Stream("meta", Redrawn(), (VIEW,), dataset="meta", **meta))
    return Plan(datasets, streams, None, 0, batch, epochs)


def test_each_step_draws_anew_without_repeats() -> None:
    plan = meta_plan()
    batches = [plan.stream_step("meta", 0, step).sample_ids for step in range(plan.steps_per_epoch)]
    assert [len(ids) for ids in batches] == [8, 8, 5]  # 21 samples
    assert all(len(set(ids)) == len(ids) for ids in batches)
    assert set(batches[0]) != set(batches[1])
    assert np.array_equal(batches[0], meta_plan().stream_step("meta", 0, 0).sample_ids)


def test_a_batch_as_large_as_the_set_is_the_set_and_a_larger_one_repeats_it_evenly() -> None:
    for batch in (12, 20):
        ids = meta_plan(batch=batch).stream_step("meta", 0, 0).sample_ids
        assert set(np.bincount(ids, minlength=12)) == ({1} if batch == 12 else {1, 2})


def test_full_batches_stay_full_where_the_last_batch_is_short() -> None:
    plan = meta_plan(full_batches=True)
    last = plan.step(0, plan.steps_per_epoch - 1)
    assert (len(last.streams["original"]), len(last.streams["meta"])) == (5, 8)


def test_a_stream_is_absent_before_its_first_epoch() -> None:
    plan = meta_plan(first_epoch=2)
    assert [set(plan.step(epoch, 0).streams) for epoch in range(3)] == [
        {"original"},
        {"original"},
        {"original", "meta"},
    ]


def test_per_class_draws_from_a_fixed_balanced_subset_chosen_by_the_official_rule() -> None:
    labels = np.repeat([0, 1, 2], [9, 5, 2])
    dataset = UnreadableSet([9, 5, 2])
    dataset.index["label"] = labels
    dataset.sample_ids_by_class = np.arange(16)
    sampler = Redrawn(per_class=3).over(dataset)
    drawn = {int(i) for step in range(40) for i in sampler.ids(RowDraws(0, 0, step, np.arange(4)), "meta/samples", 0)}
    assert drawn == set(cmo_subset(labels, [3, 3, 2], seed=6).tolist())


def test_the_first_stream_cannot_start_late_or_keep_its_size() -> None:
    for wrong in ({"first_epoch": 1}, {"full_batches": True}):
        with pytest.raises(ValueError, match="sets the length of an epoch"):
            Plan({"train": UnreadableSet([9])}, (Stream("original", Shuffled(), (VIEW,), **wrong),), None, 0, 3, 2)


def test_ranks_share_a_full_meta_batch_in_the_last_step_too(tmp_path: Path) -> None:
    datasets = {
        "train": small_images(tmp_path / "train", [7, 3, 2]),
        "meta": small_images(tmp_path / "meta", [3, 3, 3]),
    }
    streams = (
        Stream("original", Shuffled(), (VIEW,)),
        Stream("meta", Redrawn(), (VIEW,), dataset="meta", first_epoch=1, full_batches=True),
    )
    plan = Plan(datasets, streams, None, 0, 8, 2)
    loaded = []
    for rank in range(2):
        with Loader(plan, torch.device("cpu"), rank=rank, world_size=2, decode_threads=1) as loader:
            loaded.append(list(loader))
    for step, planned in enumerate(plan.step(epoch, step) for epoch in range(2) for step in range(2)):
        parts = [rank[step].micro_batches[0].batches.get("meta") for rank in loaded]
        if planned.epoch == 0:
            assert parts == [None, None]
            continue
        ids = np.concatenate([part.sample_ids for part in parts])
        assert np.array_equal(ids, planned.streams["meta"].sample_ids)
        assert [part.images[0].shape for part in parts] == [(4, 32, 32, 3)] * 2
