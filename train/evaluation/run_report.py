"""What a run leaves to read: the options it prints at the start, result.json, tables and pictures at the end."""

import logging
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from pipeline.plan import Plan
from shards.class_counts import imbalance_ratio, shot_groups
from shards.reader import ShardSet
from train.evaluation import pictures
from train.evaluation.class_tables import write_per_class, write_predictions
from train.evaluation.details import Details
from train.evaluation.examples import write_thumbnails
from train.evaluation.page.render import PAGE, write_page
from train.evaluation.scores import Scores
from train.loop.trainer import History
from train.options import Options
from train.run_folder import RunFolder, write_json

logger = logging.getLogger(__name__)

_VERSIONED = ("torch", "accelerate", "numpy", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "timm", "pillow")


@dataclass(frozen=True)
class RunSummary:
    """What a report is written from.

    Args:
        derived: options that follow from others, the machine and the data.
        last, best: test scores of the final weights and of those that were best on the selection set.
        details: of the final weights; None where their logits were too many to keep.
        replaced_samples: data set → sample id → why another sample was trained on in its place.
    """

    options: Options
    derived: dict[str, Any]
    folder: RunFolder
    datasets: dict[str, ShardSet]
    plan: Plan
    history: History
    last: Scores
    best: Scores
    details: Details | None
    replaced_samples: dict[str, dict[int, str]]


def print_options(resolved: Mapping[str, Any], derived: Mapping[str, Any]) -> None:
    """Resolved and derived options on standard output, one a line."""

    def lines(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                lines(value, f"{prefix}{name}.")
            else:
                print(f"  {prefix}{name}: {value}")

    print("options:")
    lines(resolved, "")
    print("derived:")
    lines(derived, "")
    sys.stdout.flush()


def write(summary: RunSummary) -> None:
    """Write result.json and the tables into the run folder and print the numbers; then what decorates them.

    A picture that fails is a warning: the run is finished without it.
    """
    m, folder = summary, summary.folder.path
    train_set, test_set, rule = m.datasets["train"], m.datasets["test"], m.options.data.group_rule()
    counts = train_set.samples_per_class
    write_json(m.folder.result, result(m))
    per_class = folder / "per_class.csv"
    write_per_class(per_class, test_set, counts, rule, m.last, m.details, {"recall_best": m.best.recall})
    write_predictions(folder / "predictions.csv", test_set, m.last.predictions)
    print_table(m)
    for name, draw in _decorations(m, shot_groups(counts, rule)).items():
        try:
            draw(folder / name)
        except Exception as error:  # whatever a font, a full disk or a library may bring
            logger.warning("%s was not written, the results are: %s: %s", folder / name, type(error).__name__, error)


def _decorations(m: RunSummary, groups: dict[str, np.ndarray]) -> dict[str, Callable[[Path], None]]:
    """How the pictures of a run are drawn, by file name."""
    train_set, test_set = m.datasets["train"], m.datasets["test"]
    counts, names = train_set.samples_per_class, train_set.class_names
    drawn: dict[str, Callable[[Path], None]] = {
        "curves.png": lambda path: pictures.curves(m.folder.metrics.records(), path),
        "accuracy_by_class_size.png": lambda path: pictures.accuracy_by_class_size(
            counts, m.last.recall, groups, names, path
        ),
        "confusion.png": lambda path: pictures.confusion(m.last.confusion, names, counts, groups, path),
    }
    if m.plan.mix_rule is not None and m.plan.mix_rule.kind == "cutmix":
        drawn["pasted.png"] = lambda path: pictures.pasted_sheet(m.plan, path)
    drawn["thumbnails.json"] = lambda path: write_thumbnails(path, train_set, test_set, m.last)
    drawn[PAGE] = lambda path: write_page([m.folder.path], path)  # made of all that is there by now
    return drawn


def result(m: RunSummary) -> dict[str, Any]:
    """The content of result.json."""
    last, best = m.history.last or {}, m.history.best or {}
    return {
        "test": {
            "last": {"epoch": last.get("epoch"), **_rounded(m.last.numbers)},
            "best": {"epoch": best.get("epoch"), "selected_on": m.derived["selected_on"], **_rounded(m.best.numbers)},
        },
        "reliability": None if m.details is None else m.details.reliability,
        "group_rule": m.derived["group_rule"],
        "method": {"name": m.options.method_name, **m.options.resolved["method"]},
        "model": m.options.resolved["model"],
        "executors": m.derived["executors"],
        "micro_batch": m.derived["micro_batch"],
        "seconds": round(m.history.seconds, 1),
        "cost": cost(m.folder.metrics.records()),
        "data": {role: describe_data(dataset) for role, dataset in m.datasets.items()},
        "replaced_samples": m.replaced_samples,
        "options": m.options.resolved,
        "derived": m.derived,
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
    }


def cost(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What training took: trained images a second over all ranks, the median of the epochs; and the most memory in GB
    that the first rank needed since it started, on its GPU or, without one, of the whole process."""
    rates = [record["images_per_second"] for record in records if record["kind"] == "epoch"]
    if torch.cuda.is_initialized():
        peak_bytes = torch.cuda.max_memory_allocated()
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak_bytes = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"images_per_second": round(median(rates), 1), "peak_memory_gb": round(peak_bytes / 1e9, 2)}


def describe_data(dataset: ShardSet) -> dict[str, Any]:
    """Which data a number belongs to."""
    present = dataset.samples_per_class[dataset.samples_per_class > 0]
    return {
        "name": dataset.info.name,
        "split": dataset.info.split,
        "samples": len(dataset),
        "classes": dataset.num_classes,
        "imbalance_ratio": round(imbalance_ratio(present), 3),
        "checksum": dataset.checksum,
    }


def versions() -> dict[str, str]:
    """Python and the packages that numbers can depend on."""
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    return found


def hardware() -> str:
    """The device that trained, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """Commit of the code, with "+changes" where files differ from it; None outside of a git checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


_PRINTED = {
    "All": "all",
    "Many": "many",
    "Medium": "medium",
    "Few": "few",
    "Top-5": "top5",
    "Balanced": "balanced",
    "F1 macro": "f1_macro",
    "AUROC": "auroc",
}


def print_table(m: RunSummary) -> None:
    """The numbers a reader came for."""
    print(f"\ntest results in percent ({m.derived['group_rule']})")
    print(f"{'':6}" + "".join(f"{title:>10}" for title in _PRINTED))
    for name, scores in (("last", m.last), ("best", m.best)):
        values = [scores.numbers.get(key) for key in _PRINTED.values()]
        print(f"{name:6}" + "".join(f"{'-':>10}" if v is None else f"{v:10.2f}" for v in values))
    print("All and Top-5 are averages over images, the others over classes.")
    print(f"best: epoch {(m.history.best or {}).get('epoch')}, selected on the {m.derived['selected_on']} set")
    print(f"written to {m.folder.path}")
    sys.stdout.flush()


def _rounded(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in numbers.items()}
