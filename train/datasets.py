"""The shard sets of a run, checked against each other before anything else starts."""

import logging

import numpy as np

from shards.class_names import shown
from shards.object_store import set_location
from shards.reader import ShardSet
from train.options import DataOptions

logger = logging.getLogger(__name__)


def open_datasets(options: DataOptions) -> dict[str, ShardSet]:
    """The shard sets of a run by role: train, and test, validation and meta if given.

    All use the class ids of the training set: classes are matched by name. Evaluation sets may lack classes.

    Raises:
        ValueError: a set has classes that the training set lacks, or a class has no training or no meta sample.
    """
    paths = {"train": options.train, "test": options.test, "validation": options.validation, "meta": options.meta}
    cache = options.cache_options()
    opened = {role: ShardSet.open(set_location(path), cache) for role, path in paths.items() if path is not None}
    train_set = opened["train"]
    datasets = {role: _matched(role, dataset, train_set) for role, dataset in opened.items()}
    for role in {"train", "meta"} & datasets.keys():
        empty = classes_without_samples(datasets[role])
        if empty:
            what = "training" if role == "train" else "meta"
            raise ValueError(f"{datasets[role].path}: {len(empty)} classes have no {what} sample: {shown(empty)}")
    return datasets


def classes_without_samples(dataset: ShardSet) -> list[str]:
    """Names of the classes without samples in a set."""
    return [dataset.class_names[c] for c in np.flatnonzero(dataset.samples_per_class == 0)]


def _matched(role: str, dataset: ShardSet, train_set: ShardSet) -> ShardSet:
    matched = dataset.with_classes(train_set.class_names, f"the training set {train_set.path}")
    if dataset is not train_set and dataset.class_names != train_set.class_names:
        logger.warning(
            "the %s set %s has its own list of classes; matched by name to those of the training set",
            role,
            dataset.path,
        )
    lacking = classes_without_samples(matched)
    if role in ("test", "validation") and lacking:
        logger.warning(
            "the %s set %s has no images of %d of %d classes (%s): their accuracy is unknown, and means are over the "
            "others",
            role,
            dataset.path,
            len(lacking),
            matched.num_classes,
            shown(lacking),
        )
    return matched
