"""Learned and random augmentation policies, with the constants of the official long-tail code.

Both differ from torchvision's classes of the same name in ranges, signs, fill and interpolation; see the docstrings.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.views.operations import GEOMETRIC, Draw, Interpolation, Kind, PlannedOperation, check_probability

LEVELS = 10.0  # magnitudes are tenths of a range


# A kind's argument at level t in [0, 1]: offset + scale * t, truncated for some kinds, with random sign for some. In
# the order of timm's list; translations are shares of the side.
RAND_AUGMENT_RANGES = np.array(
    [
        (Kind.AUTO_CONTRAST, 0.0, 0.0, False, False),
        (Kind.EQUALIZE, 0.0, 0.0, False, False),
        (Kind.INVERT, 0.0, 0.0, False, False),
        (Kind.ROTATE, 0.0, 30.0, False, True),
        (Kind.POSTERIZE, 0.0, 4.0, True, False),
        (Kind.SOLARIZE, 0.0, 256.0, True, False),
        (Kind.SOLARIZE_ADD, 0.0, 110.0, True, False),
        (Kind.COLOR, 0.1, 1.8, False, False),
        (Kind.CONTRAST, 0.1, 1.8, False, False),
        (Kind.BRIGHTNESS, 0.1, 1.8, False, False),
        (Kind.SHARPNESS, 0.1, 1.8, False, False),
        (Kind.SHEAR_X, 0.0, 0.3, False, True),
        (Kind.SHEAR_Y, 0.0, 0.3, False, True),
        (Kind.TRANSLATE_X, 0.0, 0.45, False, True),
        (Kind.TRANSLATE_Y, 0.0, 0.45, False, True),
    ],
    dtype=[("kind", "u1"), ("offset", "f8"), ("scale", "f8"), ("is_whole", "?"), ("is_signed", "?")],
)
IS_GEOMETRIC = np.isin(np.arange(len(Kind)), GEOMETRIC)


@dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al., 2020) as timm's "rand-m10-n2-mstd0.5", which matches the official CMO and NCL code.

    `count` of 15 kinds, drawn uniformly with replacement, each applied with `probability`. The magnitude is normal
    around `magnitude` and clipped to [0, 10]: with 10, half of the applications have exactly 10. Geometric kinds have
    a random sign, and bilinear or bicubic interpolation at random. The fill is ImageNet's mean colour.
    """

    count: int = 2
    magnitude: float = 10.0
    magnitude_std: float = 0.5
    probability: float = 0.5
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self) -> None:
        check_probability(self, self.probability)
        if self.count < 1 or not 0 <= self.magnitude <= LEVELS or self.magnitude_std < 0:
            raise ValueError(f"{self}: expected count >= 1, magnitude from 0 to 10, magnitude_std >= 0")

    def plan(self, count: int, size: tuple[int, int], draw: Draw) -> tuple[PlannedOperation, ...]:
        uniform = draw("randaugment", (count, self.count, 4))
        normal = _standard_normal(draw("randaugment/magnitude", (count, self.count, 2)))
        level = np.clip(self.magnitude + self.magnitude_std * normal, 0.0, LEVELS) / LEVELS
        drawn = RAND_AUGMENT_RANGES[(uniform[..., 0] * len(RAND_AUGMENT_RANGES)).astype(np.int64)]
        kind = drawn["kind"]
        argument = drawn["offset"] + drawn["scale"] * level
        argument = np.where(drawn["is_whole"], np.floor(argument), argument)
        argument = np.where(drawn["is_signed"] & (uniform[..., 2] < 0.5), -argument, argument) * _sides(kind, size)
        interpolation = np.where(uniform[..., 3] < 0.5, Interpolation.BILINEAR, Interpolation.BICUBIC)
        applied = np.where(uniform[..., 1] < self.probability, kind, np.uint8(Kind.IDENTITY))
        return _columns(applied, argument, interpolation * IS_GEOMETRIC[kind], self.fill)


def _standard_normal(uniform: np.ndarray) -> np.ndarray:
    """float64 (...,) from uniform numbers (..., 2): always two, so that every row's numbers have their place.

    By Box and Muller, 1958. Rounded, because the last bits of a logarithm or cosine differ between processors.
    """
    return np.round(np.sqrt(-2.0 * np.log1p(-uniform[..., 0])) * np.cos(2.0 * np.pi * uniform[..., 1]), 9)


def _sides(kind: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What turns a share into pixels: the width or height for translations, 1 for other kinds."""
    return np.where(kind == Kind.TRANSLATE_X, size[1], np.where(kind == Kind.TRANSLATE_Y, size[0], 1))


def _columns(
    kind: np.ndarray, argument: np.ndarray, interpolation: np.ndarray, fill: tuple[int, int, int]
) -> tuple[PlannedOperation, ...]:
    """One planned operation for each column of arrays (B, columns)."""
    arguments = np.stack([argument, interpolation], axis=2)
    return tuple(PlannedOperation(kind[:, column], arguments[:, column], fill) for column in range(kind.shape[1]))


# Cubuk et al., 2019, appendix: two (kind, probability, magnitude 0 to 9) a sub-policy. 0 where a kind has no magnitude.
CIFAR10_POLICY = (
    ((Kind.INVERT, 0.1, 0), (Kind.CONTRAST, 0.2, 6)),
    ((Kind.ROTATE, 0.7, 2), (Kind.TRANSLATE_X, 0.3, 9)),
    ((Kind.SHARPNESS, 0.8, 1), (Kind.SHARPNESS, 0.9, 3)),
    ((Kind.SHEAR_Y, 0.5, 8), (Kind.TRANSLATE_Y, 0.7, 9)),
    ((Kind.AUTO_CONTRAST, 0.5, 0), (Kind.EQUALIZE, 0.9, 0)),
    ((Kind.SHEAR_Y, 0.2, 7), (Kind.POSTERIZE, 0.3, 7)),
    ((Kind.COLOR, 0.4, 3), (Kind.BRIGHTNESS, 0.6, 7)),
    ((Kind.SHARPNESS, 0.3, 9), (Kind.BRIGHTNESS, 0.7, 9)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.EQUALIZE, 0.5, 0)),
    ((Kind.CONTRAST, 0.6, 7), (Kind.SHARPNESS, 0.6, 5)),
    ((Kind.COLOR, 0.7, 7), (Kind.TRANSLATE_X, 0.5, 8)),
    ((Kind.EQUALIZE, 0.3, 0), (Kind.AUTO_CONTRAST, 0.4, 0)),
    ((Kind.TRANSLATE_Y, 0.4, 3), (Kind.SHARPNESS, 0.2, 6)),
    ((Kind.BRIGHTNESS, 0.9, 6), (Kind.COLOR, 0.2, 8)),
    ((Kind.SOLARIZE, 0.5, 2), (Kind.INVERT, 0.0, 0)),
    ((Kind.EQUALIZE, 0.2, 0), (Kind.AUTO_CONTRAST, 0.6, 0)),
    ((Kind.EQUALIZE, 0.2, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.COLOR, 0.9, 9), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.AUTO_CONTRAST, 0.8, 0), (Kind.SOLARIZE, 0.2, 8)),
    ((Kind.BRIGHTNESS, 0.1, 3), (Kind.COLOR, 0.7, 0)),
    ((Kind.SOLARIZE, 0.4, 5), (Kind.AUTO_CONTRAST, 0.9, 0)),
    ((Kind.TRANSLATE_Y, 0.9, 9), (Kind.TRANSLATE_Y, 0.7, 9)),
    ((Kind.AUTO_CONTRAST, 0.9, 0), (Kind.SOLARIZE, 0.8, 3)),
    ((Kind.EQUALIZE, 0.8, 0), (Kind.INVERT, 0.1, 0)),
    ((Kind.TRANSLATE_Y, 0.7, 9), (Kind.AUTO_CONTRAST, 0.9, 0)),
)

# Magnitude 0 to 9 to the argument, before the sign.
CIFAR10_ARGUMENTS = {
    Kind.SHEAR_X: np.linspace(0.0, 0.3, 10),
    Kind.SHEAR_Y: np.linspace(0.0, 0.3, 10),
    Kind.TRANSLATE_X: np.linspace(0.0, 150 / 331, 10),
    Kind.TRANSLATE_Y: np.linspace(0.0, 150 / 331, 10),
    Kind.ROTATE: np.linspace(0.0, 30.0, 10),
    Kind.COLOR: np.linspace(0.0, 0.9, 10),
    Kind.CONTRAST: np.linspace(0.0, 0.9, 10),
    Kind.SHARPNESS: np.linspace(0.0, 0.9, 10),
    Kind.BRIGHTNESS: np.linspace(0.0, 0.9, 10),
    Kind.POSTERIZE: np.array([8, 8, 7, 7, 6, 6, 5, 5, 4, 4]),
    Kind.SOLARIZE: np.linspace(256.0, 0.0, 10),
}
ENHANCEMENTS = (Kind.COLOR, Kind.CONTRAST, Kind.SHARPNESS, Kind.BRIGHTNESS)  # factor 1 + argument
SIGNED = (*ENHANCEMENTS, Kind.SHEAR_X, Kind.SHEAR_Y, Kind.TRANSLATE_X, Kind.TRANSLATE_Y)
SHEARS = (Kind.SHEAR_X, Kind.SHEAR_Y)

# The policy with its arguments worked out, (25, 2).
CIFAR10_STEPS = np.array(
    [
        [
            (
                kind,
                probability,
                kind in ENHANCEMENTS,
                CIFAR10_ARGUMENTS[kind][magnitude] if kind in CIFAR10_ARGUMENTS else 0.0,
                kind in SIGNED,
                Interpolation.BICUBIC if kind in SHEARS else Interpolation.NEAREST,
            )
            for kind, probability, magnitude in pair
        ]
        for pair in CIFAR10_POLICY
    ],
    dtype=[
        ("kind", "u1"),
        ("probability", "f8"),
        ("offset", "f8"),
        ("amount", "f8"),
        ("is_signed", "?"),
        ("interpolation", "u1"),
    ],
)


@dataclass(frozen=True)
class AutoAugmentCifar10:
    """AutoAugment's CIFAR-10 policy (Cubuk et al., 2019) as in the official CMO and NCL code.

    One of 25 sub-policies, uniformly. Unlike torchvision's: rotations are never negated, the fill is grey 128, shears
    are bicubic, translations are not rounded to whole pixels, and solarize starts at 256.
    """

    def plan(self, count: int, size: tuple[int, int], draw: Draw) -> tuple[PlannedOperation, ...]:
        uniform = draw("autoaugment", (count, 5))
        drawn = CIFAR10_STEPS[(uniform[:, 0] * len(CIFAR10_STEPS)).astype(np.int64)]
        amount = np.where(drawn["is_signed"] & (uniform[:, 3:] < 0.5), -drawn["amount"], drawn["amount"])
        argument = drawn["offset"] + amount * _sides(drawn["kind"], size)
        applied = np.where(uniform[:, 1:3] < drawn["probability"], drawn["kind"], np.uint8(Kind.IDENTITY))
        return _columns(applied, argument, drawn["interpolation"], fill=(128, 128, 128))
