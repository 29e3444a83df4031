"""The folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads: model.safetensors and config.json."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
from safetensors.torch import save_file
from torch import nn

from pipeline.views.presets import Preset
from pipeline.views.view import ResizeCenterCrop
from train.checkpoints.trained import Trained
from train.exported.checking import CheckFailedError, check_equal, random_images
from train.exported.network import ARCHITECTURE, ExportedNetwork, network_arguments
from train.models.build import made_for_size
from train.models.tuning import fold_lora

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_timm_folder(
    folder: Path, trained: Trained, network: ExportedNetwork, names: Sequence[str], samples_per_class: np.ndarray | None
) -> bool:
    """Write both files, load them as timm does, and compare.

    Returns whether timm alone can load the folder, because it is a timm architecture with a plain classifier. Others
    need `import train.exported.network` first, which registers the architecture with timm.

    Raises:
        CheckFailedError: the output of timm's network differs from the original's.
    """
    size = trained.preset.evaluation.size
    if timm.is_model(trained.model_options.name):
        plain = copy.deepcopy(network.network)
        fold_lora(plain)
        size_given = made_for_size(trained.model_options)
        _write(folder, plain, _config(trained, trained.model_options.name, size_given, names, samples_per_class))
        try:
            check_equal("timm", network, loaded(folder), random_images(size))
            return True
        except (RuntimeError, KeyError, TypeError, CheckFailedError):
            pass  # a different classifier, experts, or a backbone that depends on more than its name
    arguments = network_arguments(trained)
    _write(folder, network, _config(trained, ARCHITECTURE, arguments, names, samples_per_class))
    check_equal("timm", network, loaded(folder), random_images(size))
    return False


def loaded(folder: Path) -> nn.Module:
    """The network that `timm.create_model` creates from a folder."""
    network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return network.eval()


def _write(folder: Path, network: nn.Module, config: dict[str, Any]) -> None:
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON restores the original


def _config(
    trained: Trained,
    architecture: str,
    model_args: dict[str, Any],
    names: Sequence[str],
    samples_per_class: np.ndarray | None,
) -> dict[str, Any]:
    """config.json: timm's fields, and everything else under "longtail"."""
    own: dict[str, Any] = {"preset": trained.preset.name, "network": trained.description}
    if samples_per_class is not None:
        own["samples_per_class"] = samples_per_class.tolist()
        own["class_prior"] = (samples_per_class / samples_per_class.sum()).tolist()
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": trained.classes,
        "model_args": {**model_args, "num_classes": trained.classes} if model_args else {},
        "label_names": list(names),
        "pretrained_cfg": {**preprocessing(trained.preset), "num_classes": trained.classes},
        "longtail": own,
    }
    if architecture != ARCHITECTURE:
        registered = timm.get_pretrained_cfg(architecture)
        if registered is not None:
            config["pretrained_cfg"] |= {"first_conv": registered.first_conv, "classifier": registered.classifier}
    return config


def preprocessing(preset: Preset) -> dict[str, Any]:
    """The evaluation's image preparation, in timm's terms."""
    view, normalization = preset.evaluation, preset.normalization
    geometry = view.geometry
    is_crop = isinstance(geometry, ResizeCenterCrop)
    return {
        "input_size": [3, view.size, view.size],
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "interpolation": view.resampling,
        "crop_pct": view.size / geometry.resize if isinstance(geometry, ResizeCenterCrop) else 1.0,
        "crop_mode": "center" if is_crop else "squash",
        "fixed_input_size": False,
    }
