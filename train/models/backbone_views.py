"""Presets that follow the backbone: image size, filter, mean and standard deviation are those of its pretraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.views.own_presets import changed_normalization, make_preset
from pipeline.views.presets import FLIP, Normalization, Preset
from pipeline.views.view import (
    AnnealedSquareCrop,
    Corner,
    RandomResizedCrop,
    Resampling,
    ResizeCenterCrop,
    ResizeCornerCrop,
    View,
)

if TYPE_CHECKING:  # with timm, which takes seconds: the names of the presets do not need it
    from train.models.build import ModelOptions

# Preset name → the view of training images; all have the same evaluation view.
BACKBONE_PRESETS = {
    "backbone": "random resized crop and flip",
    "backbone-mda": "a square that grows with the epochs",
    "backbone-plain": "resize and centre crop, not random",
}
CORNERS: tuple[Corner, ...] = ("top_left", "top_right", "bottom_left", "bottom_right")
CROPS_MARGIN = 24  # not a multiple of the patch size, so patch borders differ between the five crops


def find_preset(
    name: str | Mapping[str, Any],
    model: ModelOptions,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preset:
    """A preset from `own_presets.make_preset`, or one that follows the backbone.

    Raises:
        ValueError: the name is unknown, or the backbone does not specify its input.
        FileNotFoundError: the YAML file does not exist.
    """
    if not isinstance(name, str) and name.get("base") in BACKBONE_PRESETS:  # what `Preset.record` said
        mean, std = name.get("mean"), name.get("std")
        name = str(name["base"])
    if not isinstance(name, str) or name not in BACKBONE_PRESETS:
        return make_preset(name, image_size, mean, std)
    if not model.is_timm:
        raise ValueError(
            f"preset {name} follows a timm backbone, but model.name is {model.name}; choose another preset"
        )
    import timm  # imported here because it takes seconds, and most presets do not need it

    config = timm.get_pretrained_cfg(model.name)
    size = model.image_size or config.input_size[-1]
    # timm's own transforms support a few more filters; torchvision and Pillow use the same names for these two.
    resampling: Resampling = "bilinear" if config.interpolation == "bilinear" else "bicubic"
    plain = View(ResizeCenterCrop(size, size), resampling=resampling)
    train = {
        "backbone": View(RandomResizedCrop(size), FLIP, resampling=resampling),
        "backbone-mda": View(AnnealedSquareCrop(size), resampling=resampling),
        "backbone-plain": plain,
    }[name]
    corners = (View(ResizeCornerCrop(size + CROPS_MARGIN, size, where), resampling=resampling) for where in CORNERS)
    centre = View(ResizeCenterCrop(size + CROPS_MARGIN, size), resampling=resampling)
    given = {key: list(values) for key, values in (("mean", mean), ("std", std)) if values is not None}
    return Preset(
        name,
        train,
        View(ResizeCenterCrop(size + size // 7, size), resampling=resampling),
        changed_normalization(Normalization(tuple(config.mean), tuple(config.std)), mean, std),
        plain=plain,
        crops=(*corners, centre),
        changes={"base": name, **given} if given else None,
    )
