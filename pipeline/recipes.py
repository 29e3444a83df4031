"""Named recipes of views: how each data set is augmented for training, shown for evaluation, and normalised.

The names without a suffix are the standard recipes of the official CMO code (Park et al., CVPR 2022), "-long" those of
its long schedules, where a fair coin per image picks one of two pipelines.
"""

from dataclasses import dataclass

from pipeline.operations import ColorJitter
from pipeline.views import OneOf, PaddedCrop, RandomResizedCrop, ResizeCenterCrop, View, Whole


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation a channel (RGB), for pixel values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class DatasetRecipe:
    """The views of a data set: `train` is drawn, `evaluation` is not."""

    name: str
    train: View | OneOf
    evaluation: View
    normalization: Normalization


CIFAR_STATISTICS = Normalization((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
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

RECIPES = {
    recipe.name: recipe
    for recipe in (
        # A mirrored digit is another sign: no flip.
        DatasetRecipe("digits", View(PaddedCrop(32, padding=4)), WHOLE_32, HALF),
        DatasetRecipe("cifar", CROP_32, WHOLE_32, CIFAR_STATISTICS),
        DatasetRecipe("imagenet", JITTERED_224, CENTER_224, IMAGENET_STATISTICS),
        DatasetRecipe("inat", CROP_224, CENTER_224, INAT_STATISTICS),
    )
}
