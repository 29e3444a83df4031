"""Views are drawn as torchvision draws them, and no draw depends on what else is drawn."""

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.views.operations import ColorJitter, Cutout, Grayscale, Kind, Rotation
from pipeline.views.policies import RandAugment
from pipeline.views.presets import CENTER_224, JITTERED_224, PRESETS
from pipeline.views.view import (
    CROP_ATTEMPTS,
    OneOf,
    PaddedCrop,
    RandomResizedCrop,
    ResizeCenterCrop,
    View,
    ViewPlan,
    Whole,
    plan_view,
    random_resized_regions,
)


def draw(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(purpose.encode())).random(shape)


def no_draw(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    raise AssertionError(f"nothing is random here, but {purpose!r} was drawn")


def photo_sizes(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.integers(60, 700, count).astype(np.uint16), rng.integers(60, 700, count).astype(np.uint16)


def assert_equal_plans(first: ViewPlan, second: ViewPlan) -> None:
    for field in ("region", "resized", "window", "flip"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field), err_msg=field)
    assert len(first.operations) == len(second.operations)
    for one, other in zip(first.operations, second.operations, strict=True):
        np.testing.assert_array_equal(one.kind, other.kind)
        np.testing.assert_array_equal(one.arguments, other.arguments)


def slow_random_resized_region(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], numbers: np.ndarray
) -> tuple[int, int, int, int]:
    """torchvision's loop on given uniform numbers."""
    top_number, left_number = numbers[-2:]
    for attempt in range(CROP_ATTEMPTS):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * numbers[attempt])
        low, high = np.log(ratio)
        aspect = np.exp(low + (high - low) * numbers[CROP_ATTEMPTS + attempt])
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(top_number * (height - h + 1)), int(left_number * (width - w + 1)), h, w
    w, h = width, height
    if width / height < min(ratio):
        h = round(w / min(ratio))
    elif width / height > max(ratio):
        w = round(h * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.9, 1.0)])
def test_random_resized_crop_is_torchvisions_algorithm(scale: tuple[float, ...]) -> None:
    widths, heights = photo_sizes(300)
    widths[:40], heights[40:80] = 20, 10  # so long that the fallback is needed
    ratio = (3 / 4, 4 / 3)
    numbers = draw("crop", (300, 2 * CROP_ATTEMPTS + 2))
    regions = random_resized_regions(widths.astype(int), heights.astype(int), scale, ratio, numbers)
    expected = [
        slow_random_resized_region(int(w), int(h), scale, ratio, row)
        for w, h, row in zip(widths, heights, numbers, strict=True)
    ]
    np.testing.assert_array_equal(regions, expected)


def test_random_resized_crop_has_torchvisions_distribution() -> None:
    from PIL import Image
    from torchvision.transforms import RandomResizedCrop as Official

    count = 4000
    plan = plan_view(View(RandomResizedCrop(224)), np.full(count, 500), np.full(count, 375), draw)
    official = np.array(
        [Official.get_params(Image.new("L", (500, 375)), (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)]
    )
    # Means of top, left, height, width: six standard errors of a difference of means.
    deviation = 6 * np.hypot(plan.region.std(0), official.std(0)) / np.sqrt(count)
    assert (np.abs(plan.region.mean(0) - official.mean(0)) < deviation).all()


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 65535), st.integers(1, 65535)), min_size=1, max_size=8))
def test_crops_stay_inside_images_of_any_size(sizes: Any) -> None:
    # uint16 as in the index: an area must not wrap.
    widths, heights = np.array(sizes, np.uint16).T
    plan = plan_view(View(RandomResizedCrop(224), 0.5), widths, heights, draw)
    assert plan.region.dtype == np.int32
    assert (plan.region[:, :2] >= 0).all() and (plan.region[:, 2:] > 0).all()
    assert (plan.region[:, 0] + plan.region[:, 2] <= heights).all()
    assert (plan.region[:, 1] + plan.region[:, 3] <= widths).all()


def test_padded_crop_takes_every_offset_equally_often() -> None:
    count = 8100
    plan = plan_view(View(PaddedCrop(32, padding=4)), np.full(count, 32), np.full(count, 32), draw)
    offsets, seen = np.unique(plan.window, axis=0, return_counts=True)
    assert {tuple(offset) for offset in offsets} == {(y, x) for y in range(-4, 5) for x in range(-4, 5)}
    assert seen.min() > 50 and seen.max() < 150  # 100 expected, five standard deviations
    assert (plan.region == [0, 0, 32, 32]).all() and (plan.resized == 32).all()


def test_padded_crop_refuses_images_that_padding_does_not_make_large_enough() -> None:
    with pytest.raises(ValueError, match="20 x 40 pixels, expected at least 24"):
        plan_view(View(PaddedCrop(32, padding=4)), np.array([32, 20]), np.array([32, 40]), draw)


@pytest.mark.parametrize(
    ("width", "height", "resized", "window"),
    [
        (500, 375, (256, 341), (16, 58)),
        (375, 500, (341, 256), (58, 16)),
        (343, 256, (256, 343), (16, 60)),
        (100, 100, (256, 256), (16, 16)),
    ],
)
def test_center_crop_rounds_as_torchvision(
    width: int, height: int, resized: tuple[int, ...], window: tuple[int, ...]
) -> None:
    plan = plan_view(CENTER_224, np.array([width]), np.array([height]), no_draw)
    assert tuple(plan.resized[0]) == resized
    assert tuple(plan.window[0]) == window


def test_flips_have_their_probability_and_no_flip_is_drawn_for_zero() -> None:
    widths, heights = photo_sizes(4000)
    assert abs(plan_view(View(Whole(8), 0.5), widths, heights, draw).flip.mean() - 0.5) < 0.04
    assert not plan_view(View(Whole(8)), widths, heights, no_draw).flip.any()


def test_a_new_operation_moves_no_other_draw() -> None:
    widths, heights = photo_sizes(50)
    plain = plan_view(View(RandomResizedCrop(224), 0.5, (Grayscale(0.2),)), widths, heights, draw)
    more = plan_view(
        View(RandomResizedCrop(224), 0.5, (ColorJitter(0.4, 0.4, 0.4), Grayscale(0.2))), widths, heights, draw
    )
    assert_equal_plans(plain, replace(more, operations=more.operations[-1:]))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_an_image_is_drawn_alike_in_a_batch_of_any_size(name: str) -> None:
    view = PRESETS[name].train
    widths, heights = (np.full(40, 32),) * 2 if view.size == 32 else photo_sizes(40)
    whole = plan_view(view, widths, heights, draw)
    start = plan_view(view, widths[:7], heights[:7], draw)
    assert_equal_plans(whole.take(np.arange(7)), start)
    assert len(whole) == 40 and whole.output_size == (view.size, view.size)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_evaluation_draws_nothing(name: str) -> None:
    recipe = PRESETS[name]
    widths, heights = (np.full(3, 32),) * 2 if recipe.train.size == 32 else photo_sizes(3)
    plan = plan_view(recipe.evaluation, widths, heights, no_draw)
    assert not plan.flip.any() and not plan.operations
    assert plan.output_size == (recipe.train.size,) * 2  # training and evaluation feed the same model


def test_take_selects_all_parts_of_a_plan_in_order() -> None:
    widths, heights = photo_sizes(20)
    plan = plan_view(JITTERED_224, widths, heights, draw)
    chosen = np.array([11, 3, 3, 19])
    taken = plan.take(chosen)
    assert len(taken) == 4
    np.testing.assert_array_equal(taken.region, plan.region[chosen])
    np.testing.assert_array_equal(taken.operations[1].kind, plan.operations[1].kind[chosen])
    np.testing.assert_array_equal(taken.operations[1].arguments, plan.operations[1].arguments[chosen])


def test_one_of_gives_each_image_one_whole_branch() -> None:
    count = 2000
    first = View(PaddedCrop(32, padding=4), operations=(ColorJitter(0.4, 0.4, 0.4),))
    second = View(RandomResizedCrop(32, scale=(0.2, 0.5)), 1.0, (Grayscale(1.0),))
    sizes = np.full(count, 32)
    plan = plan_view(OneOf((first, second)), sizes, sizes, draw)
    is_first = ~plan.flip
    assert abs(is_first.mean() - 0.5) < 0.06
    assert (plan.region[is_first] == [0, 0, 32, 32]).all()
    assert (plan.region[~is_first, 2] < 32).all()
    *jitter, grey = plan.operations
    for operation in jitter:
        assert (operation.kind[is_first] != Kind.IDENTITY).all()
        assert (operation.kind[~is_first] == Kind.IDENTITY).all()
    np.testing.assert_array_equal(grey.kind == Kind.GREY, ~is_first)

    alone = plan_view(first, sizes, sizes, lambda purpose, shape: draw(f"a/{purpose}", shape))
    np.testing.assert_array_equal(plan.window[is_first], alone.window[is_first])


def test_one_of_keeps_the_padding_of_the_branch_that_pads() -> None:
    views = (View(RandomResizedCrop(32)), View(PaddedCrop(32, padding=4, mode="reflect")))
    assert plan_view(OneOf(views), np.full(4, 32), np.full(4, 32), draw).pad_mode == "reflect"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneOf((View(Whole(32)), View(Whole(28)))), "32 and 28"),
        (lambda: OneOf((View(PaddedCrop(32, 4)), View(PaddedCrop(32, 4, "reflect")))), "one padding"),
        (lambda: RandomResizedCrop(224, scale=(1.0, 0.08)), "min <= max"),
        (lambda: ResizeCenterCrop(resize=200, size=224), "size <= resize"),
        (lambda: ColorJitter(), "one above 0"),
        (lambda: Grayscale(20), "from 0 to 1"),
        (lambda: View(Whole(32), flip_probability=1.5), "from 0 to 1"),
        (lambda: PaddedCrop(32, 4, "mirror"), "'zero', 'reflect'"),
        (lambda: Rotation(0.0), "above 0"),
        (lambda: Cutout(15), "even number"),
        (lambda: RandAugment(magnitude=12.0), "0 to 10"),
    ],
)
def test_contradictions_are_refused_at_construction(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("cifar-long", {Kind.CUTOUT: 0.5, Kind.HUE: 0.4, Kind.GREY: 0.1, Kind.BLUR: 0.25}),
        ("imagenet-long", {Kind.HUE: 0.0, Kind.GREY: 0.1, Kind.BLUR: 0.25, Kind.ROTATE: 0.5 / 15}),
        ("imagenet-sim", {Kind.BRIGHTNESS: 1.0, Kind.HUE: 0.0, Kind.GREY: 0.2, Kind.BLUR: 0.5}),
        ("cifar-auto", {Kind.CUTOUT: 1.0, Kind.HUE: 0.0, Kind.BLUR: 0.0}),
        ("imagenet", {Kind.BRIGHTNESS: 1.0, Kind.CONTRAST: 1.0, Kind.COLOR: 1.0, Kind.HUE: 0.0}),
        ("cifar-ride", {Kind.ROTATE: 1.0}),
    ],
)
def test_recipes_apply_their_operations_to_the_published_share_of_images(name: str, shares: dict[str, Any]) -> None:
    count = 8000
    sizes = np.full(count, 32)
    plan = plan_view(PRESETS[name].train, sizes, sizes, draw)
    kinds = np.stack([operation.kind for operation in plan.operations])
    for kind, share in shares.items():
        # Counted by operation: RandAugment may give an image the same kind twice.
        assert abs((kinds == kind).sum() / count - share) < 0.02, kind.name


def test_long_cifar_recipe_crops_a_fifth_at_least_and_cuts_sixteen_pixels() -> None:
    count = 8000
    sizes = np.full(count, 32)
    plan = plan_view(PRESETS["cifar-long"].train, sizes, sizes, draw)
    share = plan.region[:, 2] * plan.region[:, 3] / 32**2
    assert 0.18 < share.min() < 0.22  # sides are rounded to whole pixels
    cut = next(operation for operation in plan.operations if (operation.kind == Kind.CUTOUT).any())
    top, left, bottom, right = cut.arguments.T
    assert (bottom - top).max() == (right - left).max() == 16
