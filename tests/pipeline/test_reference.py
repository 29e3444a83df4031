"""The reference executor is what torchvision and timm do on Pillow images."""

import io
import zlib
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageFilter
from timm.data import auto_augment as timm_policies
from torchvision import transforms
from torchvision.transforms import functional

from pipeline.augmentation.pillow_operations import pillow_operation
from pipeline.executors.pillow_reference import reference_view
from pipeline.views.operations import ColorJitter, Interpolation, Kind, PlannedOperation, Rotation
from pipeline.views.policies import RandAugment
from pipeline.views.presets import CENTER_224, SIM_32
from pipeline.views.view import PaddedCrop, RandomResizedCrop, View, Whole, plan_view
from tests.helpers.pictures import photo


def draw(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(purpose.encode())).random(shape)


def encoded(image: Image.Image, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return buffer.getvalue()


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(photo(3, 300, 200))


def operation_of(
    kind: Kind, first: float = 0.0, second: float = 0.0, fill: Sequence[int] = (0, 0, 0)
) -> PlannedOperation:
    return PlannedOperation(np.array([kind], np.uint8), np.array([[first, second]]), fill)


def test_evaluation_is_torchvisions_resize_and_center_crop(image: Image.Image) -> None:
    plan = plan_view(CENTER_224, np.array([image.width]), np.array([image.height]), draw)
    official = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    np.testing.assert_array_equal(reference_view(encoded(image), plan, 0), np.asarray(official(image)))


def test_random_resized_crop_is_torchvisions_resized_crop_then_flip(image: Image.Image) -> None:
    count = 8
    plan = plan_view(View(RandomResizedCrop(64), 0.5), np.full(count, image.width), np.full(count, image.height), draw)
    assert 0 < plan.flip.sum() < count
    for i in range(count):
        expected = functional.resized_crop(image, *plan.region[i].tolist(), [64, 64])
        expected = functional.hflip(expected) if plan.flip[i] else expected
        np.testing.assert_array_equal(reference_view(encoded(image), plan, i), np.asarray(expected))


@pytest.mark.parametrize(("mode", "torchvision_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_padded_crop_is_torchvisions_pad_and_crop(mode: str, torchvision_mode: str) -> None:
    image = Image.fromarray(photo(1, 32, 32))
    count = 30
    plan = plan_view(View(PaddedCrop(32, 4, mode)), np.full(count, 32), np.full(count, 32), draw)
    padded = functional.pad(image, 4, padding_mode=torchvision_mode)
    for i in range(count):
        top, left = plan.window[i] + 4
        expected = functional.crop(padded, top, left, 32, 32)
        np.testing.assert_array_equal(reference_view(encoded(image), plan, i), np.asarray(expected))


def test_an_image_of_the_right_size_is_left_untouched() -> None:
    pixels = photo(2, 32, 32)
    plan = plan_view(View(Whole(32)), np.array([32]), np.array([32]), draw)
    np.testing.assert_array_equal(reference_view(encoded(Image.fromarray(pixels)), plan, 0), pixels)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_images_that_are_not_rgb_are_converted(image: Image.Image, mode: str) -> None:
    data = encoded(image.convert(mode), "JPEG")
    plan = plan_view(View(Whole(32)), np.array([image.width]), np.array([image.height]), draw)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(opened.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(reference_view(np.frombuffer(data, np.uint8), plan, 0), expected)


def test_color_jitter_is_torchvisions_with_the_order_of_the_plan(image: Image.Image) -> None:
    count = 12
    operations = ColorJitter(0.4, 0.4, 0.4, 0.1).plan(count, image.size, draw)
    orders = set()
    for i in range(count):
        expected, actual, order = image, image, []
        for operation in operations:
            kind, factor = Kind(operation.kind[i]), float(operation.arguments[i, 0])
            adjust = {
                Kind.BRIGHTNESS: functional.adjust_brightness,
                Kind.CONTRAST: functional.adjust_contrast,
                Kind.COLOR: functional.adjust_saturation,
                Kind.HUE: functional.adjust_hue,
            }[kind]
            expected = adjust(expected, factor)
            actual = pillow_operation(actual, operation, i)
            order.append(kind)
        assert len(set(order)) == 4
        orders.add(tuple(order))
        np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected))
    assert len(orders) > 6  # of 24


def test_color_jitter_factors_orders_and_probability() -> None:
    count = 20000
    steps = ColorJitter(0.4, 0.4, 0.4, probability=0.8).plan(count, (8, 8), draw)
    assert len(steps) == 3  # an amount of 0 costs nothing
    kinds = np.stack([step.kind for step in steps], axis=1)
    applied = (kinds != Kind.IDENTITY).all(axis=1)
    assert abs(applied.mean() - 0.8) < 0.02
    assert (kinds[~applied] == Kind.IDENTITY).all()
    orders, seen = np.unique(kinds[applied], axis=0, return_counts=True)
    assert len(orders) == 6 and np.abs(seen / applied.sum() * 6 - 1).max() < 0.1
    for step in steps:
        factors = step.arguments[:, 0]
        assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4 and abs(factors.mean() - 1) < 0.01


def test_hue_joins_without_moving_the_other_factors() -> None:
    without = ColorJitter(0.4, 0.4, 0.4).plan(50, (8, 8), draw)
    hued = ColorJitter(0.4, 0.4, 0.4, 0.1).plan(50, (8, 8), draw)

    def factors(steps: Sequence[PlannedOperation], kind: Kind) -> np.ndarray:
        return np.sum([np.where(step.kind == kind, step.arguments[:, 0], 0.0) for step in steps], axis=0)

    for kind in (Kind.BRIGHTNESS, Kind.CONTRAST, Kind.COLOR):
        np.testing.assert_array_equal(factors(without, kind), factors(hued, kind))
    assert np.abs(factors(hued, Kind.HUE)).max() <= 0.1


def test_simclr_view_blurs_with_pillow_and_greys_three_channels(image: Image.Image) -> None:
    grey = np.asarray(pillow_operation(image, operation_of(Kind.GREY), 0))
    np.testing.assert_array_equal(grey, np.asarray(transforms.Grayscale(3)(image)))
    blurred = np.asarray(pillow_operation(image, operation_of(Kind.BLUR, 1.3), 0))
    np.testing.assert_array_equal(blurred, np.asarray(image.filter(ImageFilter.GaussianBlur(1.3))))
    count = 4
    plan = plan_view(SIM_32, np.full(count, image.width), np.full(count, image.height), draw)
    assert reference_view(encoded(image), plan, 0).shape == (32, 32, 3)


# timm's function of each kind, and its rule from magnitude to argument. Signs are drawn apart.
TIMM = {
    Kind.AUTO_CONTRAST: "AutoContrast",
    Kind.EQUALIZE: "Equalize",
    Kind.INVERT: "Invert",
    Kind.ROTATE: "Rotate",
    Kind.POSTERIZE: "Posterize",
    Kind.SOLARIZE: "Solarize",
    Kind.SOLARIZE_ADD: "SolarizeAdd",
    Kind.COLOR: "Color",
    Kind.CONTRAST: "Contrast",
    Kind.BRIGHTNESS: "Brightness",
    Kind.SHARPNESS: "Sharpness",
    Kind.SHEAR_X: "ShearX",
    Kind.SHEAR_Y: "ShearY",
    Kind.TRANSLATE_X: "TranslateXRel",
    Kind.TRANSLATE_Y: "TranslateYRel",
}


@pytest.mark.parametrize("magnitude", [10.0, 9.3, 6.1])
@pytest.mark.parametrize("kind", TIMM, ids=lambda kind: kind.name)
def test_rand_augment_is_timms(
    image: Image.Image, kind: Kind, magnitude: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = RandAugment(magnitude=magnitude, magnitude_std=0.0, probability=1.0)
    operation, _ = policy.plan(600, (image.height, image.width), draw)
    rows = np.flatnonzero(operation.kind == kind)[:4]
    assert len(rows) == 4
    fill = (124, 116, 104)
    for i in rows:
        first, second = operation.arguments[i]
        monkeypatch.setattr(timm_policies.random, "random", lambda sign=first: 0.9 if sign < 0 else 0.1)
        to_arguments = timm_policies.LEVEL_TO_ARG[TIMM[kind]]
        arguments = to_arguments(magnitude, {}) if to_arguments else ()
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        resample = [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC][int(second)]
        expected = timm_policies.NAME_TO_OP[TIMM[kind]](image, *arguments, fillcolor=fill, resample=resample)
        np.testing.assert_array_equal(np.asarray(pillow_operation(image, operation, i)), np.asarray(expected))


def test_rotation_of_the_cifar_policy_leaves_grey_behind() -> None:
    image = Image.fromarray(photo(4, 32, 32))
    turned = image.convert("RGBA").rotate(20)  # as the official code: grey composited where alpha is 0
    expected = Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert("RGB")
    operation = operation_of(Kind.ROTATE, 20.0, Interpolation.NEAREST, fill=(128, 128, 128))
    np.testing.assert_array_equal(np.asarray(pillow_operation(image, operation, 0)), np.asarray(expected))


def test_ride_rotation_is_torchvisions() -> None:
    image = Image.fromarray(photo(4, 32, 32))
    (operation,) = Rotation(15.0).plan(500, (32, 32), draw)
    angles = operation.arguments[:, 0]
    assert -15 <= angles.min() < -14.5 and 14.5 < angles.max() <= 15
    expected = functional.rotate(image, float(angles[0]))
    np.testing.assert_array_equal(np.asarray(pillow_operation(image, operation, 0)), np.asarray(expected))
