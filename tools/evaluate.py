"""Evaluate checkpoints of runs and released ones: python -m tools.evaluate --checkpoint FILE … --data DIR.

With several checkpoints, for example of several seeds, mean ± standard deviation too.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from pipeline.loader import evaluation_batches
from shards.class_counts import GroupRule, shot_groups
from shards.object_store import StoreError, is_url, set_location
from shards.reader import ShardSet
from tools.markdown import markdown, mean_and_spread
from train.checkpoints.trained import Trained, load_trained
from train.evaluation import pictures
from train.evaluation.posthoc import adjust_logits, tau_normalise
from train.evaluation.scores import Scores, predict, score
from train.evaluation.test_prior import add_options, for_test_prior
from train.run_folder import write_json

SHOWN = ("all", "many", "medium", "few", "balanced", "worst", "harmonic", "calibration_error")
TITLES = ("All", "Many", "Medium", "Few", "Balanced", "Worst class", "Harmonic", "ECE")


def read_train_counts(path: Path | str) -> np.ndarray:
    """Training samples of each class, int64 (classes,): of a shard set, or from JSON.

    The JSON is a list of counts, or an object with such a list under "samples_per_class" (as in a dataset.json).
    """
    if is_url(path) or Path(path).is_dir():
        return ShardSet.open(path).samples_per_class
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected the folder of a training shard set, or JSON of counts") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    counts = content.get("samples_per_class") if isinstance(content, dict) else content
    if not isinstance(counts, list) or not counts or not all(type(n) is int and n > 0 for n in counts):
        raise ValueError(f"{path}: expected a list of positive counts, alone or under 'samples_per_class'")
    return np.array(counts, dtype=np.int64)


def check_fit(trained: Trained, dataset: ShardSet, counts: np.ndarray) -> None:
    """Refuse networks, data and counts with different numbers of classes."""
    found = {str(trained.path): trained.classes, str(dataset.path): dataset.num_classes, "--train-counts": len(counts)}
    if len(set(found.values())) > 1:
        raise ValueError(f"numbers of classes differ: {', '.join(f'{n} in {what}' for what, n in found.items())}")


def evaluate(trained: Trained, dataset: ShardSet, counts: np.ndarray, options: argparse.Namespace) -> Scores:
    """Scores of a network on every image of a shard set."""
    if options.tau_norm is not None:
        tau_normalise(trained.model, options.tau_norm)
    if options.logit_adjustment is not None:
        adjust_logits(trained.model, counts, options.logit_adjustment)
    device = trained.method.context.device
    views = trained.preset.crops if options.crops == 5 else trained.preset.evaluation
    if not views:
        raise ValueError(f"--crops 5 needs a preset that follows the backbone; {trained.preset.name} has no such crops")
    batches = evaluation_batches(dataset, views, options.batch_size, device, executor=options.executor)
    predictions = predict(trained.method, trained.model, batches, len(dataset), nullcontext)
    return score(predictions, counts, GroupRule(options.many_min, options.few_max))


def write(
    folder: Path, trained: Trained, dataset: ShardSet, counts: np.ndarray, scores: Scores, rule: GroupRule
) -> None:
    """scores.json, per_class.csv, confusion.csv and the pictures of one checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"checkpoint": str(trained.path), "network": trained.description, "preset": trained.preset.name}
    write_json(folder / "scores.json", {**content, "group_rule": rule.describe(), "test": scores.numbers})
    predicted = scores.confusion.sum(axis=0)
    with (folder / "per_class.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "train_samples", "test_samples", "recall", "precision"])
        for number, name in enumerate(dataset.class_names):
            correct = scores.confusion[number, number]
            shares = [_percent(correct, total) for total in (dataset.samples_per_class[number], predicted[number])]
            writer.writerow([number, name, counts[number], dataset.samples_per_class[number], *shares])
    np.savetxt(folder / "confusion.csv", scores.confusion, fmt="%d", delimiter=",")
    groups = shot_groups(counts, rule)
    pictures.accuracy_by_class_size(counts, scores.recall, groups, folder / "accuracy_by_class_size.png")
    if dataset.num_classes <= pictures.MAX_CONFUSION_CLASSES:
        pictures.confusion(scores.confusion, dataset.class_names, folder / "confusion.png")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else ""


def table(scores: dict[str, Scores]) -> str:
    """Markdown: a row a checkpoint, and mean ± standard deviation where there are several."""
    rows = [[name, *(mean_and_spread([s.numbers[key]]) for key in SHOWN)] for name, s in scores.items()]
    if len(scores) > 1:
        columns = [[s.numbers[key] for s in scores.values()] for key in SHOWN]
        rows.append([f"mean of {len(scores)}", *map(mean_and_spread, columns)])
    return markdown(("checkpoint", *TITLES), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, write, print the table."""
    options = _parser().parse_args(arguments)
    names = _distinct_names(options.checkpoint)
    try:
        rule = GroupRule(options.many_min, options.few_max)
        counts, dataset = read_train_counts(options.train_counts), ShardSet.open(options.data)
        scores = {}
        for name, path in zip(names, options.checkpoint, strict=True):
            trained = load_trained(path, torch.device(options.device), options.preset, options.weights)
            trained = for_test_prior(trained, options.test_prior, counts)
            check_fit(trained, dataset, counts)
            print(f"{path}: {trained.description}, preset {trained.preset.name}", flush=True)
            scores[name] = evaluate(trained, dataset, counts, options)
            write(options.out / name, trained, dataset, counts, scores[name], rule)
    except (ValueError, FileNotFoundError, StoreError) as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 1
    text = f"Accuracy in percent on {options.data} ({len(dataset)} images); {rule.describe()}.\n\n{table(scores)}"
    (options.out / "table.md").write_text(text)
    print(f"\n{text}\nTables and pictures are in {options.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.evaluate", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, nargs="+", required=True, metavar="FILE", help="of a run, or as released")
    add("--data", type=set_location, required=True, metavar="DIR|URL", help="shard set to evaluate on")
    counts_help = "training shard set, or its class counts"
    add("--train-counts", type=set_location, required=True, metavar="DIR|URL|JSON", help=counts_help)
    add_options(parser)
    add("--crops", type=int, default=1, choices=(1, 5), help="test-time ensemble of five crops, beside one crop")
    add("--preset", help="evaluation view and normalisation by name (default: the run's; the usual one for a release)")
    add("--many-min", type=int, default=101, metavar="N", help="many: at least N training samples (default: 101)")
    add("--few-max", type=int, default=19, metavar="N", help="few: at most N (default: 19; the 224-pixel trainers: 20)")
    add("--tau-norm", type=float, metavar="TAU", help="divide class vectors by their norm to this power (Kang et al.)")
    add("--logit-adjustment", type=float, metavar="TAU", help="subtract TAU · log prior from the logits (Menon et al.)")
    add("--batch-size", type=int, default=256, help="images at once (default: 256)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (default: %(default)s)")
    add("--executor", default="auto", choices=("auto", "dali", "resident", "reference"), help="who decodes")
    add("--out", type=Path, default=Path("runs/evaluation"), metavar="DIR", help="where to write (%(default)s)")
    return parser


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each checkpoint: the last parts of its path, as many as tell them apart."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["-".join((*path.with_suffix("").parts[-parts:],)).strip("/-") for path in paths]
        if len(set(names)) == len(names):
            return names
    raise SystemExit("evaluate: error: the same checkpoint is given twice")


if __name__ == "__main__":
    sys.exit(main())
