"""What a run leaves to read: the options it prints at the start, result.json, tables and pictures at the end."""

import csv
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from pipeline.plan import Plan
from shards.class_counts import imbalance_ratio, shot_groups
from shards.reader import ShardSet
from train.evaluation import pictures
from train.evaluation.scores import Scores
from train.loop.trainer import History
from train.options import Options
from train.provenance import commit, hardware, versions
from train.run_folder import RunFolder, write_json


@dataclass(frozen=True)
class RunSummary:
    """What a report is written from.

    Args:
        derived: options that follow from others, the machine and the data.
        last, best: test scores of the final weights and of those that were best on the selection set.
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
    """Write result.json, per_class.csv and the pictures into the run folder, and print the table."""
    m, folder = summary, summary.folder.path
    train_set = m.datasets["train"]
    write_json(m.folder.result, result(m))
    write_per_class(folder / "per_class.csv", train_set, m.datasets["test"], m.last, m.best)
    pictures.curves(m.folder.metrics.records(), folder / "curves.png")
    groups = shot_groups(train_set.samples_per_class, m.options.data.group_rule())
    pictures.accuracy_by_class_size(
        train_set.samples_per_class, m.last.recall, groups, folder / "accuracy_by_class_size.png"
    )
    if train_set.num_classes <= pictures.MAX_CONFUSION_CLASSES:
        pictures.confusion(m.last.confusion, train_set.class_names, folder / "confusion.png")
    if m.plan.mix_rule is not None and m.plan.mix_rule.kind == "cutmix":
        pictures.pasted_sheet(m.plan, folder / "pasted.png")
    print_table(m)


def result(m: RunSummary) -> dict[str, Any]:
    """The content of result.json."""
    last, best = m.history.last or {}, m.history.best or {}
    return {
        "test": {
            "last": {"epoch": last.get("epoch"), **_rounded(m.last.numbers)},
            "best": {"epoch": best.get("epoch"), "selected_on": m.derived["selected_on"], **_rounded(m.best.numbers)},
        },
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
    return {"images_per_second": round(median(rates), 1), "peak_memory_gb": round(peak_memory_gb(), 2)}


def peak_memory_gb() -> float:
    """The most memory that this process needed so far, in GB: on its GPU or, without one, of the whole process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


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


def write_per_class(path: Path, train_set: ShardSet, test_set: ShardSet, last: Scores, best: Scores) -> None:
    """One row a class: name, training and test samples, recall in percent of the last and of the best weights."""
    columns = zip(
        train_set.class_names,
        train_set.samples_per_class,
        test_set.samples_per_class,
        100 * last.recall,
        100 * best.recall,
        strict=True,
    )
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "train_samples", "test_samples", "recall_last", "recall_best"])
        for number, (name, train_samples, test_samples, *recalls) in enumerate(columns):
            shown = ["" if np.isnan(value) else f"{value:.2f}" for value in recalls]
            writer.writerow([number, name, train_samples, test_samples, *shown])


def print_table(m: RunSummary) -> None:
    """The numbers a reader came for."""
    print(f"\ntest accuracy in percent ({m.derived['group_rule']})")
    print(f"{'':6}{'All':>8}{'Many':>8}{'Medium':>8}{'Few':>8}{'Top-5':>8}")
    for name, scores in (("last", m.last), ("best", m.best)):
        values = [scores.numbers[key] for key in ("all", "many", "medium", "few", "top5")]
        print(f"{name:6}" + "".join(f"{'-':>8}" if v is None else f"{v:8.2f}" for v in values))
    print(f"best: epoch {(m.history.best or {}).get('epoch')}, selected on the {m.derived['selected_on']} set")
    print(f"written to {m.folder.path}")
    sys.stdout.flush()


def _rounded(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in numbers.items()}
