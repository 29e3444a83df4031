"""A run's reports: the options printed at the start; result.json, tables and figures at the end."""

import logging
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from pipeline.plan import Plan
from shards.class_counts import imbalance_ratio, shot_groups
from shards.class_names import shown
from shards.commandline import tell
from shards.reader import ShardSet
from train.datasets import classes_without_samples
from train.evaluation.class_tables import write_per_class, write_predictions
from train.evaluation.decoration import decorate
from train.evaluation.details import Details
from train.evaluation.scores import Scores
from train.loop.trainer import History
from train.options import Options
from train.provenance import commit, hardware, versions
from train.run_folder import RunFolder, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSummary:
    """The inputs of a report.

    Args:
        derived: options derived from others, the machine and the data.
        last, best: test scores of the final weights and of the best ones on the selection set.
        details: details of the final weights; None if there were too many logits to keep.
        replaced_samples: data set → sample id → why it was replaced by another sample.
        startup: part of the start → wall and CPU seconds, of this process.
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
    startup: dict[str, dict[str, float]]


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
    """Write result.json; the numbers are then saved, whatever else fails."""
    write_json(m.folder.result, result(m))


def decorate_run(m: RunSummary) -> None:
    """Print the table; write per_class.csv, predictions.csv, the figures and the page into the run folder."""
    print_table(m)
    folder, counts, rule = m.folder.path, m.datasets["train"].samples_per_class, m.options.data.group_rule()
    measured = m.datasets[m.derived["reported_on"]]
    best = {"recall_best": m.best.recall}
    path = folder / "per_class.csv"
    decorate(path, lambda: write_per_class(path, measured, counts, rule, m.last, m.details, best))
    decorate(folder / "predictions.csv", lambda: _write_predictions(m, measured))
    decorate(folder, lambda: _draw(m, measured))


def _write_predictions(m: RunSummary, measured: ShardSet) -> None:
    write_predictions(m.folder.path / "predictions.csv", measured, m.last.predictions)


def _draw(m: RunSummary, measured: ShardSet) -> None:
    # A plotting or page library that fails to load must not cost a run its result.
    from train.evaluation import pictures
    from train.evaluation.examples import write_thumbnails
    from train.evaluation.page.render import PAGE, write_page

    train_set, folder, last = m.datasets["train"], m.folder.path, m.last
    counts, names = train_set.samples_per_class, train_set.class_names
    groups = shot_groups(counts, m.options.data.group_rule())

    def draw(name: str, picture: Callable[..., None], *content: Any) -> None:
        decorate(folder / name, lambda: picture(*content, folder / name))

    draw("curves.png", pictures.curves, m.folder.metrics.records())
    draw("accuracy_by_class_size.png", pictures.accuracy_by_class_size, counts, last.recall, groups, names)
    draw("confusion.png", pictures.confusion, last.confusion, names, counts, groups)
    if m.plan.mix_rule is not None and m.plan.mix_rule.kind == "cutmix":
        draw("pasted.png", pictures.pasted_sheet, m.plan)
    draw("thumbnails.json", write_thumbnails, train_set, measured, last)
    draw(PAGE, write_page, [folder])  # uses everything written so far


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
        "reliability": None if m.details is None else m.details.reliability,
        "warnings": m.derived["warnings"],
        "group_rule": m.derived["group_rule"],
        "method": {"name": m.options.method_name, **m.options.resolved["method"]},
        "model": m.options.resolved["model"],
        "executors": m.derived["executors"],
        "micro_batch": m.derived["micro_batch"],
        "seconds": round(m.history.seconds, 1),
        "startup_seconds": m.startup,
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
    """The cost of training: trained images per second over all ranks, median over epochs; and the first rank's peak
    memory in GB, on its GPU or, without one, of the whole process.
    """
    rates = [record["images_per_second"] for record in records if record["kind"] == "epoch"]
    return {"images_per_second": round(median(rates), 1), "peak_memory_gb": round(peak_memory_gb(), 2)}


def peak_memory_gb() -> float:
    """This process's peak memory so far, in GB: on its GPU or, without one, of the whole process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def describe_data(dataset: ShardSet) -> dict[str, Any]:
    """The data that a number belongs to."""
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
    """The most important numbers."""
    reported = m.derived["reported_on"]
    lines = [f"\n{reported} results in percent ({m.derived['group_rule']})"]
    lines.append(f"{'':6}" + "".join(f"{title:>10}" for title in _PRINTED))
    for name, scores in (("last", m.last), ("best", m.best)):
        values = [scores.numbers.get(key) for key in _PRINTED.values()]
        lines.append(f"{name:6}" + "".join(f"{'-':>10}" if v is None else f"{v:10.2f}" for v in values))
    lines.append("All and Top-5 are averages over images, the others over classes.")
    selected = f"selected on the {m.derived['selected_on']} set by {m.options.run.select_by}"
    lines.append(f"best: epoch {_epoch(m.history.best)}, {selected}")
    lacking = classes_without_samples(m.datasets[reported])
    if lacking:
        lines.append(f"the {reported} set has no images of {len(lacking)} classes: {shown(lacking)}")
    lines += [f"WARNING: {warning}" for warning in m.derived["warnings"]]
    lines.append(f"written to {m.folder.path}")
    tell("\n".join(lines))


def _epoch(entry: Mapping[str, Any] | None) -> int | None:
    """Counted from one, as in all text for people; metrics.jsonl and checkpoints count from zero."""
    return None if entry is None else entry["epoch"] + 1


def _rounded(numbers: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(value, 4) for name, value in numbers.items()}
