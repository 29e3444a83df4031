"""Features of a frozen backbone: class means to initialise a classifier, and tables to train it on."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.executors.features import serve_features
from pipeline.loader import evaluation_batches
from pipeline.rng import generator
from pipeline.views.view import OneOf, ResizeCenterCrop, View, Whole
from shards.files import atomic_file
from shards.reader import ShardSet
from train.inputs.input_builder import InputBuilder
from train.losses.precision import full_float32
from train.methods.base import ClassVectors
from train.models.heads import class_means, text_vectors
from train.options import DataOptions

logger = logging.getLogger(__name__)

_PROJECTED_ORDER = ("text", "text_projection", "image_projection")
_PROJECTED = set(_PROJECTED_ORDER)


class HeadAlone(nn.Module):
    """A classifier with the same name as in its whole network, so both use the same checkpoint entries."""

    def __init__(self, name: str, head: nn.Module):
        super().__init__()
        parent: nn.Module = self
        *outer, last = name.split(".")
        for part in outer:
            parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, head)
        self._path = name

    def forward(self, features: Tensor) -> Tensor:
        """features (batch, width) → logits (batch, classes)."""
        return self.get_submodule(self._path)(features)


def pooled_features(model: Any, images: Tensor) -> Tensor:
    """The input of a timm network's classifier, (batch, width): the class token, or an average.

    Raises:
        ValueError: it is not a timm network.
    """
    if not hasattr(model, "forward_head"):
        raise ValueError(f"{type(model).__name__} provides no features; use a timm network, or --method.start random")
    return model.forward_head(model.forward_features(images), pre_logits=True)


@dataclass(frozen=True)
class FeatureReader:
    """A backbone in evaluation mode, in full float32, with its input pipeline."""

    model: nn.Module
    input_builder: InputBuilder
    device: torch.device
    batch_size: int
    data: DataOptions

    @torch.no_grad()
    def rows(self, dataset: ShardSet, view: View, sample_ids: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """Features float32 (n, width) and labels int64 (n,) of samples, by default all, in order; on the CPU.

        Raises:
            ValueError: the network provides no features.
        """
        was_training = {module: module.training for module in self.model.modules()}
        self.model.eval()
        features, labels = [], []
        batches = evaluation_batches(
            dataset,
            view,
            self.batch_size,
            self.device,
            executor=self.data.executor,
            decode_threads=self.data.decode_threads,
            sample_ids=sample_ids,
        )
        with full_float32():
            for batch in batches:
                images = self.input_builder.plain(batch.images[0])
                features.append(pooled_features(self.model, images).float().cpu())
                labels.append(batch.labels.cpu())
        for module, training in was_training.items():
            module.training = training
        return torch.cat(features), torch.cat(labels)


def sample_per_class(dataset: ShardSet, limit: int, seed: int) -> np.ndarray:
    """Ascending ids of at most `limit` random samples per class, depending only on the seed."""
    order = generator(seed, "class_means/samples", 0, 0).permutation(len(dataset))
    labels = dataset.index["label"][order].astype(np.int64)
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class], side="left")
    return np.sort(order[by_class[np.arange(len(order)) - starts < limit]])


def class_vectors(
    wanted: ClassVectors, dataset: ShardSet, view: View, reader: FeatureReader, seed: int
) -> tuple[Tensor, Tensor]:
    """The initial class vectors of a classifier, (classes, width), and which classes have one, bool.

    Raises:
        ValueError, FileNotFoundError: the file does not contain class vectors, or has other classes.
    """
    if wanted.file is not None:
        return read_class_vectors(wanted.file, dataset.class_names)
    features, labels = reader.rows(dataset, view, sample_per_class(dataset, wanted.per_class, seed))
    means, known = class_means(features, labels, dataset.num_classes)
    logger.info("the classifier is initialised from the mean features of %d images", len(labels))
    return means, known


def read_class_vectors(path: Path, names: list[str]) -> tuple[Tensor, Tensor]:
    """Class vectors from .npz: `names` and `vectors`, or `names`, `text` and two projections.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, lacks an array, or its names are not the class names in order.
    """
    if not path.is_file():
        raise FileNotFoundError(f"method.class_vectors: {path} is not a file")
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = dict(content)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged, or not an .npz of plain arrays: {error}") from error
    if "names" not in arrays or not ({"vectors"} <= arrays.keys() or arrays.keys() >= _PROJECTED):
        raise ValueError(
            f"{path} has {sorted(arrays)}; expected names and vectors, or names, {', '.join(sorted(_PROJECTED))}"
        )
    found = [str(name) for name in arrays["names"]]
    if found != names:
        pairs = [pair for pair in zip(found, names, strict=False) if pair[0] != pair[1]]
        example = f"; the first that differs: {pairs[0][0]!r}, expected {pairs[0][1]!r}" if pairs else ""
        raise ValueError(f"{path}: names {len(found)} classes, the shards {len(names)}, in this order{example}")
    values = {name: torch.from_numpy(array).double() for name, array in arrays.items() if name != "names"}
    vectors = values["vectors"] if "vectors" in values else text_vectors(*(values[name] for name in _PROJECTED_ORDER))
    return vectors, torch.ones(len(names), dtype=torch.bool)


def cache_features(
    datasets: dict[str, ShardSet],
    views: dict[str, View | OneOf],
    key: str,
    reader: FeatureReader,
    first: Callable[[], AbstractContextManager[Any]],
) -> dict[str, int]:
    """Compute or read the features of each data set, and serve them instead of its images.

    A table is a file next to the shards (of a set in a store, next to its local copy) or, if that folder is not
    writable, only kept in memory.

    Args:
        views: each data set's view; it must not be random.
        key: what the features depend on in addition to view and data: weights and normalisation.
        first: context in which the first process is alone, the others follow and read its files.

    Returns:
        By data set: how many of its features were computed now and not read.

    Raises:
        ValueError: a view is random.
    """
    computed = {}
    for role, dataset in datasets.items():
        view = views[role]
        if not _draws_nothing(view):
            raise ValueError(
                f"method.cached_features needs a view that is the same in every epoch, but the {role} images use "
                f"{view}; choose data.preset backbone-plain"
            )
        assert isinstance(view, View)
        with first():
            table, fresh = _table(dataset, view, key, reader)
        computed[role] = len(dataset) if fresh else 0
        serve_features(dataset, table)
    return computed


def _draws_nothing(view: View | OneOf) -> bool:
    fixed = isinstance(view, View) and isinstance(view.geometry, ResizeCenterCrop | Whole)
    return fixed and not view.operations and not view.flip_probability  # type: ignore[union-attr]


def _table(dataset: ShardSet, view: View, key: str, reader: FeatureReader) -> tuple[Tensor, bool]:
    digest = hashlib.sha256(f"{key} {view!r} {dataset.checksum}".encode()).hexdigest()[:16]
    path = Path(f"{dataset.folder}-features") / f"{digest}.npy"
    if path.is_file():
        try:
            table = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            logger.warning("features of %s: %s is damaged, and made anew: %s", dataset.path, path, error)
        else:
            logger.info("features of %s: read from %s", dataset.path, path)
            return torch.from_numpy(table), False
    features = reader.rows(dataset, view)[0].half()
    try:
        path.parent.mkdir(exist_ok=True)
        # One name, which the next run takes too: a killed one leaves at most one such file.
        with atomic_file(path, path.with_suffix(".partial")) as file:
            np.save(file, features.numpy())
    except OSError as error:
        logger.warning("features of %s are not kept for the next run: %s", dataset.path, error)
    return features, True
