import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.executors import resident
from pipeline.executors.crop_resize import crop_resize_flip, resampling_weights
from pipeline.views.view import OneOf, PaddedCrop, RandomResizedCrop, ResizeCenterCrop, View, ViewPlan, Whole
from shards.reader import ShardSet
from tests.helpers.executors import assert_same_pictures, execute, plan_batches
from tests.helpers.shard_sets import flip_a_byte, photo, photos, small_images

EXACT = {
    "padded crop": (View(PaddedCrop(32, 4), 0.5),),
    "reflected crop": (View(PaddedCrop(32, 7, "reflect"), 0.5),),
    "whole": (View(Whole(32), 0.5),),
    "smaller crop": (View(PaddedCrop(24, 0), 0.5), View(PaddedCrop(40, 8))),
}
RESIZED = {
    "random resized crop": (View(RandomResizedCrop(32, (0.2, 1.0)), 0.5),),
    "tiny crops": (View(RandomResizedCrop(48, (0.01, 0.1)), 0.5),),
    "shrunk": (View(RandomResizedCrop(9), 0.5), View(Whole(20))),
    "centre crop": (View(ResizeCenterCrop(40, 32)),),
    "one of two": (OneOf((View(RandomResizedCrop(32), 0.5), View(PaddedCrop(32, 4), 0.5))),),
}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_images(tmp_path_factory.mktemp("sets") / "small", (25, 12, 3))


@pytest.mark.parametrize("views", EXACT.values(), ids=EXACT.keys())
def test_moved_pixels_are_exactly_pillows(small_set: ShardSet, views: Any) -> None:
    requests = plan_batches(small_set, views, [range(40), [1, 1], [39]])
    found, expected = (execute(name, small_set, views, requests) for name in ("resident", "reference"))
    assert_same_pictures(found, expected, largest=0, mean=0)


@pytest.mark.parametrize("views", RESIZED.values(), ids=RESIZED.keys())
def test_resized_pixels_are_pillows_but_for_ties_of_rounding(small_set: ShardSet, views: Any) -> None:
    requests = plan_batches(small_set, views, [range(40), range(20)])
    found, expected = (execute(name, small_set, views, requests) for name in ("resident", "reference"))
    # Scales such as 4/5 put many sums at exactly half a grey level; Pillow's fixed-point weights and floating-point
    # ones then round to different sides, at most once in each of the two passes.
    assert_same_pictures(found, expected, largest=2, mean=0.25)


@pytest.mark.parametrize("name", ["random resized crop", "one of two"])
def test_the_crops_of_the_recipes_are_exactly_pillows(small_set: ShardSet, name: str) -> None:
    requests = plan_batches(small_set, RESIZED[name], [range(40)])
    found, expected = (execute(executor, small_set, RESIZED[name], requests) for executor in ("resident", "reference"))
    assert_same_pictures(found, expected, largest=1, mean=0.001)


def test_images_that_are_not_square() -> None:
    image = photo(3, 50, 30)
    plan = ViewPlan(
        region=np.array([[3, 10, 20, 33]], np.int32),
        resized=np.array([[40, 28]], np.int32),
        window=np.array([[-5, 4]], np.int32),
        flip=np.array([True]),
        output_size=(36, 30),
        pad_mode="zero",
        operations=(),
    )
    found = crop_resize_flip(torch.from_numpy(np.array(image))[None], plan)[0].numpy()
    resized = image.crop((10, 3, 43, 23)).resize((28, 40), Image.Resampling.BILINEAR)
    expected = np.asarray(resized.crop((4, -5, 34, 31)).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert not found[:5].any()


def test_weights_of_a_resize_sum_to_one_and_stay_inside_the_region() -> None:
    start, length = torch.tensor([4.0, 0.0]), torch.tensor([7.0, 30.0])
    weights = resampling_weights(start, length, torch.tensor([11.0, 11.0]), torch.zeros(2), 30, 11, "zero")
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 11))
    assert not weights[0, :, :4].any()
    assert not weights[0, :, 11:].any()


def test_a_set_is_decoded_once_for_all_streams_and_evaluations(
    small_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ShardSet.open(small_set.path)
    reads = []
    encoded = ShardSet.encoded
    monkeypatch.setattr(ShardSet, "encoded", lambda self, sample: (reads.append(sample), encoded(self, sample))[1])
    monkeypatch.setattr(ShardSet, "check_sample", lambda self, sample: None)
    views = EXACT["padded crop"]
    for _ in range(3):
        execute("resident", dataset, views, plan_batches(dataset, views, [range(40)]))
    assert sorted(reads) == list(range(40))


def test_decoded_images_go_with_their_data_set(small_set: ShardSet) -> None:
    dataset = ShardSet.open(small_set.path)
    execute("resident", dataset, EXACT["whole"], plan_batches(dataset, EXACT["whole"], [[0]]))
    assert dataset in resident._decoded_sets
    collected = weakref.ref(dataset)
    del dataset
    gc.collect()
    assert collected() is None  # and with it the entry of a dictionary of weak keys


def test_a_second_executor_knows_the_bad_samples_of_the_first(tmp_path: Path) -> None:
    dataset = small_images(tmp_path / "small", (6, 4))
    flip_a_byte(dataset, 2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"0 are tolerated; .*crc32"):
            execute("resident", dataset, EXACT["whole"], plan_batches(dataset, EXACT["whole"], [[0]]))


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = photos(tmp_path / "photos", (3, 2))
    with pytest.raises(ValueError, match="needs images of one size, at most 64 pixels per side and 2 GiB decoded"):
        execute("resident", dataset, EXACT["whole"], plan_batches(dataset, EXACT["whole"], [[0]]))
    small = small_images(tmp_path / "small", (3, 2))
    assert resident.fits_resident(small)
    monkeypatch.setattr(resident, "LARGEST_BYTES", 5 * 32 * 32 * 3 - 1)
    assert not resident.fits_resident(small)
