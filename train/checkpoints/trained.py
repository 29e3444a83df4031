"""A trained classifier loaded from a file, ready to predict: a run's checkpoint, or a released one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.views.presets import Preset
from pipeline.views.view import View
from train.checkpoints.files import check_backbone, checkpoint_file, counting_weights, load, load_stored_part, read
from train.checkpoints.pretrained import find_pretrained, load_pretrained
from train.checkpoints.released import evaluated_weights, recognise, state_dict_of, usual_preset
from train.inputs.input_builder import InputBuilder
from train.methods.base import MethodContext
from train.methods.method import Method
from train.methods.registry import find_method
from train.models.backbone_views import find_preset
from train.models.build import ModelOptions
from train.schedules import Schedule, ScheduleOptions


@dataclass(frozen=True)
class Trained:
    """A network and how to use it.

    Attributes:
        path: its file.
        method: the method that provides `eval_logits`.
        model: in evaluation mode, on its device.
        preset: how its input images are prepared.
        description: the network in words.
        class_names: names of its outputs, in order; None for a released network, whose file has none.
        samples_per_class: int64 (classes,), of its training set; None likewise.
        settings: everything that determined the weights, except the seed; empty for a released file.
        method_name, model_options: what the network is built from.
    """

    path: Path
    method: Method
    model: nn.Module
    preset: Preset
    classes: int
    description: str
    class_names: tuple[str, ...] | None = None
    samples_per_class: np.ndarray | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    method_name: str = "vanilla"
    model_options: ModelOptions = field(default_factory=ModelOptions)

    @property
    def corrects_prior(self) -> bool:
        """Whether training already corrected the logits for the class sizes."""
        chosen = {name: self.settings.get(f"method.{name}") for name in ("loss", "rebalance", "objective")}
        by_objective = chosen["objective"] in ("ncl", "lade", "paco", "pc_softmax")
        return chosen["loss"] in ("bs", "la") or chosen["rebalance"] == "bs" or by_objective

    def views(self, crops: int) -> tuple[View, ...]:
        """How an image is shown to have its logits averaged: as one crop, or as five.

        Raises:
            ValueError: the preset has no five crops.
        """
        if crops == 1:
            return (self.preset.evaluation,)
        if not self.preset.crops:
            raise ValueError(f"five crops need a preset that follows the backbone; {self.preset.name} has none")
        return self.preset.crops

    def logits(self, images: Tensor) -> Tensor:
        """float32 (batch, classes) from evaluation views, uint8 (batch, height, width, 3)."""
        return self.method.objective.eval_logits(self.model, self.method.context.input_builder.plain(images)).float()


def load_trained(path: Path, device: torch.device, preset: str | None = None, weights: Path | None = None) -> Trained:
    """Read a checkpoint of either kind.

    Args:
        path: its file, or a run folder, which means its best weights.
        preset: name of the preset for evaluation; by default that of the run, or the usual one for a released network.
        weights: new location of the backbone's weights, if the checkpoint has only tuned tensors.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is damaged, or its network is unknown.
    """
    path = checkpoint_file(path)
    content = read(path)
    is_ours = isinstance(content, dict) and "format_version" in content
    if is_ours:
        content = load(path)
    try:
        if is_ours:
            return _own(path, content, device, preset, weights)
        return _released(path, content, device, preset)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _own(
    path: Path, content: dict[str, Any], device: torch.device, preset: str | None, weights: Path | None
) -> Trained:
    fit: dict[str, Any] = content["fit"]
    sections = {section: _section(fit, section) for section in ("model", "method")}
    name = sections["method"].pop("name")
    model_options = ModelOptions(**sections["model"])
    chosen = find_preset(preset or fit["preset"], model_options)
    method = _method(name, sections["method"], fit["classes"], chosen, device)
    model = method.build_model(model_options, seed=0)
    if "weights_sha256" in fit:
        here = model_options if weights is None else replace(model_options, weights=weights, pretrained=False)
        pretrained = find_pretrained(here)
        check_backbone(path, fit["weights_sha256"], None if pretrained is None else pretrained.sha256, "--weights")
        assert pretrained is not None
        load_pretrained(model, pretrained, method.stage.inherits)
        load_stored_part(model, counting_weights(content), method.stage.stores)
    else:
        model.load_state_dict(counting_weights(content))
    return Trained(
        path,
        method,
        _ready(model, device),
        chosen,
        fit["classes"],
        f"{name} {sections['model']['name']}, {fit['classes']} classes",
        tuple(content["classes"]["names"]),
        np.array(content["classes"]["samples"], dtype=np.int64),
        {name: value for name, value in fit.items() if name != "plan.seed"},
        name,
        model_options,
    )


def _released(path: Path, content: Any, device: torch.device, preset: str | None) -> Trained:
    state = state_dict_of(content)
    weights = evaluated_weights(state)
    architecture = recognise(weights)
    chosen = find_preset(preset or usual_preset(state, architecture), architecture.model)
    method = _method(architecture.method, architecture.options, architecture.classes, chosen, device)
    with torch.device("meta"):  # no initial weights, because all of them are replaced
        model = method.build_model(architecture.model, seed=0)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights do not exactly match {architecture.describe()}: {error}") from error
    description = f"released {architecture.describe()}"
    return Trained(
        path,
        method,
        _ready(model, device),
        chosen,
        architecture.classes,
        description,
        method_name=architecture.method,
        model_options=architecture.model,
    )


def _method(name: str, options: Mapping[str, Any], classes: int, preset: Preset, device: torch.device) -> Method:
    """A method for prediction: training counts and schedule only affect losses."""
    schedule = Schedule(ScheduleOptions(), base_lr=0.0, epochs=1)
    counts, input_builder = np.ones(classes, dtype=np.int64), InputBuilder.create(preset.normalization, device)
    context = MethodContext(counts, preset.train, preset.evaluation, schedule, input_builder, device)
    method = find_method(name, options)
    return method.make(method.Options(**options), context)


def _section(fit: dict[str, Any], section: str) -> dict[str, Any]:
    prefix = f"{section}."
    return {name.removeprefix(prefix): value for name, value in fit.items() if name.startswith(prefix)}


def _ready(model: nn.Module, device: torch.device) -> nn.Module:
    return model.eval().to(device).to(memory_format=torch.channels_last)
