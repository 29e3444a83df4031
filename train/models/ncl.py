"""NCL's networks (Li et al., CVPR 2022): several parallel networks, each with an optional contrastive branch.

State-dict names are those of the official code: backbone.EXPERT.…, classifier.EXPERT.{weight,bias}. With the
contrastive branch classifier_ce.EXPERT are the class heads, classifier.EXPERT the projections, backbone_MA and
classifier_MA their momentum copies, MOCO.EXPERT.{queue,queue_ptr} the keys of earlier steps.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.losses.functions import at_least_float32
from train.models.build import ModelOptions, part_seed, seeded
from train.models.with_heads import bare_backbone

MakeHead = Callable[[int], nn.Module]
"""From the number of features to a classifier."""


class Experts(nn.Module):
    """Independent networks."""

    def __init__(self, backbones: list[nn.Module], heads: list[nn.Module]):
        super().__init__()
        self.backbone = nn.ModuleList(backbones)
        self.classifier = nn.ModuleList(heads)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (experts, batch, classes)."""
        pairs = zip(self.backbone, self.classifier, strict=True)
        return torch.stack([classifier(backbone(images)) for backbone, classifier in pairs])


class KeyQueue(nn.Module):
    """The keys of the latest steps, overwriting the oldest first: the negatives of a contrastive loss (MoCo).

    Buffers: queue float32 (dim, size), unit columns, random before the first keys; queue_ptr int64 (1,), the next
    column to write.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, dim: int, size: int):
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(dim, size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    def contrast(self, queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
        """[q·key, q·queue] / T, (batch, 1 + size); an image's own key is column 0. All vectors have unit norm."""
        with torch.autocast(queries.device.type, enabled=False):
            positive = (queries * keys).sum(dim=1, keepdim=True)
            return torch.cat([positive, queries @ self.queue], dim=1) / temperature

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write the keys (batch, dim) of a global batch after those of the previous step, wrapping around the queue."""
        columns = torch.arange(len(keys), device=keys.device)
        self.queue[:, (self.queue_ptr + columns) % self.queue.shape[1]] = keys.T
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.queue.shape[1])


class ContrastiveExperts(nn.Module):
    """Experts that also identify another view of their image among the keys of other images.

    Args:
        backbones: of the experts.
        momentum_backbones: the encoders of the keys; gradients never train them, nor their projections.
        features: number of features of each backbone.
        make_head: makes the classifier of an expert.
        dim: size of queries and keys.
        queue: keys kept per expert.
        temperature: temperature of the contrastive logits.
    """

    def __init__(
        self,
        backbones: list[nn.Module],
        momentum_backbones: list[nn.Module],
        features: list[int],
        make_head: MakeHead,
        dim: int,
        queue: int,
        temperature: float,
    ):
        super().__init__()
        self.backbone = nn.ModuleList(backbones)
        self.classifier = nn.ModuleList(_projection(number, dim) for number in features)
        self.classifier_ce = nn.ModuleList(make_head(number) for number in features)
        self.backbone_MA = nn.ModuleList(momentum_backbones)
        self.classifier_MA = nn.ModuleList(_projection(number, dim) for number in features)
        self.MOCO = nn.ModuleList(KeyQueue(dim, queue) for _ in features)
        self.temperature = temperature

    def forward(self, images: Tensor, key_images: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Logits (experts, batch, classes); with `key_images`, the other view of the same samples, also contrastive
        logits (experts, batch, 1 + queue) and keys (experts, batch, dim), float32 without gradient.

        The key encoders see the batch in the same order as the query encoders. The official code permutes it among
        processes, so that batch norm does not reveal which key belongs to which query; but there too batch norm is
        synchronised over all processes, and its statistics do not depend on the order.
        """
        features = [backbone(images) for backbone in self.backbone]
        logits = torch.stack([head(f) for head, f in zip(self.classifier_ce, features, strict=True)])
        if key_images is None:
            return logits
        keys = self._keys(key_images)
        queries = [unit(projection(f)) for projection, f in zip(self.classifier, features, strict=True)]
        contrast = [
            queue.contrast(q, k, self.temperature)  # type: ignore[operator]
            for queue, q, k in zip(self.MOCO, queries, keys, strict=True)
        ]
        return logits, torch.stack(contrast), keys

    @torch.no_grad()
    def _keys(self, images: Tensor) -> Tensor:
        pairs = zip(self.backbone_MA, self.classifier_MA, strict=True)
        return torch.stack([unit(projection(backbone(images))) for backbone, projection in pairs])

    @torch.no_grad()
    def follow(self, decay: float, with_projections: bool) -> None:
        """Momentum parameters ← decay · themselves + (1 − decay) · the trained ones; buffers evolve on their own."""
        pairs = [(self.backbone_MA, self.backbone)]
        if with_projections:
            pairs.append((self.classifier_MA, self.classifier))
        for momentum, trained in pairs:
            torch._foreach_lerp_(list(momentum.parameters()), [p.detach() for p in trained.parameters()], 1 - decay)


def unit(vectors: Tensor) -> Tensor:
    """Rows scaled to norm 1, in at least float32."""
    return F.normalize(at_least_float32(vectors), dim=1)


def build_experts(options: ModelOptions, experts: int, make_head: MakeHead, seed: int) -> Experts:
    """Experts without a contrastive branch."""
    made = [bare_backbone(options, part_seed(seed, f"expert{k}")) for k in range(experts)]
    with seeded(part_seed(seed, "heads")):
        return Experts([backbone for backbone, _ in made], [make_head(features) for _, features in made])


def build_contrastive_experts(
    options: ModelOptions,
    experts: int,
    make_head: MakeHead,
    seed: int,
    *,
    dim: int,
    queue: int,
    temperature: float,
    copy_init: bool,
) -> ContrastiveExperts:
    """Experts with a contrastive branch.

    Args:
        dim, queue, temperature: see `ContrastiveExperts`.
        copy_init: initialise the momentum encoders as copies of the trained ones, instead of with their own weights.
    """
    made = [bare_backbone(options, part_seed(seed, f"expert{k}")) for k in range(experts)]
    momentum = [bare_backbone(options, part_seed(seed, f"momentum{k}"))[0] for k in range(experts)]
    backbones, features = map(list, zip(*made, strict=True))
    with seeded(part_seed(seed, "heads")):
        network = ContrastiveExperts(backbones, momentum, features, make_head, dim, queue, temperature)
    if copy_init:
        network.backbone_MA.load_state_dict(network.backbone.state_dict())
        network.classifier_MA.load_state_dict(network.classifier.state_dict())
    return network


def _projection(features: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, dim))
