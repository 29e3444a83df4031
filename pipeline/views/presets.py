"""Named presets: each data set's training augmentation, evaluation crop and normalisation.

Names without a suffix are the standard presets of the official CMO code (Park et al., CVPR 2022), "-long" those of its
long schedules, in which a fair coin per image picks one of two pipelines.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.views.operations import ColorJitter, Cutout, GaussianBlur, Grayscale, Rotation
from pipeline.views.policies import AutoAugmentCifar10, RandAugment
from pipeline.views.view import OneOf, PaddedCrop, RandomResizedCrop, ResizeCenterCrop, View, Whole


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation per channel (RGB), for pixel values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Preset:
    """The views of a data set: `train` is random, `evaluation` is not.

    `second` is the other view for methods that use two different views of a training image; None: the same as `train`.
    `plain` is the non-random view of training images, for class means and cached features; `crops` are the views that
    a test-time ensemble averages over.
    `changes`: how a user-defined preset differs from a named one, see `own_presets.py`.
    """

    name: str
    train: View | OneOf
    evaluation: View
    normalization: Normalization
    second: View | OneOf | None = None
    plain: View | None = None
    crops: tuple[View, ...] = ()
    changes: Mapping[str, Any] | None = None

    @property
    def record(self) -> str | dict[str, Any]:
        """What a checkpoint stores and `own_presets.make_preset` accepts: the name, or all changes."""
        return self.name if self.changes is None else dict(self.changes)


# The methods were published with different CIFAR statistics; reproducing a number requires its own.
CIFAR_STATISTICS = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
GLMC_CIFAR10_STATISTICS = Normalization((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768))
METASAUG_CIFAR_STATISTICS = Normalization((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255))
IMAGENET_STATISTICS = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INAT_STATISTICS = Normalization((0.466, 0.471, 0.380), (0.195, 0.194, 0.192))
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

FLIP = 0.5
JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)

WHOLE_32 = View(Whole(32))
CENTER_224 = View(ResizeCenterCrop(resize=256, size=224))

CROP_32 = View(PaddedCrop(32, padding=4), FLIP)
CROP_224 = View(RandomResizedCrop(224), FLIP)
JITTERED_224 = View(RandomResizedCrop(224), FLIP, (JITTER,))

# The four pipelines of the long presets, named as in the NCL and GLMC code. NCL on CIFAR uses AUTO_32 and SIM_32 of one
# image as two views; CMO's "-long" presets pick one of the pair by a coin.
AUTO_32 = View(PaddedCrop(32, padding=4), FLIP, (AutoAugmentCifar10(), Cutout(16)))
SIM_32 = View(
    RandomResizedCrop(32, scale=(0.2, 1.0)),
    FLIP,
    (ColorJitter(0.4, 0.4, 0.4, 0.1, probability=0.8), Grayscale(0.2), GaussianBlur()),
)
RANDNCLS_224 = View(RandomResizedCrop(224), FLIP, (JITTER, RandAugment()))
RANDNCLS_224_3, RANDNCLS_224_5 = (View(RandomResizedCrop(224), FLIP, (JITTER, RandAugment(count))) for count in (3, 5))
STACK_224, STACK_224_3, STACK_224_5 = (
    View(RandomResizedCrop(224), FLIP, (JITTER, Grayscale(0.2), GaussianBlur(), RandAugment(count)))
    for count in (2, 3, 5)
)
SIM_224 = View(RandomResizedCrop(224), FLIP, (JITTER, Grayscale(0.2), GaussianBlur()))

PRESETS = {
    preset.name: preset
    for preset in (
        # No flip: a mirrored digit is a different symbol.
        Preset("digits", View(PaddedCrop(32, padding=4)), WHOLE_32, HALF),
        Preset("cifar", CROP_32, WHOLE_32, CIFAR_STATISTICS),
        Preset("imagenet", JITTERED_224, CENTER_224, IMAGENET_STATISTICS),
        Preset("inat", CROP_224, CENTER_224, INAT_STATISTICS),
        Preset("cifar-long", OneOf((AUTO_32, SIM_32)), WHOLE_32, CIFAR_STATISTICS),
        Preset("imagenet-long", OneOf((RANDNCLS_224, SIM_224)), CENTER_224, IMAGENET_STATISTICS),
        Preset("inat-long", OneOf((RANDNCLS_224, SIM_224)), CENTER_224, INAT_STATISTICS),
        # RIDE (Wang et al., ICLR 2021) rotates only on CIFAR.
        Preset("cifar-ride", replace(CROP_32, operations=(Rotation(15.0),)), WHOLE_32, CIFAR_STATISTICS),
        # GLMC (Du et al., CVPR 2023); on CIFAR-100 it is "cifar".
        Preset("cifar10-glmc", CROP_32, WHOLE_32, GLMC_CIFAR10_STATISTICS),
        Preset("imagenet-sim", SIM_224, CENTER_224, IMAGENET_STATISTICS),
        Preset("inat-sim", SIM_224, CENTER_224, INAT_STATISTICS),
        # MetaSAug (Li et al., CVPR 2021); on ImageNet-LT and iNaturalist it is "imagenet" and "inat".
        Preset(
            "cifar-metasaug", View(PaddedCrop(32, padding=4, mode="reflect"), FLIP), WHOLE_32, METASAUG_CIFAR_STATISTICS
        ),
        # NCL (Li et al., CVPR 2022).
        Preset("cifar-auto", AUTO_32, WHOLE_32, CIFAR_STATISTICS, second=SIM_32),
        Preset("imagenet-randncls", RANDNCLS_224, CENTER_224, IMAGENET_STATISTICS, second=SIM_224),
        Preset("inat-randncls", RANDNCLS_224, CENTER_224, INAT_STATISTICS, second=SIM_224),
        Preset("places-sim", SIM_224, CENTER_224, IMAGENET_STATISTICS),
        # PaCo (Cui et al., ICCV 2021), by RandAugment's operations, and GPaCo, which draws as many in both views.
        Preset("imagenet-stack2", STACK_224, CENTER_224, IMAGENET_STATISTICS, second=SIM_224),
        Preset("imagenet-stack3", STACK_224_3, CENTER_224, IMAGENET_STATISTICS, second=SIM_224),
        Preset("imagenet-gpaco2", RANDNCLS_224, CENTER_224, IMAGENET_STATISTICS, second=STACK_224),
        Preset("imagenet-gpaco3", RANDNCLS_224_3, CENTER_224, IMAGENET_STATISTICS, second=STACK_224_3),
        Preset("imagenet-gpaco5", RANDNCLS_224_5, CENTER_224, IMAGENET_STATISTICS, second=STACK_224_5),
        # MiSLAS (Zhong et al., CVPR 2021) jitters on iNaturalist; BBN (Zhou et al., CVPR 2020) has ImageNet's numbers.
        Preset("inat-jitter", JITTERED_224, CENTER_224, INAT_STATISTICS),
        Preset("inat-imagenet-statistics", CROP_224, CENTER_224, IMAGENET_STATISTICS),
    )
}
