"""User-defined presets: a named preset with a different image size or normalisation, or a YAML file.

A file starts from a named preset and lists the differences; crops and operations are named as in `view.py`,
`operations.py` and `policies.py`:

    base: imagenet
    name: birds
    image_size: 160
    mean: [0.49, 0.50, 0.43]
    std: [0.22, 0.22, 0.25]
    train:
      geometry: {RandomResizedCrop: {size: 160, scale: [0.3, 1.0]}}
      flip_probability: 0.5
      operations: [{ColorJitter: {brightness: 0.4}}, {RandAugment: {}}]
    evaluation:
      geometry: {ResizeCenterCrop: {resize: 184, size: 160}}
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.views.operations import ColorJitter, Cutout, GaussianBlur, Grayscale, Rotation
from pipeline.views.policies import AutoAugmentCifar10, RandAugment
from pipeline.views.presets import PRESETS, Normalization, Preset
from pipeline.views.view import OneOf, PaddedCrop, RandomResizedCrop, ResizeCenterCrop, View, Whole

_GEOMETRIES = {kind.__name__: kind for kind in (RandomResizedCrop, PaddedCrop, ResizeCenterCrop, Whole)}
_OPERATIONS = {
    kind.__name__: kind
    for kind in (ColorJitter, Grayscale, GaussianBlur, Rotation, Cutout, RandAugment, AutoAugmentCifar10)
}
_KEYS = {"base", "name", "image_size", "mean", "std", "train", "second", "evaluation"}
_VIEW_KEYS = {"geometry", "flip_probability", "operations"}


def make_preset(
    preset: str | Mapping[str, Any],
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preset:
    """A preset by name, from a YAML file or from `Preset.record`, with these changes.

    Args:
        image_size: side of the network's input in pixels; crops keep their proportions.
        mean, std: for each of red, green and blue, for pixel values from 0 to 1.

    Raises:
        ValueError: there is no such preset, or the file has entries that this module's docstring does not allow.
        FileNotFoundError: the YAML file does not exist.
    """
    changes = {"image_size": image_size, "mean": mean, "std": std}
    given = {name: value for name, value in changes.items() if value is not None}
    content = {**_content(preset), **{k: list(v) if not isinstance(v, int) else v for k, v in given.items()}}
    if set(content) == {"base"}:
        return PRESETS[content["base"]]
    where = preset if isinstance(preset, str) else "preset"
    try:
        return _changed(PRESETS[content["base"]], content)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{where}: cannot be read as a preset: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _content(preset: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(preset, Mapping):
        content: Any = dict(preset)
    elif preset in PRESETS:
        return {"base": preset}
    elif preset.endswith((".yaml", ".yml")):
        try:
            content = yaml.safe_load(Path(preset).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{preset}: not YAML: {error}") from error
    else:
        similar = difflib.get_close_matches(preset, PRESETS, 2)
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise ValueError(
            f"data.preset {preset!r} is unknown; expected one of {', '.join(sorted(PRESETS))}, or a .yaml file{hint}"
        )
    if not isinstance(content, dict) or content.get("base") not in PRESETS:
        raise ValueError(f"{preset}: expected a mapping with `base:`, one of {', '.join(sorted(PRESETS))}")
    if unknown := set(content) - _KEYS:
        raise ValueError(
            f"{preset}: unknown {', '.join(sorted(map(str, unknown)))}; expected {', '.join(sorted(_KEYS))}"
        )
    return content


def _changed(base: Preset, content: Mapping[str, Any]) -> Preset:
    views = {
        role: _view(content[role]) if role in content else getattr(base, role)
        for role in ("train", "second", "evaluation")
    }
    if (size := content.get("image_size")) is not None:
        views = {role: None if view is None else _resized(view, size) for role, view in views.items()}
    sizes = {view.size for view in views.values() if view is not None}
    if len(sizes) > 1:
        raise ValueError(f"the views have {sorted(sizes)} pixels, expected one size; set it with image_size")
    normalization = changed_normalization(base.normalization, content.get("mean"), content.get("std"))
    name = content.get("name", f"{base.name}, changed")
    return Preset(name, views["train"], views["evaluation"], normalization, views["second"], changes=dict(content))


def changed_normalization(
    base: Normalization, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalization:
    """The same with another mean or standard deviation, where they are given.

    Raises:
        ValueError: they are not three numbers from 0 to 1 each.
    """
    mean, std = base.mean if mean is None else mean, base.std if std is None else std
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(0 <= value <= 1 for value in values) or (name == "std" and min(values) <= 0):
            raise ValueError(f"{name} is {list(values)}, expected three numbers from 0 to 1, std above 0")
    return Normalization(tuple(map(float, mean)), tuple(map(float, std)))  # type: ignore[arg-type]


def _view(content: Mapping[str, Any]) -> View:
    if unknown := set(content) - _VIEW_KEYS:
        raise ValueError(f"unknown {', '.join(sorted(unknown))} in a view; expected {', '.join(sorted(_VIEW_KEYS))}")
    operations = tuple(_made(_OPERATIONS, one) for one in content.get("operations", ()))
    return View(_made(_GEOMETRIES, content["geometry"]), float(content.get("flip_probability", 0.0)), operations)


def _made(kinds: Mapping[str, Any], content: Mapping[str, Any] | str) -> Any:
    """`{Name: {field: value}}` as the dataclass of that name."""
    ((name, values),) = content.items() if isinstance(content, Mapping) else ((content, {}),)
    if name not in kinds:
        raise ValueError(f"{name!r} is unknown; expected one of {', '.join(kinds)}")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in (values or {}).items()}
    return kinds[name](**plain)


def _resized(view: View | OneOf, size: int) -> View | OneOf:
    """The view at a different size, with margins, resizing and cut-outs scaled in proportion."""
    if isinstance(view, OneOf):
        first, second = (_resized(branch, size) for branch in view.views)
        assert isinstance(first, View) and isinstance(second, View)
        return OneOf((first, second))
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"image_size is {size!r}, expected a whole number of pixels of at least 1")
    factor, geometry = size / view.size, view.geometry
    match geometry:
        case ResizeCenterCrop():
            geometry = ResizeCenterCrop(max(size, round(geometry.resize * factor)), size)
        case PaddedCrop():
            geometry = replace(geometry, size=size, padding=round(geometry.padding * factor))
        case _:
            geometry = replace(geometry, size=size)
    operations = tuple(
        replace(one, side=max(1, round(one.side * factor))) if isinstance(one, Cutout) else one
        for one in view.operations
    )
    return replace(view, geometry=geometry, operations=operations)
