import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.views.view import OneOf, PaddedCrop, RandomResizedCrop, ResizeCenterCrop, View, Whole
from shards.reader import ShardSet
from tests.helpers.executors import assert_same_pictures, execute, plan_batches
from tests.helpers.shard_sets import encode, photo, photos, small_images, write_shard_set

PHOTOGRAPHS = Path(__file__).parents[3] / "shared" / "data" / "imagenet-samples"

VIEWS = {
    "random resized crop": (View(RandomResizedCrop(64), 0.5),),
    "resize and centre crop": (View(ResizeCenterCrop(72, 64)),),
    "whole": (View(Whole(64), 0.5),),
    "padded crop": (View(PaddedCrop(150, 40), 0.5),),
    "one of two": (OneOf((View(RandomResizedCrop(64), 0.5), View(Whole(64)))),),
    "one of two, one padded": (OneOf((View(RandomResizedCrop(120), 0.5), View(PaddedCrop(120, 20)))),),
    "two views": (View(RandomResizedCrop(64), 0.5), View(PaddedCrop(128, 20), 0.5)),
}
# How the executor works on a CPU, and, on the CPU too, the two forms of the graph that it runs on a GPU.
ALL_GRAPHS = pytest.mark.parametrize("executor", ["dali", "dali-views", "dali-view-regions"])
BATCHES = [range(8), range(8, 13), [5, 5], [11]]


@pytest.fixture(scope="module")
def photo_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return photos(tmp_path_factory.mktemp("sets") / "photos", (8, 5))


@ALL_GRAPHS
@pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS.keys())
def test_dali_shows_what_pillow_shows(photo_set: ShardSet, views: Any, executor: str) -> None:
    requests = plan_batches(photo_set, views, BATCHES)
    assert_same_pictures(
        execute(executor, photo_set, views, requests), execute("reference", photo_set, views, requests)
    )


@ALL_GRAPHS
def test_the_border_of_a_smaller_picture_is_pillows(tmp_path: Path, executor: str) -> None:
    """The outermost lines in hard contrast to those beside them, where DALI's own border is far from Pillow's."""
    dataset = write_shard_set(
        tmp_path / "framed", [encode(framed(150, 120), "PNG"), encode(framed(90, 170), "PNG")], [0, 0]
    )
    views = (View(Whole(40)), View(RandomResizedCrop(30), 0.5), View(ResizeCenterCrop(40, 40)))
    requests = plan_batches(dataset, views, [[0, 1] * 8])
    found, expected = (execute(name, dataset, views, requests) for name in (executor, "reference"))
    assert_same_pictures(found, expected, largest=2)


def framed(width: int, height: int) -> Image.Image:
    pixels = np.full((height, width, 3), 30, dtype=np.uint8)
    pixels[[0, -1]] = 240
    pixels[:, [0, -1]] = 240
    return Image.fromarray(pixels)


@ALL_GRAPHS
def test_reflected_borders(tmp_path: Path, executor: str) -> None:
    dataset = small_images(tmp_path / "small", (6, 4))
    views = (View(PaddedCrop(32, 6, "reflect"), 0.5), View(RandomResizedCrop(32), 0.5))
    requests = plan_batches(dataset, views, [range(10), [3]])
    assert_same_pictures(execute(executor, dataset, views, requests), execute("reference", dataset, views, requests))


def test_reflected_borders_on_images_of_different_sizes_are_refused(photo_set: ShardSet) -> None:
    view = View(PaddedCrop(32, 6, "reflect"))
    with pytest.raises(ValueError, match="reflected borders needs images of one size"):
        execute("dali", photo_set, (view,), plan_batches(photo_set, (view,), [[0]]))


@ALL_GRAPHS
@pytest.mark.parametrize("views", [VIEWS["random resized crop"], VIEWS["two views"]])
def test_the_result_does_not_depend_on_threads_or_on_the_run(photo_set: ShardSet, views: Any, executor: str) -> None:
    requests = plan_batches(photo_set, views, BATCHES)
    first, *others = (execute(executor, photo_set, views, requests, threads) for threads in (1, 1, 2, 4))
    for other in others:
        assert_same_pictures(other, first, largest=0, mean=0)


def test_kinds_of_files(tmp_path: Path) -> None:
    """Grey, CMYK, progressive, with an EXIF rotation, PNG: decoded as Pillow's convert("RGB") does, never rotated."""
    image = photo(0, 90, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    variants = []
    for variant, options in [
        (image.convert("L"), {"quality": 90}),
        (image, {"quality": 90, "progressive": True}),
        (image, {"quality": 90, "subsampling": 0}),
        (image, {"quality": 90, "exif": exif}),
    ]:
        data = io.BytesIO()
        variant.save(data, "JPEG", **options)
        variants.append(data.getvalue())
    variants += [encode(image, "PNG"), encode(image.convert("L"), "PNG")]
    dataset = write_shard_set(tmp_path / "kinds", variants, [0] * len(variants))
    for views in (VIEWS["whole"], VIEWS["two views"][:1]):
        requests = plan_batches(dataset, views, [range(len(variants))])
        assert_same_pictures(execute("dali", dataset, views, requests), execute("reference", dataset, views, requests))


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the sample photographs are not beside this checkout")
def test_real_photographs(tmp_path: Path) -> None:
    files = sorted(PHOTOGRAPHS.rglob("*.JPEG")) or sorted(PHOTOGRAPHS.rglob("*.jpg"))
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, 6).astype(int)]
    dataset = write_shard_set(tmp_path / "photographs", [file.read_bytes() for file in chosen], [0] * 6)
    views = (View(RandomResizedCrop(224), 0.5), View(ResizeCenterCrop(256, 224)))
    requests = plan_batches(dataset, views, [range(6)])
    for view in range(2):
        one = plan_batches(dataset, views[view : view + 1], [range(6)])
        assert_same_pictures(
            execute("dali", dataset, views[view : view + 1], one),
            execute("reference", dataset, views[view : view + 1], one),
        )
    assert_same_pictures(execute("dali", dataset, views, requests), execute("reference", dataset, views, requests))
