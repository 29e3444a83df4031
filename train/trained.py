"""A trained classifier read back from a file, ready to predict: a checkpoint of a run, or a released one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.recipes import RECIPES, DatasetRecipe
from train.assemble import Assembler
from train.checkpoint import read
from train.methods import method_class
from train.methods.base import Method, Setting
from train.models.build import ModelOptions
from train.released import as_plain_network, recognise, state_dict_of, usual_recipe
from train.schedules import Schedule, ScheduleOptions


@dataclass(frozen=True)
class Trained:
    """A network and how to use it.

    Attributes:
        path: its file.
        method: whose `eval_logits` count.
        model: in evaluation mode, on its device.
        recipe: how images are shown to it.
        description: the network in words.
    """

    path: Path
    method: Method
    model: nn.Module
    recipe: DatasetRecipe
    classes: int
    description: str

    def logits(self, images: Tensor) -> Tensor:
        """float32 (batch, classes) from evaluation views, uint8 (batch, height, width, 3)."""
        return self.method.eval_logits(self.model, self.method.setting.assembler.plain(images)).float()


def load_trained(path: Path, device: torch.device, recipe: str | None = None) -> Trained:
    """Read a checkpoint of either kind.

    Args:
        recipe: name of the recipe to evaluate with; by default that of the run, or the usual one of a released network.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is damaged, or its network is unknown.
    """
    content = read(path)
    try:
        if isinstance(content, dict) and "fit" in content:
            return _own(path, content, device, recipe)
        return _released(path, content, device, recipe)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _own(path: Path, content: dict[str, Any], device: torch.device, recipe: str | None) -> Trained:
    fit: dict[str, Any] = content["fit"]
    sections = {section: _section(fit, section) for section in ("model", "method")}
    name = sections["method"].pop("name")
    method_type = method_class(name)
    chosen = _recipe(recipe or fit["recipe"])
    method = method_type(method_type.Options(**sections["method"]), _setting(fit["classes"], chosen, device))
    # Never fetch weights that the checkpoint replaces.
    model = method.build_model(ModelOptions(**{**sections["model"], "pretrained": False}), seed=0)
    model.load_state_dict(content["model"])
    description = f"{name} {sections['model']['name']}, {fit['classes']} classes"
    return Trained(path, method, _ready(model, device), chosen, fit["classes"], description)


def _released(path: Path, content: Any, device: torch.device, recipe: str | None) -> Trained:
    state = state_dict_of(content)
    plain = as_plain_network(state)
    architecture = recognise(plain)
    with torch.device("meta"):  # no initial weights: all of them are replaced
        model = architecture.build()
    model.load_state_dict(plain, assign=True)
    chosen = _recipe(recipe or usual_recipe(state, architecture))
    vanilla = method_class("vanilla")
    method = vanilla(vanilla.Options(), _setting(architecture.classes, chosen, device))
    description = f"released {architecture.name}, {architecture.head} head, {architecture.classes} classes"
    return Trained(path, method, _ready(model, device), chosen, architecture.classes, description)


def _recipe(name: str) -> DatasetRecipe:
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown; expected one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]


def _section(fit: dict[str, Any], section: str) -> dict[str, Any]:
    prefix = f"{section}."
    return {name.removeprefix(prefix): value for name, value in fit.items() if name.startswith(prefix)}


def _setting(classes: int, recipe: DatasetRecipe, device: torch.device) -> Setting:
    """A setting to predict in: training counts and schedule matter to losses alone."""
    schedule = Schedule(ScheduleOptions(), base_lr=0.0, epochs=1)
    counts, assembler = np.ones(classes, dtype=np.int64), Assembler.create(recipe.normalization, device)
    return Setting(counts, recipe.train, recipe.evaluation, schedule, assembler, device)


def _ready(model: nn.Module, device: torch.device) -> nn.Module:
    return model.eval().to(device).to(memory_format=torch.channels_last)
