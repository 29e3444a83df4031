"""FSA's network and what it mixes (Chu et al., ECCV 2020): feature maps, the places that speak for a class, new rows.

A class activation map says how much each place of a feature map speaks for a class. Places above one threshold are
class-specific, those below another class-generic; a new row of a rare class takes class-specific places of its own
image and class-generic ones of an image of a class that it is confused with. Order among places is lost in the average.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.losses.functions import at_least_float32
from train.models.build import ModelOptions, build_model, part_seed
from train.models.semantic import SemanticNetwork
from train.models.with_heads import detach_classifier


def feature_maps(encoder: nn.Module, images: Tensor) -> Tensor:
    """(batch, 3, height, width) → what the encoder averages over places, (batch, features, places).

    Raises:
        ValueError: the encoder does not say it.
    """
    network: nn.Module | None = getattr(encoder, "maps", None) or getattr(encoder, "forward_features", None)
    maps = None if network is None else network(images)
    if maps is None or maps.ndim != 4:
        raise ValueError(f"{type(encoder).__name__} gives no feature maps, whose places are to be mixed; take a ResNet")
    return maps.flatten(2)


def activation(maps: Tensor, weights: Tensor) -> Tensor:
    """Class activation maps, (rows, places), from 0 to 1; 0 everywhere where all places are alike.

    Args:
        maps: (rows, features, places).
        weights: (rows, features), the vector of each row's class in a linear classifier.
    """
    scores = torch.einsum("rfp,rf->rp", maps, weights)
    lowest = scores.amin(dim=1, keepdim=True)
    spread = scores.amax(dim=1, keepdim=True) - lowest
    return torch.where(spread > 0, (scores - lowest) / spread, torch.zeros_like(scores))


def drawn_places(allowed: Tensor, uniforms: Tensor) -> Tensor:
    """For each number u the ⌊u · k⌋-th of the k places that a row allows, int64 (rows, draws); of all where k is 0.

    Args:
        allowed: bool (rows, places).
        uniforms: in [0, 1), (rows, draws).
    """
    before = (allowed | ~allowed.any(dim=1, keepdim=True)).cumsum(dim=1)
    k = before[:, -1:]
    wanted = torch.minimum((uniforms * k).long(), k - 1)  # in float32 a number just below 1 may have become 1
    return torch.searchsorted(before, wanted, right=True)


def recombined(
    own: Tensor, other: Tensor, specific: Tensor, generic: Tensor, from_own: Tensor, uniforms: Tensor
) -> Tensor:
    """The mean over class-specific places of one image and class-generic ones of another, (rows, features).

    Args:
        own, other: maps of a row's rare image and of its partner, (rows, features, places).
        specific, generic: places that may be drawn of either, bool (rows, places).
        from_own: int64 (rows,), how many places come from the rare image; the rest come from the partner.
        uniforms: in [0, 1), (rows, places): what draws each place, with repetition.
    """
    places = own.shape[2]
    number = torch.arange(places, device=own.device)
    is_own = number < from_own[:, None]
    total = torch.zeros_like(own[:, :, 0])
    for maps, allowed, used in ((own, specific, is_own), (other, generic, ~is_own)):
        drawn = drawn_places(allowed, uniforms)[:, :, None] == number
        times = (drawn & used[:, :, None]).sum(dim=1)  # of each place
        total = total + torch.einsum("rfp,rp->rf", maps, times.to(maps.dtype))
    return total / places


@dataclass(frozen=True)
class Groups:
    """Rare images and their partners, in groups of rows: a rare image first.

    Attributes:
        size: rows of a group.
        weights: (rows, features), the class vector of each image, with which its activation map is made.
        from_own: int64 (new rows,), places that a new row takes from its rare image.
        uniforms: (new rows, places), in [0, 1).
        specific_above, generic_below: thresholds on the activation.
    """

    size: int
    weights: Tensor
    from_own: Tensor
    uniforms: Tensor
    specific_above: float
    generic_below: float

    def features(self, maps: Tensor) -> Tensor:
        """Each rare image's own mean, then its new rows, group after group, (rows, features).

        Args:
            maps: of all images of the groups, (rows, features, places).
        """
        heat = activation(maps, self.weights.to(maps.dtype))
        counts = (maps != 0).any(dim=1)  # a place without any feature says nothing
        specific, generic = (heat > self.specific_above) & counts, (heat < self.generic_below) & counts
        grouped = maps.unflatten(0, (-1, self.size))
        partners = self.size - 1
        new = recombined(
            grouped[:, :1].expand(-1, partners, -1, -1).flatten(0, 1),
            grouped[:, 1:].flatten(0, 1),
            specific.unflatten(0, (-1, self.size))[:, :1].expand(-1, partners, -1).flatten(0, 1),
            generic.unflatten(0, (-1, self.size))[:, 1:].flatten(0, 1),
            self.from_own,
            self.uniforms.to(maps.dtype),
        )
        whole = grouped[:, 0].mean(dim=2)[:, None]
        return torch.cat([whole, new.unflatten(0, (-1, partners))], dim=1).flatten(0, 1)


class FSANetwork(SemanticNetwork):
    """A plain network, its state-dict names included, whose encoder is frozen and whose classifier learns."""

    def forward(self, images: Tensor, groups: Groups | None = None) -> tuple[Tensor, Tensor]:
        """(batch, 3, height, width) → features (batch, features) and logits (batch, classes).

        With `groups` the last images are theirs, and their rows are those of `Groups.features`.
        """
        if groups is None:
            return super().forward(images)
        maps = at_least_float32(self._maps(images))
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            plain = len(maps) - len(groups.weights)
            rows = torch.cat([maps[:plain].mean(dim=2), groups.features(maps[plain:])])
        return rows, self.head(rows)

    @torch.no_grad()
    def _maps(self, images: Tensor) -> Tensor:
        return feature_maps(self.encoder, images)

    @torch.no_grad()
    def places(self, side: int) -> int:
        """Of the maps of images of this side.

        Raises:
            ValueError: what the classifier sees is not the mean over them.
        """
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(part_seed(0, "places")))
        maps, features = self._maps(images), self.features(images)
        if features.shape != maps.shape[:2] or not torch.allclose(maps.mean(dim=2), features, rtol=1e-3, atol=1e-4):
            raise ValueError(
                f"what the classifier of {type(self.encoder).__name__} sees is not the mean of its feature maps, whose "
                "places are to be mixed; take a ResNet"
            )
        return maps.shape[2]


def build_fsa_network(options: ModelOptions, classes: int, seed: int) -> FSANetwork:
    """The network of `build_model` with a frozen encoder."""
    encoder = build_model(options, classes, "linear", seed)
    return FSANetwork(encoder, *detach_classifier(encoder), frozen=True)
