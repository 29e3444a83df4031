"""Annealed squares, corner crops and the bicubic filter, against published boxes and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.executors.crop_resize import crop_resize_flip
from pipeline.executors.host_views import HostViews
from pipeline.executors.pillow_reference import reference_view
from pipeline.rng import RowDraws
from pipeline.views.view import (
    AnnealedSquareCrop,
    OneOf,
    ResizeCenterCrop,
    ResizeCornerCrop,
    View,
    Whole,
    annealed_regions,
    plan_view,
)
from tests.helpers import pictures
from tests.helpers.shard_sets import encode


def shares(curve: str) -> list[float]:
    crop = AnnealedSquareCrop(224, curve=curve)  # type: ignore[arg-type]
    return [crop.smallest_share(epoch / 4) for epoch in range(5)]


def test_the_smallest_share_anneals_as_published() -> None:
    np.testing.assert_allclose(shares("convex"), [0.08, 0.10921383, 0.203256629, 0.391477198, 1], rtol=1e-7)
    np.testing.assert_allclose(shares("concave"), [0.08, 0.688522802, 0.876743371, 0.97078617, 1], rtol=1e-7)
    np.testing.assert_allclose(shares("linear"), np.linspace(0.08, 1, 5))


def sides(width: int, height: int, smallest: float) -> list[int]:
    """Of the smallest draw, the middle one and the largest."""
    uniform = np.array([[0, 0, 0], [0.5, 0, 0], [1 - 1e-12, 0, 0]])
    regions = annealed_regions(np.full(3, width), np.full(3, height), smallest, uniform)
    assert (regions[:, 2] == regions[:, 3]).all()
    return regions[:, 2].tolist()


def test_sides_of_annealed_squares() -> None:
    assert sides(500, 375, 0.08) == [122, 279, 375]
    assert sides(500, 375, 0.391477198) == [271, 327, 375]
    assert sides(500, 375, 1.0) == [375, 375, 375]
    assert sides(32, 32, 0.08)[::2] == [9, 32]


def test_annealed_squares_lie_inside_and_reach_every_border() -> None:
    rng = np.random.default_rng(0)
    count = 2000
    widths, heights = rng.integers(3, 40, count), rng.integers(3, 40, count)
    top, left, height, width = annealed_regions(widths, heights, 0.08, rng.random((count, 3))).T
    assert (top >= 0).all() and (left >= 0).all() and (width == height).all() and (height >= 1).all()
    assert (top + height <= heights).all() and (left + width <= widths).all()
    assert ((top + height == heights) & (top > 0)).any() and ((left + width == widths) & (left > 0)).any()


def test_an_annealed_view_draws_by_epoch_and_no_flip() -> None:
    view = View(AnnealedSquareCrop(8))
    sizes = np.full(4, 100)
    drawn: list[str] = []

    def draw(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
        drawn.append(purpose)
        return RowDraws(0, 0, 0, np.arange(4)).uniform(purpose, shape)

    early, last = (plan_view(view, sizes, sizes, draw, progress) for progress in (0.0, 1.0))
    assert drawn == ["crop", "crop"]
    assert (early.region[:, 2] < 100).all() and (last.region[:, 2] == 100).all()


CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


def boxes(width: int, height: int, resize: int, size: int = 224) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of the four corners and the centre."""
    geometries = [*(ResizeCornerCrop(resize, size, corner) for corner in CORNERS), ResizeCenterCrop(resize, size)]
    found = []
    for geometry in geometries:
        window = plan_view(View(geometry), np.array([width]), np.array([height]), None).window[0]  # type: ignore[arg-type]
        top, left = window.tolist()
        found.append((left, top, left + size, top + size))
    return found


def test_the_five_crops_of_a_test_time_ensemble() -> None:
    expected = [(0, 0, 224, 224), (106, 0, 330, 224), (0, 24, 224, 248), (106, 24, 330, 248), (53, 12, 277, 236)]
    assert boxes(500, 375, 248) == expected
    assert boxes(333, 500, 248)[-1] == (12, 74, 236, 298)
    assert boxes(640, 480, 249)[-1] == (54, 12, 278, 236)
    assert boxes(500, 375, 256)[-1] == (58, 16, 282, 240)


@pytest.mark.parametrize(("width", "height", "size"), [(90, 61, 32), (40, 40, 56), (32, 32, 32), (200, 41, 24)])
def test_bicubic_views_are_pillows(width: int, height: int, size: int) -> None:
    image = pictures.photo(3, width, height)
    plan = plan_view(View(Whole(size), resampling="bicubic"), np.array([width]), np.array([height]), None)  # type: ignore[arg-type]
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)).astype(int)
    host = HostViews(1)
    found = {
        "reference": reference_view(encode(Image.fromarray(image), "PNG"), plan, 0),
        "on the device": crop_resize_flip(torch.from_numpy(image.copy())[None], plan)[0].numpy(),
        "on the host": host.make([image], plan, regions_are_cut=False)[0].numpy(),
    }
    host.close()
    for who, pixels in found.items():
        assert np.abs(pixels.astype(int) - expected).max() <= 1, who
    bilinear = plan_view(View(Whole(size)), np.array([width]), np.array([height]), None)  # type: ignore[arg-type]
    if (width, height) != (size, size):
        other = crop_resize_flip(torch.from_numpy(image.copy())[None], bilinear)[0].numpy()
        assert np.abs(other.astype(int) - expected).max() > 1


def test_a_coin_between_two_filters_is_refused() -> None:
    with pytest.raises(ValueError, match="filter"):
        OneOf((View(Whole(8)), View(Whole(8), resampling="bicubic")))
