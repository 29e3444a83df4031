"""What a run leaves to read: the options it prints at the start, result.json, tables and pictures at the end."""

import csv
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from pipeline.plan import Plan
from shards.class_counts import imbalance_ratio, shot_groups
from shards.class_names import shown
from shards.commandline import tell
from shards.reader import ShardSet
from train.datasets import classes_without_samples
from train.evaluation.decoration import decorate
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
    """Resolved and derived options on standard output, one per line."""

    def lines(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from lines(value, f"{prefix}{name}.")
            else:
                yield f"  {prefix}{name}: {value}"

    tell("\n".join(["options:", *lines(resolved), "derived:", *lines(derived)]))


def write_result(m: RunSummary) -> None:
    """Write result.json: from here on the run has its numbers, whatever else fails."""
    write_json(m.folder.result, result(m))


def decorate_run(m: RunSummary) -> None:
    """Print the table, write per_class.csv and the pictures into the run folder."""
    print_table(m)
    path = m.folder.path / "per_class.csv"
    measured = m.datasets[m.derived["reported_on"]]
    decorate(path, lambda: write_per_class(path, m.datasets["train"], measured, m.last, m.best))
    decorate(m.folder.path, lambda: _draw(m))


def _draw(m: RunSummary) -> None:
    from train.evaluation import pictures  # a plotting library that does not start must not cost a run its result

    train_set, folder = m.datasets["train"], m.folder.path
    counts, last = train_set.samples_per_class, m.last
    groups = shot_groups(counts, m.options.data.group_rule())

    def draw(name: str, picture: Callable[..., None], *content: Any) -> None:
        decorate(folder / name, lambda: picture(*content, folder / name))

    draw("curves.png", pictures.curves, m.folder.metrics.records())
    draw("accuracy_by_class_size.png", pictures.accuracy_by_class_size, counts, last.recall, groups)
    if train_set.num_classes <= pictures.MAX_CONFUSION_CLASSES:
        draw("confusion.png", pictures.confusion, last.confusion, train_set.class_names)
    if m.plan.mix_rule is not None and m.plan.mix_rule.kind == "cutmix":
        draw("pasted.png", pictures.pasted_sheet, m.plan)


def result(m: RunSummary) -> dict[str, Any]:
    """The content of result.json: numbers under "test", or "validation" in a run without a test set; epochs from 1."""
    selected = {"selected_on": m.derived["selected_on"], "selected_by": m.options.run.select_by}
    measured = m.datasets[m.derived["reported_on"]]
    return {
        m.derived["reported_on"]: {
            "last": {"epoch": _epoch(m.history.last), **_rounded(m.last.numbers)},
            "best": {"epoch": _epoch(m.history.best), **selected, **_rounded(m.best.numbers)},
            "classes_without_images": classes_without_samples(measured),
        },
        "warnings": m.derived["warnings"],
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
        "images_checksum": dataset.images_checksum,
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
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "train_samples", "test_samples", "recall_last", "recall_best"])
        for number, (name, train_samples, test_samples, *recalls) in enumerate(columns):
            shown = ["" if np.isnan(value) else f"{value:.2f}" for value in recalls]
            writer.writerow([number, name, train_samples, test_samples, *shown])


def print_table(m: RunSummary) -> None:
    """The numbers a reader came for."""
    reported = m.derived["reported_on"]
    lines = [f"\n{reported} accuracy in percent ({m.derived['group_rule']})"]
    lines.append(f"{'':6}{'All':>8}{'Balanced':>10}{'Many':>8}{'Medium':>8}{'Few':>8}{'Top-5':>8}")
    for name, scores in (("last", m.last), ("best", m.best)):
        widths = {"all": 8, "balanced": 10, "many": 8, "medium": 8, "few": 8, "top5": 8}
        values = [("-" if (v := scores.numbers[key]) is None else f"{v:.2f}", width) for key, width in widths.items()]
        lines.append(f"{name:6}" + "".join(value.rjust(width) for value, width in values))
    selected = f"selected on the {m.derived['selected_on']} set by {m.options.run.select_by}"
    lines.append(f"best: epoch {_epoch(m.history.best)}, {selected}")
    lacking = classes_without_samples(m.datasets[reported])
    if lacking:
        lines.append(f"the {reported} set has no image of {len(lacking)} classes: {shown(lacking)}")
    lines += [f"WARNING: {warning}" for warning in m.derived["warnings"]]
    lines.append(f"written to {m.folder.path}")
    tell("\n".join(lines))


def _epoch(entry: Mapping[str, Any] | None) -> int | None:
    """Counted from one, as everywhere that people read; metrics.jsonl and checkpoints count from zero."""
    return None if entry is None else entry["epoch"] + 1


def _rounded(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in numbers.items()}
