"""From a model's name to a network with the right classifier."""

import difflib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from pipeline.rng import generator
from train.models.heads import CosineClassifier
from train.models.resnet_cifar import ResNet32, TwoBranchResNet32
from train.models.resnet_stem32 import LAYOUTS as STEM32_LAYOUTS
from train.models.resnet_stem32 import ResNetStem32

logger = logging.getLogger(__name__)

RESNET32 = {"resnet32": ResNet32, "resnet32-bbn": TwoBranchResNet32}


@dataclass(frozen=True)
class ModelOptions:
    """The backbone.

    Args:
        name: for 32-pixel images resnet32, resnet32-bbn (with two parallel last blocks), resnet18-stem32,
            resnet34-stem32 or resnet50-stem32; otherwise any timm model, for example resnet50, resnext50_32x4d.
        width: channels of the first stage of resnet32 and resnet32-bbn (16 as published, 64 for GLMC).
        pretrained: start from timm's pretrained weights, from its cache or downloaded once. A name without a tag, such
            as the "a1_in1k" of resnet50.a1_in1k, means timm's default tag, which is printed.
        weights: start from this file instead, safetensors or .pth, with the parameter names of timm (or torchvision's
            ResNets). A classifier of a different size is re-initialised.
        image_size: side of the input in pixels, for presets that follow the backbone; by default the backbone's own.
        init_from: start from the weights of a checkpoint, as a second stage (a new classifier on trained features)
            does. Parameters present on only one side are listed, never ignored silently.
    """

    name: str = "resnet32"
    width: int = 16
    pretrained: bool = False
    init_from: Path | None = None
    weights: Path | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.pretrained and self.weights is not None:
            raise ValueError("model.weights and model.pretrained are both given; omit one")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"model.image_size is {self.image_size}, expected at least 1")
        if not self.is_timm:
            if self.weights is not None:
                raise ValueError(f"model.weights: {self.name} is not a timm network; use model.init_from")
            if self.pretrained:
                raise ValueError(f"model.pretrained: there are no published weights for {self.name}; omit it")
            return
        import timm  # takes two seconds, and networks for small images do not need it

        if not timm.is_model(self.name):
            similar = ", ".join(difflib.get_close_matches(self.name, timm.list_models())) or "see timm.list_models()"
            raise ValueError(
                f"model.name {self.name!r} is not one of {', '.join([*RESNET32, *STEM32_LAYOUTS])} or timm's models; "
                f"similar names in timm: {similar}"
            )

    def require_trained(self, stage: str) -> None:
        """Refuse random weights for a stage, described by its beginning of the message."""
        if not self.pretrained and self.weights is None and self.init_from is None:
            raise ValueError(
                f"{stage}: start from one with --model.pretrained true, --model.weights FILE or --model.init_from "
                "CHECKPOINT"
            )

    @property
    def is_timm(self) -> bool:
        """Whether the network is one of timm's."""
        return self.name not in RESNET32 and self.name not in STEM32_LAYOUTS


def build_model(options: ModelOptions, classes: int, head: Literal["linear", "cosine"], seed: int) -> nn.Module:
    """A network whose weights depend only on the options and the seed.

    Pretrained weights are loaded later, see train/checkpoints/pretrained.py: nothing is downloaded or read here.
    timm's ResNets are built without zero-initialised residual branches: torchvision's initialisation, which the
    published ImageNet-LT and iNat18 runs use (their state-dict names are torchvision's too).
    """
    with seeded(seed):
        if options.name in RESNET32:
            model: nn.Module = RESNET32[options.name](classes, options.width)
        elif options.name in STEM32_LAYOUTS:
            model = ResNetStem32(options.name, classes)
        else:
            import timm

            is_resnet = timm.models.is_model_in_modules(options.name, ["resnet"])
            extra: dict[str, Any] = {"zero_init_last": False} if is_resnet else {}
            model = timm.create_model(options.name, num_classes=classes, **extra, **made_for_size(options))
        if head == "cosine":
            replace_module(model, classifier_name(model), CosineClassifier)
    return model


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """CPU draws inside the block depend only on the seed; draws outside are not affected."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def made_for_size(options: ModelOptions) -> dict[str, Any]:
    """What a timm network that is built for one image size needs to be told, if a different one is chosen."""
    if options.image_size is None:
        return {}
    import timm

    family = timm.models.model_entrypoint(options.name).__module__.rpartition(".")[2]
    has_positions = family in ("vision_transformer", "eva", "beit", "deit", "swin_transformer")
    return {"img_size": options.image_size} if has_positions else {}


def with_synchronised_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Synchronise batch norm over all processes, if there are several; state-dict names do not change."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return model
    if device.type != "cuda":
        logger.warning("torch synchronises batch norm only on GPUs: each process normalises by its own part of a batch")
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def part_seed(seed: int, part: str) -> int:
    """The seed for one part of a network: identical parts, such as experts, must not start with the same weights."""
    return int(generator(seed, f"model/{part}", 0, 0).integers(2**63))


def classifier_name(model: nn.Module) -> str:
    """Name of the last linear layer, given by our own networks or by timm (fc, head.fc, classifier …)."""
    name = getattr(model, "classifier_name", None) or getattr(model, "default_cfg", {}).get("classifier")
    if not isinstance(name, str):
        raise ValueError(f"{type(model).__name__} has no single classifier layer; choose another backbone")
    return name


def replace_module(model: nn.Module, name: str, head: Callable[[int, int], nn.Module]) -> nn.Linear:
    """Replace the linear layer with this dotted name by `head(features, classes)`, which is returned.

    Raises:
        ValueError: it is not a linear layer.
    """
    old = model.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise ValueError(
            f"the classifier {name} is a {type(old).__name__}, expected a Linear; choose another head or backbone"
        )
    model.set_submodule(name, head(old.in_features, old.out_features))
    return old
