"""From options to an optimizer: which parameters form a group, with what decay and what factor on the learning rate."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from train.options import OptimizerOptions

logger = logging.getLogger(__name__)

FACTOR = "rate_factor"  # of a parameter group: on the scheduled learning rate
ADAMW_DESTROYS_ABOVE = 1e-3


def parameter_groups(
    model: nn.Module, options: OptimizerOptions, rate_factor: Callable[[str], float]
) -> list[dict[str, Any]]:
    """Groups of the trained parameters, each with weight decay and rate factor; one group where all are alike.

    Layers and what is exempt from weight decay are timm's; the factors of layers and `rate_factor`, of a parameter's
    name, multiply.
    """
    network: Any = model
    exempt = network.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    matrices = options.decay == "matrices"
    if options.layer_decay is not None:
        from timm.optim import param_groups_layer_decay

        groups = param_groups_layer_decay(
            model,
            weight_decay=options.weight_decay,
            no_weight_decay_list=exempt if matrices else (),
            weight_decay_exclude_1d=matrices,
            layer_decay=options.layer_decay,
        )
    elif matrices:
        from timm.optim import param_groups_weight_decay

        groups = param_groups_weight_decay(model, options.weight_decay, no_weight_decay_list=exempt)
    else:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [{"params": trained, "weight_decay": options.weight_decay}]
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return [part for group in groups for part in _by_factor(group, names, rate_factor)]


def _by_factor(
    group: dict[str, Any], names: dict[Tensor, str], rate_factor: Callable[[str], float]
) -> list[dict[str, Any]]:
    parts: dict[float, list[Tensor]] = {}
    for parameter in group["params"]:
        parts.setdefault(rate_factor(names[parameter]), []).append(parameter)
    scale = group.get("lr_scale", 1.0)  # of timm's layers
    return [
        {"params": params, "weight_decay": group["weight_decay"], FACTOR: scale * factor}
        for factor, params in parts.items()
    ]


def make_optimizer(
    model: nn.Module,
    options: OptimizerOptions,
    rate_factor: Callable[[str], float],
    lr: float | Tensor,
    fused: bool,
) -> torch.optim.Optimizer:
    """The optimizer of a run; frozen parameters are not in it.

    Args:
        model: unwrapped: groups go by its names.
        lr: the base rate; a tensor where captured steps know it by its address.
        fused: one kernel for all parameters.
    """
    groups = parameter_groups(model, options, rate_factor)
    if len(groups) > 1 and isinstance(lr, Tensor):
        for group in groups:  # each its own, which the schedule fills
            group["lr"] = lr.clone()
    if options.kind == "adamw":
        return torch.optim.AdamW(groups, lr, weight_decay=options.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups, lr, options.momentum, weight_decay=options.weight_decay, nesterov=options.nesterov, fused=fused
    )


def warn_of_destructive_rate(options: OptimizerOptions, tunes_pretrained: bool) -> None:
    """Say so where a rate is known to destroy what was learned before (Adam at 1e-2 on a pretrained transformer)."""
    if tunes_pretrained and options.kind == "adamw" and options.lr > ADAMW_DESTROYS_ABOVE:
        logger.warning(
            "optimizer.lr %g with adamw on pretrained parameters: rates above %g are known to destroy them; inserted "
            "modules and heads start well at 1e-3, whole networks at 3e-5",
            options.lr,
            ADAMW_DESTROYS_ABOVE,
        )
