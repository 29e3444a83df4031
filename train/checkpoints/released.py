"""Checkpoint files of the official code of CMO, LDAM, IB, GLMC, MetaSAug, RIDE, NCL, BBN and PaCo.

Such a file is a dictionary with a `state_dict` (the names of torchvision's ResNets or of ResNet-32, often with the
"module." prefix of a data-parallel wrapper) and little else that is reliable; neither backbone nor number of classes is
recorded. Both follow from the shapes, as do the experts of RIDE and NCL, whose names are those of train/models/ride.py
and train/models/ncl.py.

Not everything in a file is evaluated. MetaSAug on large data sets and the classifier-balancing project, which provides
its first stages, store features and classifier separately. GLMC has two classifiers, of which the re-balanced one is
evaluated. RIDE's routing, trained in a second stage to save experts, is ignored: all experts vote. NCL's contrastive
branch has projections, momentum copies and queues in addition to the classifiers, as have PaCo and GPaCo. BBN has two
branches and one classifier.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from train.models.build import ModelOptions
from train.models.resnet_stem32 import LAYOUTS as STEM32_LAYOUTS

_WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")  # prefixes of data-parallel training and torch.compile
_INAT18_CLASSES = 8142
_INAT17_CLASSES = 5089
_ROUTING = ("backbone.expert_help_pred",)
_CONTRASTIVE_BRANCH = ("classifier.", "backbone_MA.", "classifier_MA.", "MOCO.")
_GLMC_HEADS = ("fc.", "projection_head.", "contrast_head.")
_GPACO = "encoder_q.fc.4.weight"
_FIRST_OF_RIDE = re.compile(r"backbone\.(layer\d)s\.0\.")

# Blocks per stage, rows of the first block's first convolution, input channels per group of its second → timm's name.
_BACKBONES = {
    ((3, 4, 6, 3), 64, 64): "resnet50",
    ((3, 4, 23, 3), 64, 64): "resnet101",
    ((3, 8, 36, 3), 64, 64): "resnet152",
    ((3, 4, 6, 3), 128, 128): "wide_resnet50_2",
    ((3, 4, 6, 3), 128, 4): "resnext50_32x4d",
}
_RESNET32_BLOCKS = (5, 5, 5)


@dataclass(frozen=True)
class Architecture:
    """The network that a checkpoint's names and shapes imply.

    Args:
        method: name of the method that evaluates such a network, vanilla for one with a single classifier.
        options: the method's options on which the network depends.
        model: the backbone.
        classes: number of classes.
    """

    method: str
    options: Mapping[str, Any]
    model: ModelOptions
    classes: int

    def describe(self) -> str:
        """The network in words."""
        options = ", ".join(f"{name} {value}" for name, value in self.options.items())
        width = "" if self.model.width == ModelOptions.width else f" of width {self.model.width}"
        return (
            f"{self.model.name}{width}, {self.classes} classes, evaluated as {self.method}{options and f' ({options})'}"
        )


@dataclass(frozen=True)
class _Backbone:
    """features: size of the input of its classifier (with this name) in a plain network."""

    model: ModelOptions
    features: int
    classifier: str


def state_dict_of(content: Any) -> dict[str, Tensor]:
    """The weights in the result of `files.read`, names without the wrapper's prefix; other fields are ignored.

    Raises:
        ValueError: it contains no weights.
    """
    state = None
    if isinstance(content, dict):
        state = content.get("state_dict", content.get("state_dict_best", content))
    if isinstance(state, dict) and all(isinstance(part, dict) for part in state.values()):
        state = {name: value for part in state.values() for name, value in part.items()}
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("expected a dictionary of tensors, alone or under the key 'state_dict'")
    return {_WRAPPERS.sub("", name): value for name, value in state.items()}


def evaluated_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that an evaluation needs, float32, with the names of the network that `recognise` returns.

    MetaSAug's batch norms have no batch counters; with a momentum, as here, these have no effect.

    Args:
        state: from `state_dict_of`.
    """
    unused, old, new = _layout(state)
    needed = {
        new + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in state.items()
        if not name.startswith(unused)
    }
    # Some of RIDE's files are reported to be 16-bit.
    needed = {name: value.float() if value.is_floating_point() else value for name, value in needed.items()}
    for name in [name for name in needed if name.endswith(".running_mean")]:
        counter = f"{name.removesuffix('running_mean')}num_batches_tracked"
        needed.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return needed


def _layout(state: dict[str, Tensor]) -> tuple[tuple[str, ...], str, str]:
    """Prefixes of tensors that are not evaluated, and of the evaluated classifiers: in the file, in the network."""
    if "fc_cb.weight" in state:
        is_resnet32 = "layer1.0.conv1.weight" in state and "layer4.0.conv1.weight" not in state
        return _GLMC_HEADS, "fc_cb.", "linear." if is_resnet32 else "fc."
    if "classifier_ce.0.weight" in state:
        return _CONTRASTIVE_BRANCH, "classifier_ce.", "classifier."
    if _GPACO in state:
        return ("encoder_k.", "linear_k."), "", ""
    return (*_ROUTING, "linear_k."), "", ""


def usual_preset(state: dict[str, Tensor], architecture: Architecture) -> str:
    """Name of the preset that the weights' authors used for evaluation, as far as the weights identify them.

    Args:
        state: from `state_dict_of`.
    """
    if not _is_for_32_pixels(architecture.model):
        if architecture.classes not in (_INAT17_CLASSES, _INAT18_CLASSES):
            return "imagenet"
        return "inat-imagenet-statistics" if architecture.method == "bbn" else "inat"
    if "fc_cb.weight" in state:
        return "cifar10-glmc" if architecture.classes == 10 else "cifar"
    return "cifar" if any(name.endswith("num_batches_tracked") for name in state) else "cifar-metasaug"


def recognise(state: dict[str, Tensor]) -> Architecture:
    """The network that these weights belong to.

    Args:
        state: from `evaluated_weights`.

    Raises:
        ValueError: the network is unknown.
    """
    if "backbone.linears.0.weight" in state:
        return _recognise_ride(state)
    if "backbone.0.conv1.weight" in state:
        return _recognise_ncl(state)
    if "backbone.cb_block.conv1.weight" in state:
        return _recognise_bbn(state)
    if "encoder_q.conv1.weight" in state:
        return _recognise_paco(state)
    backbone = _recognise_backbone(state)
    classes, head = _classifier(state, backbone.classifier, backbone.features)
    # In the official code LDAM uses the cosine classifier, as in method vanilla.
    return Architecture("vanilla", {"loss": "ldam"} if head == "cosine" else {}, backbone.model, classes)


def _recognise_ride(state: dict[str, Tensor]) -> Architecture:
    """The shared stages and the first expert's are a plain backbone, except for the expert's width."""
    one = {_FIRST_OF_RIDE.sub(r"\1.", name).removeprefix("backbone."): value for name, value in state.items()}
    backbone = _recognise_backbone(one)
    features, classes = state["backbone.linears.0.weight"].shape
    reduced = 3 * backbone.features // 4
    if features not in (backbone.features, reduced) or "backbone.linears.0.bias" in state:
        raise ValueError(
            f"backbone.linears.0 has a weight of shape {(features, classes)} and "
            f"{'a' if 'backbone.linears.0.bias' in state else 'no'} bias, expected RIDE's cosine classifier: no bias, "
            f"and a weight ({reduced} or {backbone.features}, classes)"
        )
    options = {"experts": len(_children(state, "backbone.linears.")), "reduced": features == reduced}
    return Architecture("ride", options, backbone.model, classes)


def _recognise_ncl(state: dict[str, Tensor]) -> Architecture:
    """No tensor shows whether classifiers are linear or cosine, and their scale: assume the published runs'."""
    first = "backbone.0."
    one = {name.removeprefix(first): value for name, value in state.items() if name.startswith(first)}
    backbone = _recognise_backbone(one)
    classes, _ = _classifier(state, "classifier.0", backbone.features)
    options: dict[str, Any] = {"experts": len(_children(state, "classifier."))}
    if not _is_for_32_pixels(backbone.model):
        options |= {"head": "cosine", "cosine_scale": 32.0 if classes == _INAT18_CLASSES else 16.0}
    return Architecture("ncl", options, backbone.model, classes)


def _recognise_bbn(state: dict[str, Tensor]) -> Architecture:
    """With its conventional branch as the last block, this is a plain backbone."""
    is_small = not any(name.startswith("backbone.layer4.") for name in state)
    last = "layer3.4." if is_small else "layer4.2."
    one = {name.removeprefix("backbone.").replace("cb_block.", last): value for name, value in state.items()}
    backbone = _recognise_backbone(one)
    classes, _ = _classifier(state, "classifier", 2 * backbone.features)
    return Architecture("bbn", {}, backbone.model, classes)


def _recognise_paco(state: dict[str, Tensor]) -> Architecture:
    """GPaCo's projection ends in layer 4, PaCo's in layer 3."""
    first = "encoder_q."
    one = {
        n.removeprefix(first): v for n, v in state.items() if n.startswith(first) and not n.startswith(f"{first}fc.")
    }
    backbone = _recognise_backbone(one)
    classes, _ = _classifier(state, "linear", backbone.features)
    is_gpaco = _GPACO in state
    last = state[_GPACO if is_gpaco else f"{first}fc.3.weight"]
    options = {"contrast_size": len(last), "key_queue": len(state["queue"])}
    return Architecture("gpaco" if is_gpaco else "paco", options, backbone.model, classes)


def _recognise_backbone(state: dict[str, Tensor]) -> _Backbone:
    blocks = tuple(len(_children(state, f"layer{stage}.")) for stage in (1, 2, 3, 4))
    if blocks == (*_RESNET32_BLOCKS, 0) and "conv1.weight" in state:
        width = len(state["conv1.weight"])
        return _Backbone(ModelOptions("resnet32", width), 4 * width, "linear")
    stem32 = tuple(len(_children(state, f"conv{stage}_x.")) for stage in (2, 3, 4, 5))
    layout = (stem32, "conv2_x.0.residual_function.6.weight" in state)
    for name, known in STEM32_LAYOUTS.items():
        if layout == known:
            return _Backbone(ModelOptions(name), 2048 if layout[1] else 512, "fc")
    first, second = (state.get(f"layer1.0.conv{number}.weight") for number in (1, 2))
    shape = (blocks, len(first), second.shape[1]) if first is not None and second is not None else None
    if shape not in _BACKBONES:
        raise ValueError(
            f"not a ResNet-32 or one of {', '.join([*_BACKBONES.values(), *STEM32_LAYOUTS])}: {blocks} blocks per "
            f"stage, {len(state)} tensors, the first of them {', '.join(list(state)[:3])}"
        )
    return _Backbone(ModelOptions(_BACKBONES[shape]), 2048, "fc")


def _is_for_32_pixels(model: ModelOptions) -> bool:
    return model.name == "resnet32" or model.name in STEM32_LAYOUTS


def _children(state: dict[str, Tensor], prefix: str) -> set[str]:
    return {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}


def _classifier(state: dict[str, Tensor], name: str, features: int) -> tuple[int, Literal["linear", "cosine"]]:
    """A linear layer stores (classes, features) and a bias; the cosine classifier (features, classes) without one."""
    if f"{name}.weight" not in state:
        raise ValueError(f"no tensor {name}.weight, the classifier of this backbone; give a complete network")
    shape = tuple(state[f"{name}.weight"].shape)
    if f"{name}.bias" in state and shape[1:] == (features,):
        return shape[0], "linear"
    if f"{name}.bias" not in state and shape[:1] == (features,):
        return shape[1], "cosine"
    bias = "a" if f"{name}.bias" in state else "no"
    raise ValueError(f"{name}.weight has the shape {shape} with {bias} bias; neither linear nor cosine classifier")
