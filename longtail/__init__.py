"""Train image classifiers on long-tailed data, from Python.

    import longtail

    longtail.build("photos", "data/mine/train", split_dir="train")
    train = longtail.ShardSet("data/mine/train")              # its repr summarises it
    options = longtail.Options.of(
        data={"train": "data/mine/train", "test": "data/mine/test"}, method={"loss": "bs"}, epochs=30
    )
    run = longtail.train(options)                             # a Run: run.folder, run.result
    classifier = longtail.Classifier.load(run.folder)         # or a checkpoint file
    classifier.predict("photos/new")                          # names and probabilities
    longtail.evaluate(run.folder, "data/mine/test")           # accuracy by class size

Everything here is a thin layer over the packages below it (shards, pipeline, train, tools). Heavy modules are imported
only when used. docs/api.md is the guide.
"""

import importlib
from typing import TYPE_CHECKING, Any

from longtail.version import VERSION as __version__

if TYPE_CHECKING:
    from longtail.building import build as build
    from longtail.classifier import Classifier as Classifier
    from longtail.evaluating import Evaluation as Evaluation
    from longtail.evaluating import evaluate as evaluate
    from longtail.training import FinishedRun as FinishedRun
    from longtail.training import train as train
    from shards.reader import ShardSet as ShardSet
    from train.options import Options as Options

_HOMES = {
    "ShardSet": "shards.reader",
    "build": "longtail.building",
    "Options": "train.options",
    "train": "longtail.training",
    "FinishedRun": "longtail.training",
    "Classifier": "longtail.classifier",
    "evaluate": "longtail.evaluating",
    "Evaluation": "longtail.evaluating",
}
__all__ = [
    "Classifier",
    "Evaluation",
    "FinishedRun",
    "Options",
    "ShardSet",
    "__version__",
    "build",
    "evaluate",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a name in `__all__` on first access."""
    if name not in _HOMES:
        raise AttributeError(f"module 'longtail' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
