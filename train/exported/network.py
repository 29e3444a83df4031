"""One module that maps images to logits as an evaluation does, for any method."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from pipeline.views.presets import HALF, WHOLE_32
from train.checkpoints.trained import Trained
from train.inputs.input_builder import InputBuilder
from train.methods.base import MethodContext
from train.methods.method import Method
from train.methods.registry import find_method
from train.models.build import ModelOptions
from train.schedules import Schedule, ScheduleOptions

ARCHITECTURE = "longtail_network"


class ExportedNetwork(nn.Module):
    """Normalised images (batch, 3, height, width) to the logits that an evaluation ranks, float32 (batch, classes).

    For experts this is the mean of their logits. Built only from names and options, so timm can build it again.
    """

    def __init__(
        self, method: str, method_options: Mapping[str, Any], model: Mapping[str, Any], num_classes: int, **unused: Any
    ):
        super().__init__()
        self.num_classes = num_classes
        self.method = _method(method, method_options, num_classes)
        # A second stage requires a first one; building does not read it, and the weights are loaded next.
        self.network = self.method.build_model(ModelOptions(**model, init_from=Path("exported")), seed=0)

    def forward(self, images: Tensor) -> Tensor:
        return self.method.objective.eval_logits(self.network, images).float()


def network_arguments(trained: Trained) -> dict[str, Any]:
    """The arguments of `ExportedNetwork`, as plain containers for JSON."""
    options = {name: value for name, value in asdict(trained.method.options).items() if value is not None}
    model = {name: value for name, value in asdict(trained.model_options).items() if value is not None}
    model |= {"pretrained": False}
    for started_from in ("init_from", "weights"):
        model.pop(started_from, None)
    return {"method": trained.method_name, "method_options": options, "model": model}


def exported_network(trained: Trained) -> ExportedNetwork:
    """A checkpoint's network, in evaluation mode on the CPU, with contiguous weights."""
    network = ExportedNetwork(**network_arguments(trained), num_classes=trained.classes)
    weights = {name: value.detach().cpu().contiguous() for name, value in trained.model.state_dict().items()}
    network.network.load_state_dict(weights)
    return network.eval()


def _method(name: str, options: Mapping[str, Any], classes: int) -> Method:
    """A method for prediction; counts, views and schedule only affect training."""
    device = torch.device("cpu")
    schedule = Schedule(ScheduleOptions(), base_lr=0.0, epochs=1)
    counts, builder = np.ones(classes, dtype=np.int64), InputBuilder.create(HALF, device)
    spec = find_method(name, options)
    return spec.make(spec.Options(**options), MethodContext(counts, WHOLE_32, WHOLE_32, schedule, builder, device))


@register_model
def longtail_network(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """For `timm.create_model("local-dir:…")`: networks that timm does not know."""
    network: nn.Module = build_model_with_cfg(ExportedNetwork, ARCHITECTURE, pretrained, **kwargs)
    return network


default_cfgs = generate_default_cfgs({f"{ARCHITECTURE}.untrained": {"num_classes": 1000, "input_size": (3, 224, 224)}})
