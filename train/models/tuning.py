"""The trained parts of a pretrained backbone, and the small modules inserted into its blocks.

Follows LIFT (Shi et al., ICML 2024) and LIFT+: AdaptFormer parallel to the MLP, Adapter after it, LoRA on queries and
values. Modules are hooked into timm's own blocks without changing their forward pass: layer scale, register tokens and
rotary positions are unaffected. Every module starts as the identity.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Kind = Literal["head", "bias", "norm", "last_k", "full", "adaptformer", "adapter", "lora"]
INSERTED = ("adaptformer", "adapter", "lora")


def _pre_norm_blocks() -> tuple[type[nn.Module], ...]:
    """out = m + drop_path2(… mlp(norm2(m))): where the modules below read their input and add their output."""
    from timm.models.beit import Block as BeitBlock
    from timm.models.eva import EvaBlock
    from timm.models.swin_transformer import SwinTransformerBlock
    from timm.models.vision_transformer import Block

    return Block, BeitBlock, EvaBlock, SwinTransformerBlock


def automatic_size(classes: int, blocks: int, divisor: int) -> int:
    """2^max(0, ⌊log2(classes / (divisor · blocks))⌋): LIFT+'s bottleneck, divisor 2 for adapters and 4 for LoRA."""
    return 2 ** max(0, math.floor(math.log2(classes / (divisor * blocks))))


class Bottleneck(nn.Module):
    """scale · (up(relu(down(norm(x))))): zero at the start, because `up` is. x (…, width), result the same shape."""

    def __init__(self, width: int, size: int, scaled: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        self.scale = nn.Parameter(torch.ones(1)) if scaled else None
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        change = self.up(torch.relu(self.down(self.norm(x))))
        return change if self.scale is None else self.scale * change


class BesideMLP(Bottleneck):
    """A bottleneck added to a block's output, outside layer scale.

    AdaptFormer reads the input of the second norm, Adapter the output of the MLP. The module holds that tensor between
    the two hooks of a forward pass.
    """

    def __init__(self, width: int, size: int, scaled: bool):
        super().__init__(width, size, scaled)
        self._seen: Tensor | None = None

    def see_input(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of the second norm."""
        self._seen = inputs[0]

    def see_output(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Forward hook of the MLP."""
        self._seen = output

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook of the second drop path, whose output is added to the residual stream."""
        assert self._seen is not None, "the second norm and the MLP run before the drop path"
        seen, self._seen = self._seen, None
        return output + self(seen)


class LowRank(nn.Module):
    """(x · down · up) / size, zero at the start; x (…, width), result (…, out)."""

    def __init__(self, width: int, out: int, size: int):
        super().__init__()
        self.down = nn.Parameter(torch.empty(width, size))
        self.up = nn.Parameter(torch.zeros(size, out))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.down @ self.up / self.down.shape[1]


class LoRA(nn.Module):
    """Low-rank changes of queries and values, as a forward hook of timm's fused qkv layer."""

    def __init__(self, qkv: nn.Linear, size: int):
        super().__init__()
        width, out = qkv.in_features, qkv.out_features // 3
        self.q, self.v = LowRank(width, out, size), LowRank(width, out, size)

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook of qkv."""
        q, v = self.q(inputs[0]), self.v(inputs[0])
        return output + torch.cat([q, torch.zeros_like(q), v], dim=-1)


@torch.no_grad()
def fold_lora(model: nn.Module) -> None:
    """Merge every LoRA into its qkv matrix and remove it: the same function without modules."""
    attentions: list[Any] = [m for m in model.modules() if isinstance(getattr(m, "lora", None), LoRA)]
    for attention in attentions:
        lora, qkv = attention.lora, attention.qkv
        rows = qkv.out_features // 3
        for part, low_rank in ((0, lora.q), (2, lora.v)):
            change = (low_rank.down @ low_rank.up).T / low_rank.down.shape[1]
            qkv.weight[part * rows : (part + 1) * rows] += change
        handles = [key for key, hook in qkv._forward_hooks.items() if getattr(hook, "__self__", None) is lora]
        for key in handles:
            del qkv._forward_hooks[key]
        del attention.lora


@dataclass(frozen=True)
class Tuning:
    """Which parts of a backbone are tuned.

    Args:
        kind: see `Kind`; the classifier is always trained too.
        last_k: number of last blocks, None for all.
        size: bottleneck of an inserted module; None for the automatic one.
    """

    kind: Kind
    last_k: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"tuning kind {self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        if self.kind == "last_k" and self.last_k is None:
            raise ValueError("tuning last_k needs the number of blocks: also give --method.last_k")


def insert(model: nn.Module, tuning: Tuning, classes: int) -> int | None:
    """Insert a tuning kind's modules into the model, in place; returns their bottleneck, None if the kind has none.

    Raises:
        ValueError: the backbone has no suitable blocks; the message names the kinds that work.
    """
    if tuning.kind not in INSERTED:
        return None
    blocks = [module for module in model.modules() if isinstance(module, _pre_norm_blocks())]
    if not blocks:
        raise ValueError(
            f"method.tuned is {tuning.kind}, but {type(model).__name__} has no suitable pre-norm transformer "
            f"blocks; choose one of {', '.join(k for k in get_args(Kind) if k not in INSERTED)}"
        )
    blocks = blocks[-tuning.last_k :] if tuning.last_k else blocks
    size = tuning.size or automatic_size(classes, len(blocks), 4 if tuning.kind == "lora" else 2)
    for block in blocks:
        _INSERT[tuning.kind](block, size)
    return size


def _insert_adaptformer(block: Any, size: int) -> None:
    block.adaptformer = BesideMLP(_width(block), size, scaled=True)
    block.norm2.register_forward_pre_hook(block.adaptformer.see_input)
    block.drop_path2.register_forward_hook(block.adaptformer.add)


def _insert_adapter(block: Any, size: int) -> None:
    block.adapter = BesideMLP(_width(block), size, scaled=False)
    block.mlp.register_forward_hook(block.adapter.see_output)
    block.drop_path2.register_forward_hook(block.adapter.add)


def _insert_lora(block: Any, size: int) -> None:
    attention = block.attn
    # These use qkv's matrix directly and never call the layer, so its hooks would not run.
    if not isinstance(getattr(attention, "qkv", None), nn.Linear) or getattr(attention, "q_bias", None) is not None:
        raise ValueError(
            f"method.tuned is lora, but {type(attention).__name__} has no fused qkv layer to add it to; "
            "choose adaptformer, adapter, bias, norm, last_k or full"
        )
    attention.lora = LoRA(attention.qkv, size)
    attention.qkv.register_forward_hook(attention.lora.add)


_INSERT = {"adaptformer": _insert_adaptformer, "adapter": _insert_adapter, "lora": _insert_lora}


def _width(block: Any) -> int:
    return int(block.norm2.weight.shape[0])


def tuned_names(model: nn.Module, tuning: Tuning) -> frozenset[str]:
    """Names of the backbone's trained parameters, including inserted modules, after `insert`.

    Raises:
        ValueError: the backbone has fewer blocks than `last_k`.
    """
    names = [name for name, _ in model.named_parameters()]
    if tuning.kind == "head":
        return frozenset()
    if tuning.kind in INSERTED:
        return frozenset(n for n in names if ".adaptformer." in n or ".adapter." in n or ".lora." in n)
    inside = _in_last_blocks(model, names, tuning.last_k)
    if tuning.kind == "bias":
        return frozenset(n for n in inside if n.endswith("bias"))
    if tuning.kind == "norm":
        return frozenset(n for n in inside if "Norm" in type(model.get_submodule(n.rpartition(".")[0])).__name__)
    return frozenset(inside)


def _in_last_blocks(model: nn.Module, names: list[str], last_k: int | None) -> list[str]:
    """The parameters of the last blocks in timm's grouping: no stem, positions, final norm or classifier."""
    from timm.models import group_parameters

    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        raise ValueError(f"{type(model).__name__} does not define its blocks; tune the head, or use a timm network")
    patterns = matcher(coarse=True)["blocks"]
    groups = group_parameters(model, matcher(coarse=True), reverse=True)
    blocks = sorted({group for name, group in groups.items() if _is_block(name, patterns)})
    if last_k is not None and last_k > len(blocks):
        raise ValueError(f"method.last_k is {last_k}, but {type(model).__name__} has {len(blocks)} blocks")
    chosen = set(blocks[-last_k:] if last_k else blocks)
    return [name for name in names if groups.get(name) in chosen and _is_block(name, patterns)]


def _is_block(name: str, patterns: Any) -> bool:
    """Whether a pattern with a block number matches; the other patterns are for the parts around the blocks."""
    listed = [patterns] if isinstance(patterns, str) else [p if isinstance(p, str) else p[0] for p in patterns]
    return any(re.match(pattern, name) for pattern in listed if r"(\d+)" in pattern)


def set_modes(model: nn.Module) -> None:
    """Training mode for modules whose own parameters are all trained, evaluation mode for everything else.

    So a frozen encoder's dropout and drop path are off, and batch norm keeps its statistics unless it is tuned itself.
    """
    model.eval()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and all(parameter.requires_grad for parameter in own):
            module.training = True
