"""PaCo's network (Cui et al., ICCV 2021) and GPaCo's (TPAMI 2023): a classifier and a projection on one backbone.

State-dict names are those of the official code: encoder_q.…, encoder_k.…, whose child fc is the projection, linear (the
classifier), queue, queue_l, queue_ptr. Its `linear_k`, an unused averaged classifier, is omitted.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.build import RESNET32, ModelOptions, build_model, part_seed, seeded
from train.models.ncl import unit
from train.models.with_heads import WithHeads, detach_classifier


class Encoder(WithHeads):
    """A backbone and its projection, named `fc`."""

    def __init__(self, encoder: nn.Module, projection: nn.Module):
        super().__init__(encoder)
        self.fc = projection

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (batch, features), and unit projections (batch, dim)."""
        features = self.features(images)
        return features, unit(self.fc(features))


class PaCoNetwork(nn.Module):
    """Queries, keys, and the keys of earlier steps with their labels.

    Args:
        encoder: backbone and projection.
        features: its number of features.
        classes: number of classes, of the classifier and of the queue's random initial labels.
        dim, size: dimension and number of the queue's keys.
        momentum: keys come from a momentum copy of the encoder, without gradient (PaCo); False: from the encoder itself
            in a second pass, with gradient (GPaCo).

    Buffers: queue float32 (size, dim), initially normal with columns (not rows) of unit norm as in the official code;
    queue_l int64 (size,); queue_ptr int64 (1,), the next row to write.
    """

    classifier_name = "linear"
    queue: Tensor
    queue_l: Tensor
    queue_ptr: Tensor

    def __init__(self, encoder: Encoder, features: int, classes: int, dim: int, size: int, momentum: bool):
        super().__init__()
        self.encoder_q = encoder
        self.encoder_k = deepcopy(encoder) if momentum else None
        self.linear = nn.Linear(features, classes)
        self.register_buffer("queue", F.normalize(torch.randn(size, dim), dim=0))
        self.register_buffer("queue_l", torch.randint(0, classes, (size,)))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    def forward(self, images: Tensor, key_images: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Logits (batch, classes); with `key_images`, the other view of the samples, also queries, keys (batch, dim).

        Under GPaCo the logits are then (2 · batch, classes), those of the first view first. The views go through the
        backbone one after the other, so batch norm sees them separately.
        """
        features, queries = self.encoder_q(images)
        if key_images is None:
            return self.linear(features)
        if self.encoder_k is None:
            others, keys = self.encoder_q(key_images)
            return self.linear(torch.cat([features, others])), queries, keys
        with torch.no_grad():
            keys = self.encoder_k(key_images)[1]
        return self.linear(features), queries, keys

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Momentum parameters ← decay · themselves + (1 − decay) · the trained ones; buffers keep their own course."""
        if self.encoder_k is not None:
            trained = [p.detach() for p in self.encoder_q.parameters()]
            torch._foreach_lerp_(list(self.encoder_k.parameters()), trained, 1 - decay)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor) -> None:
        """Write a global batch after that of the previous step, wrapping around the queue."""
        rows = (self.queue_ptr + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[rows] = keys.to(self.queue.dtype)
        self.queue_l[rows] = labels
        self.queue_ptr.copy_((self.queue_ptr + len(keys)) % len(self.queue))


def build_paco(options: ModelOptions, classes: int, seed: int, *, dim: int, size: int, momentum: bool) -> PaCoNetwork:
    """PaCo's network, or GPaCo's without `momentum`."""
    backbone = build_model(options, 1, "linear", seed)
    _, classifier = detach_classifier(backbone)
    features = classifier.in_features
    with seeded(part_seed(seed, "heads")):
        last = nn.Linear(features, dim)
        if options.name in RESNET32:  # there the last layer is part of a backbone with this initialisation
            nn.init.kaiming_normal_(last.weight)
        if momentum:
            first: list[nn.Module] = [nn.Linear(features, features), nn.BatchNorm1d(features), nn.ReLU()]
        else:
            first = [nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features), nn.ReLU()]
        encoder = Encoder(backbone, nn.Sequential(*first, last))
        return PaCoNetwork(encoder, features, classes, dim, size, momentum)
