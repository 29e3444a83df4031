"""The shard sets of a run, checked against each other before anything else starts."""

from shards.object_store import set_location
from shards.reader import ShardSet
from train.options import DataOptions


def open_datasets(options: DataOptions) -> dict[str, ShardSet]:
    """The shard sets of a run by role: train, test, and validation and meta where they are given.

    Raises:
        ValueError: training and evaluation sets have different classes, or a training class is empty.
    """
    paths = {"train": options.train, "test": options.test, "validation": options.validation, "meta": options.meta}
    cache = options.cache_options()
    datasets = {role: ShardSet.open(set_location(path), cache) for role, path in paths.items() if path is not None}
    train_set = datasets["train"]
    for role, dataset in datasets.items():
        if dataset.class_names != train_set.class_names:
            pairs = zip(train_set.class_names, dataset.class_names, strict=False)
            differing = [pair for pair in pairs if pair[0] != pair[1]]
            example = f"; the first that differs: {differing[0][0]!r}, {differing[0][1]!r}" if differing else ""
            raise ValueError(
                f"classes differ: {train_set.num_classes} in {train_set.path}, {dataset.num_classes} in {dataset.path}"
                f"{example}; the {role} set must be built from the same classes in the same order"
            )
    empty = [train_set.class_names[c] for c in (train_set.samples_per_class == 0).nonzero()[0]]
    if empty:
        raise ValueError(f"{train_set.path}: {len(empty)} classes have no training sample (first: {empty[:5]})")
    return datasets
