"""The batched operations do what Pillow does, image by image; policies draw what their papers' programs draw."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline.augmentation.augment
from pipeline.augmentation import color_kernels
from pipeline.augmentation.augment import augment
from pipeline.augmentation.pillow_operations import pillow_operation
from pipeline.executors.threads import one_thread_each
from pipeline.views.operations import GEOMETRIC, Cutout, GaussianBlur, Grayscale, Interpolation, Kind, PlannedOperation
from pipeline.views.policies import CIFAR10_POLICY, AutoAugmentCifar10, RandAugment
from pipeline.views.presets import PRESETS
from pipeline.views.view import plan_view
from tests.helpers.pictures import photo

SAMPLES = Path(__file__).parents[3] / "shared/data/imagenet-samples"
COUNT = 6
FILL = (124, 116, 104)

# First argument of each kind, from and to, over the range that some recipe draws.
RANGES = {
    Kind.BRIGHTNESS: (0.1, 1.9),
    Kind.CONTRAST: (0.1, 1.9),
    Kind.COLOR: (0.1, 1.9),
    Kind.SHARPNESS: (0.1, 1.9),
    Kind.HUE: (-0.5, 0.5),
    Kind.GREY: (0, 0),
    Kind.BLUR: (0.1, 1.99),  # at 2 exactly the weights are multiples of 1/30, and half-way sums round either way
    Kind.INVERT: (0, 0),
    Kind.POSTERIZE: (0, 8),
    Kind.SOLARIZE: (0, 256),
    Kind.SOLARIZE_ADD: (0, 110),
    Kind.AUTO_CONTRAST: (0, 0),
    Kind.EQUALIZE: (0, 0),
    Kind.ROTATE: (-30, 30),
    Kind.SHEAR_X: (-0.3, 0.3),
    Kind.SHEAR_Y: (-0.3, 0.3),
    Kind.TRANSLATE_X: (-43.3, 43.3),
    Kind.TRANSLATE_Y: (-36.7, 36.7),
}
WHOLE_ARGUMENTS = (Kind.POSTERIZE, Kind.SOLARIZE, Kind.SOLARIZE_ADD)
CASES = [
    (kind, interpolation)
    for kind in RANGES
    for interpolation in (tuple(Interpolation) if kind in GEOMETRIC else (Interpolation.NEAREST,))
]


def draw(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(purpose.encode())).random(shape)


def photos(count: int = COUNT, width: int = 97, height: int = 80) -> np.ndarray:
    return np.stack([photo(seed, width, height) for seed in range(count)])


def spread(kind: Kind, interpolation: Interpolation, count: int = COUNT) -> PlannedOperation:
    """The same kind for every image, with arguments across its range."""
    first = np.linspace(*RANGES[kind], count)
    first = np.round(first) if kind in WHOLE_ARGUMENTS else first
    return PlannedOperation(
        np.full(count, kind, np.uint8), np.stack([first, np.full(count, interpolation)], axis=1).astype(float), FILL
    )


def by_pillow(images: np.ndarray, operations: tuple[PlannedOperation, ...]) -> np.ndarray:
    results = []
    for i, pixels in enumerate(images):
        image = Image.fromarray(pixels)
        for operation in operations:
            image = pillow_operation(image, operation, i)
        results.append(np.asarray(image))
    return np.stack(results)


def difference(images: np.ndarray, operations: tuple[PlannedOperation, ...]) -> np.ndarray:
    """Grey levels between the batched code and Pillow."""
    batched = augment(torch.from_numpy(images), operations).numpy()
    assert batched.dtype == np.uint8
    return np.abs(batched.astype(int) - by_pillow(images, operations))


@pytest.mark.parametrize(("kind", "interpolation"), CASES, ids=lambda value: value.name)
def test_each_kind_equals_pillow(kind: Kind, interpolation: Any) -> None:
    found = difference(photos(), (spread(kind, interpolation),))
    # Interpolation sums weights in float32 where Pillow takes doubles, and both then truncate; all else is exact.
    is_interpolated = kind in GEOMETRIC and interpolation != Interpolation.NEAREST
    assert found.max() <= (1 if is_interpolated else 0)
    assert found.mean() <= 0.01


@pytest.mark.parametrize("kind", [Kind.AUTO_CONTRAST, Kind.EQUALIZE, Kind.CONTRAST, Kind.HUE, Kind.COLOR], ids=str)
def test_degenerate_images_equal_pillow(kind: Kind) -> None:
    one_colour = np.full((40, 50, 3), (7, 130, 7), np.uint8)
    two_values = one_colour.copy()
    two_values[:, 25:] += 1
    ramp = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None] + 100, (40, 50, 3))
    images = np.stack([one_colour, two_values, ramp, np.zeros_like(ramp), np.full_like(ramp, 255)])
    assert difference(images, (spread(kind, Interpolation.NEAREST, len(images)),)).max() == 0


def test_equalize_of_few_pixels_equals_pillow() -> None:
    # 256 to 510 pixels below the brightest: a step of 1, where Pillow's table passes 255 and is clipped.
    images = photos(4, width=21, height=19)
    images[:, 0, 0] = 255
    assert difference(images, (spread(Kind.EQUALIZE, Interpolation.NEAREST, 4),)).max() == 0


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"real photographs are not at {SAMPLES}")
def test_real_photographs_equal_pillow() -> None:
    images = []
    for path in sorted(SAMPLES.glob("*.JPEG"))[:3]:
        with Image.open(path) as opened:
            images.append(np.asarray(opened.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)))
    for kind, interpolation in CASES:
        found = difference(np.stack(images), (spread(kind, interpolation, len(images)),))
        assert found.mean() <= 0.5 and found.max() <= 3, kind


@pytest.mark.parametrize("name", ["imagenet", "imagenet-long", "cifar-long", "cifar-ride"])
def test_recipes_equal_pillow_from_start_to_end(name: str) -> None:
    view = PRESETS[name].train
    count, side = (128, 32) if view.size == 32 else (32, 64)
    plan = plan_view(view, np.full(count, side), np.full(count, side), draw)
    found = difference(photos(count, side, side), plan.operations)
    assert found.mean() <= 0.05
    # A level more or less before a solarize or a steep equalize is many levels after it, on a few pixels.
    assert (found > 3).mean() <= 1e-3


@pytest.mark.parametrize("large", [False, True])
def test_a_batch_of_different_kinds_equals_its_images_alone(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr(pipeline.augmentation.augment, "LARGE_IMAGE_PIXELS", 1)
    operation = PlannedOperation(
        np.array([*RANGES, Kind.IDENTITY], np.uint8),
        np.array([*((high, 1.0) for _, high in RANGES.values()), (0.0, 0.0)]),
        FILL,
    )
    images = torch.from_numpy(photos(len(operation), 40, 30))
    before = images.clone()
    together = augment(images, (operation, operation))
    assert torch.equal(images, before)
    assert torch.equal(together[-1], images[-1])
    monkeypatch.setattr(pipeline.augmentation.augment, "CHUNK_PIXELS", 40 * 30 * 5)
    assert torch.equal(augment(images, (operation, operation)), together)
    with one_thread_each(3, "augment") as pool:
        assert torch.equal(augment(images, (operation, operation), pool), together)
        with torch.inference_mode():  # of this thread only
            assert torch.equal(augment(images.clone(), (operation, operation), pool), together)
    for i in range(len(operation)):
        alone = operation.take(np.array([i]))
        assert torch.equal(augment(images[i : i + 1], (alone, alone))[0], together[i]), Kind(operation.kind[i])


def test_large_images_of_one_jitter_order_are_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels as from the formula for images at different steps, which small images take."""
    jitter = PRESETS["imagenet"].train.operations
    operations = tuple(step for operation in jitter for step in operation.plan(40, (40, 30), draw))
    images = torch.from_numpy(photos(40, 40, 30))
    mixed = augment(images, operations)
    monkeypatch.setattr(pipeline.augmentation.augment, "LARGE_IMAGE_PIXELS", 40 * 30)
    monkeypatch.setattr(color_kernels, "_blend_with_grey", None)
    assert torch.equal(augment(images, operations), mixed)
    assert (mixed.numpy() == by_pillow(images.numpy(), operations)).all()


@pytest.mark.parametrize("first", RANGES, ids=lambda kind: kind.name)
def test_any_kind_can_follow_any_other(first: Any) -> None:
    images = photos(2, 20, 24)
    for second in RANGES:
        operations = (spread(first, Interpolation.NEAREST, 2), spread(second, Interpolation.NEAREST, 2))
        assert difference(images, operations).max() == 0, second.name


def test_operations_and_images_that_do_not_fit_are_refused() -> None:
    operation = spread(Kind.INVERT, Interpolation.NEAREST)
    with pytest.raises(ValueError, match="planned for 6 images, the batch has 2"):
        augment(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), (operation,))
    with pytest.raises(ValueError, match=r"expected uint8 \(batch, height, width, 3\)"):
        augment(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), (operation,))
    with pytest.raises(ValueError, match="float32"):
        augment(torch.zeros(6, 8, 8, 3), (operation,))


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "interpolation"), CASES, ids=lambda value: value.name)
def test_gpu_equals_pillow(kind: Kind, interpolation: Any) -> None:
    images, operation = photos(), spread(kind, interpolation)
    found = augment(torch.from_numpy(images).cuda(), (operation,)).cpu().numpy().astype(int)
    levels = np.abs(found - by_pillow(images, (operation,)))
    # Compiled before torch 2.15, some hues are rounded otherwise (see test_compiled.py): by one of 256, 6 levels.
    rounds_hues = kind is Kind.HUE and torch.__version__ < "2.15"
    assert levels.mean() <= 0.5 and levels.max() <= (6 if rounds_hues else 3)


def test_cutout_blackens_one_clipped_square_around_any_pixel() -> None:
    count, side = 3000, 32
    (operation,) = Cutout(16).plan(count, (side, side), draw)
    white = torch.full((count, side, side, 3), 255, dtype=torch.uint8)
    hole = (augment(white, (operation,)) == 0).all(dim=3).numpy()
    rows, columns = hole.any(axis=2), hole.any(axis=1)
    # A hole is the product of an interval of rows and one of columns, 8 to 16 long.
    np.testing.assert_array_equal(hole, rows[:, :, None] & columns[:, None, :])
    for lines in (rows, columns):
        assert (np.abs(np.diff(lines.astype(int), prepend=0, append=0, axis=1)).sum(axis=1) == 2).all()
        assert lines.sum(axis=1).min() == 8 and lines.sum(axis=1).max() == 16
    # Mean covered length by enumerating the 32 centres.
    covered = np.mean([min(centre + 8, side) - max(centre - 8, 0) for centre in range(side)])
    assert abs(rows.sum(axis=1).mean() - covered) < 0.3
    assert difference(photos(8, 32, 32), (operation.take(np.arange(8)),)).max() == 0


def test_grey_and_blur_have_their_probabilities_and_range() -> None:
    (grey,) = Grayscale(0.2).plan(5000, (8, 8), draw)
    assert abs((grey.kind == Kind.GREY).mean() - 0.2) < 0.03
    (blur,) = GaussianBlur(0.1, 2.0, 0.5).plan(5000, (8, 8), draw)
    assert abs((blur.kind == Kind.BLUR).mean() - 0.5) < 0.04
    sigma = blur.arguments[:, 0]
    assert 0.1 <= sigma.min() < 0.11 and 1.99 < sigma.max() <= 2.0 and abs(sigma.mean() - 1.05) < 0.05


def test_rand_augment_draws_kinds_signs_and_magnitudes_like_timm() -> None:
    count, size = 30000, (100, 200)
    first, second = RandAugment().plan(count, size, draw)
    kinds = np.concatenate([first.kind, second.kind])
    arguments = np.concatenate([first.arguments, second.arguments])
    applied = kinds != Kind.IDENTITY
    assert abs(applied.mean() - 0.5) < 0.01
    names, seen = np.unique(kinds[applied], return_counts=True)
    assert len(names) == 15 and np.abs(seen / applied.sum() * 15 - 1).max() < 0.1
    assert abs((first.kind == second.kind).mean() - (0.25 + 0.25 / 15)) < 0.015  # with replacement, independent

    def of(kind: Kind) -> np.ndarray:
        return arguments[kinds == kind, 0]

    # Magnitude 10 for half of the applications, and above 7.5 practically always.
    for kind, at_ten in ((Kind.ROTATE, 30), (Kind.SHEAR_X, 0.3), (Kind.TRANSLATE_X, 90), (Kind.TRANSLATE_Y, 45)):
        assert abs(np.isclose(np.abs(of(kind)), at_ten).mean() - 0.5) < 0.06
        assert abs((of(kind) < 0).mean() - 0.5) < 0.06
    for kind in (Kind.COLOR, Kind.CONTRAST, Kind.BRIGHTNESS, Kind.SHARPNESS):
        assert abs(np.isclose(of(kind), 1.9).mean() - 0.5) < 0.06 and of(kind).min() > 1.0
    assert set(of(Kind.POSTERIZE)) == {3, 4}
    assert abs((of(Kind.SOLARIZE) == 256).mean() - 0.5) < 0.06
    assert of(Kind.SOLARIZE_ADD).max() == 110 and (of(Kind.SOLARIZE_ADD) % 1 == 0).all()
    interpolation = arguments[np.isin(kinds, GEOMETRIC), 1]
    assert set(interpolation) == {Interpolation.BILINEAR, Interpolation.BICUBIC}
    assert abs((interpolation == Interpolation.BICUBIC).mean() - 0.5) < 0.03
    assert first.fill == FILL


def test_cifar10_policy_is_the_published_one() -> None:
    from torchvision.transforms.autoaugment import AutoAugment, AutoAugmentPolicy

    official = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    ours = [
        tuple((kind.name.replace("_", "").lower(), probability, magnitude) for kind, probability, magnitude in pair)
        for pair in CIFAR10_POLICY
    ]
    theirs = [
        tuple((name.lower(), probability, magnitude or 0) for name, probability, magnitude in pair) for pair in official
    ]
    assert ours == theirs


def test_auto_augment_arguments_by_hand() -> None:
    first, second = AutoAugmentCifar10().plan(60000, (32, 64), draw)

    def seen(operation: PlannedOperation, kind: Kind) -> set[float]:
        return {round(float(value), 6) for value in operation.arguments[operation.kind == kind, 0]}

    assert seen(first, Kind.ROTATE) == {round(30 * 2 / 9, 6)}  # never negative
    assert seen(first, Kind.SHEAR_Y) == {round(sign * 0.3 * m / 9, 6) for m in (7, 8) for sign in (-1, 1)}
    assert seen(second, Kind.TRANSLATE_X) == {
        round(sign * 64 * 150 / 331 * m / 9, 6) for m in (8, 9) for sign in (-1, 1)
    }
    assert seen(second, Kind.TRANSLATE_Y) == {round(sign * 32 * 150 / 331, 6) for sign in (-1, 1)}
    assert seen(second, Kind.POSTERIZE) == {5}
    assert seen(first, Kind.SOLARIZE) == {round(256 * (1 - m / 9), 6) for m in (2, 5)}
    assert seen(first, Kind.CONTRAST) == {round(1 + sign * 0.7, 6) for sign in (-1, 1)}
    assert not (second.kind[first.kind == Kind.SOLARIZE] == Kind.INVERT).any()  # probability 0
    assert set(first.arguments[first.kind == Kind.SHEAR_Y, 1]) == {Interpolation.BICUBIC}
    assert set(second.arguments[second.kind == Kind.TRANSLATE_X, 1]) == {Interpolation.NEAREST}
    assert first.fill == (128, 128, 128)
    # The probability of a kind in the first place, over the 25 sub-policies.
    for kind in (Kind.INVERT, Kind.SHARPNESS, Kind.EQUALIZE):
        expected = sum(pair[0][1] for pair in CIFAR10_POLICY if pair[0][0] == kind) / 25
        assert abs((first.kind == kind).mean() - expected) < 0.008


@pytest.mark.parametrize("policy", [RandAugment(count=3, probability=1.0), AutoAugmentCifar10()])
def test_large_images_take_what_pillow_does_faster_from_pillow(policy: RandAugment | AutoAugmentCifar10) -> None:
    """Where an image takes nothing else it is Pillow's to the last bit, and the kernels' within their differences."""
    count, height, width = 40, 136, 128
    images = photos(count, width, height)
    operations = policy.plan(count, (height, width), draw)
    found = augment(torch.from_numpy(images), operations).numpy()
    kinds = np.stack([operation.kind for operation in operations])
    all_by_pillow = (pipeline.augmentation.augment.BY_PILLOW[kinds] | (kinds == Kind.IDENTITY)).all(axis=0)
    assert 2 <= all_by_pillow.sum() < count
    for i in range(count):
        image = Image.fromarray(images[i])
        for operation in operations:
            image = pillow_operation(image, operation, i)
        differs = np.abs(found[i].astype(int) - np.asarray(image))
        assert differs.max() == 0 if all_by_pillow[i] else (differs > 1).mean() < 0.01, kinds[:, i]
