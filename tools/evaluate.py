"""Evaluate checkpoints of runs and released ones: python -m tools.evaluate --checkpoint FILE … --data DIR.

With several checkpoints, for example of several seeds, mean ± standard deviation too.
"""

import argparse
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
from tools.markdown import markdown
from train.checkpoints.trained import Trained, load_trained
from train.evaluation import pictures
from train.evaluation.class_tables import write_per_class, write_predictions
from train.evaluation.details import Details, with_details
from train.evaluation.metrics import MEANINGS
from train.evaluation.posthoc import adjust_logits, tau_normalise
from train.evaluation.scores import Predictions, Scores, predict, score
from train.evaluation.spread import mean_and_spread
from train.run_folder import write_json

SHOWN = {
    "All": "all",
    "Many": "many",
    "Medium": "medium",
    "Few": "few",
    "Balanced": "balanced",
    "Worst class": "worst",
    "Harmonic": "harmonic",
    "Top-5": "top5",
    "F1 macro": "f1_macro",
    "F1 weighted": "f1_weighted",
    "AUROC": "auroc",
    "AP": "average_precision",
    "ECE": "calibration_error",
    "ECE scaled": "calibration_error_scaled",
}


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


def evaluate(
    trained: Trained, dataset: ShardSet, counts: np.ndarray, options: argparse.Namespace
) -> tuple[Scores, Details | None]:
    """Scores of a network on every image of a shard set; no details where their logits are too many to keep."""
    if options.tau_norm is not None:
        tau_normalise(trained.model, options.tau_norm)
    if options.logit_adjustment is not None:
        if _corrects_prior(trained):
            print(
                f"evaluate: warning: {trained.path} was trained with a loss that corrects the prior already; "
                "--logit-adjustment corrects it a second time",
                file=sys.stderr,
            )
        adjust_logits(trained.model, counts, options.logit_adjustment)
    validation = None
    if options.validation is not None:
        validation_set = ShardSet.open(options.validation)
        check_fit(trained, validation_set, counts)
        validation = _predictions(trained, validation_set, options)
    rule, predictions = GroupRule(options.many_min, options.few_max), _predictions(trained, dataset, options)
    scores = score(predictions, counts, rule)
    return (scores, None) if predictions.logits is None else with_details(scores, counts, rule, validation)


def _predictions(trained: Trained, dataset: ShardSet, options: argparse.Namespace) -> Predictions:
    device, view = trained.method.context.device, trained.preset.evaluation
    batches = evaluation_batches(dataset, view, options.batch_size, device, executor=options.executor)
    return predict(trained.method, trained.model, batches, len(dataset), nullcontext, keep_logits=True)


def _corrects_prior(trained: Trained) -> bool:
    """Whether the network was trained on logits that had the prior added, so that its own have it taken out."""
    chosen = {name: getattr(trained.method.options, name, None) for name in ("loss", "rebalance", "objective")}
    return chosen["loss"] in ("bs", "la") or chosen["rebalance"] == "bs" or chosen["objective"] == "ncl"


def write(
    folder: Path,
    trained: Trained,
    dataset: ShardSet,
    counts: np.ndarray,
    found: tuple[Scores, Details | None],
    rule: GroupRule,
) -> None:
    """scores.json, per_class.csv, predictions.csv, confusion.csv and the pictures of one checkpoint."""
    scores, details = found
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "scores.json",
        {
            "checkpoint": str(trained.path),
            "network": trained.description,
            "preset": trained.preset.name,
            "group_rule": rule.describe(),
            "test": scores.numbers,
            "reliability": None if details is None else details.reliability,
            "meanings": {name: meaning for name, meaning in MEANINGS.items() if name in scores.numbers},
        },
    )
    write_per_class(folder / "per_class.csv", dataset, counts, rule, scores, details)
    write_predictions(folder / "predictions.csv", dataset, scores.predictions)
    np.savetxt(folder / "confusion.csv", scores.confusion, fmt="%d", delimiter=",")
    groups, names = shot_groups(counts, rule), dataset.class_names
    pictures.accuracy_by_class_size(counts, scores.recall, groups, names, folder / "accuracy_by_class_size.png")
    pictures.confusion(scores.confusion, names, counts, groups, folder / "confusion.png")


def table(scores: dict[str, Scores], kinds: dict[str, str]) -> str:
    """Markdown: one row per checkpoint, and mean ± standard deviation of those of one kind.

    kinds: by name of the checkpoint, what it has to share with others to be averaged with them: method and network.
    """
    rows = [[name, *(mean_and_spread([s.numbers.get(key)]) for key in SHOWN.values())] for name, s in scores.items()]
    for kind in dict.fromkeys(kinds.values()):
        members = [scores[name] for name in scores if kinds[name] == kind]
        if len(members) > 1:
            columns = [[s.numbers.get(key) for s in members] for key in SHOWN.values()]
            of = "" if len(set(kinds.values())) == 1 else f" x {kind}"
            rows.append([f"mean of {len(members)}{of}", *map(mean_and_spread, columns)])
    return markdown(("checkpoint", *SHOWN), rows)


def _explanation(scores: dict[str, Scores]) -> str:
    """What the columns mean, one line each."""
    numbers = [s.numbers for s in scores.values()]
    there = [(title, key) for title, key in SHOWN.items() if any(n.get(key) is not None for n in numbers)]
    return "".join(f"- {title}: {MEANINGS[key]}\n" for title, key in there)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, write, print the table."""
    options = _parser().parse_args(arguments)
    names = _distinct_names(options.checkpoint)
    try:
        rule = GroupRule(options.many_min, options.few_max)
        counts, dataset = read_train_counts(options.train_counts), ShardSet.open(options.data)
        scores: dict[str, Scores] = {}
        kinds: dict[str, str] = {}
        for name, path in zip(names, options.checkpoint, strict=True):
            trained = load_trained(path, torch.device(options.device), options.preset)
            check_fit(trained, dataset, counts)
            print(f"{path}: {trained.description}, preset {trained.preset.name}", flush=True)
            found = evaluate(trained, dataset, counts, options)
            write(options.out / name, trained, dataset, counts, found, rule)
            scores[name], kinds[name] = found[0], f"{trained.description} ({trained.method.options})"
    except (ValueError, FileNotFoundError, StoreError) as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 1
    title = f"Results in percent on {options.data} ({len(dataset)} images); {rule.describe()}."
    text = f"{title}\n\n{table(scores, kinds)}\n{_explanation(scores)}"
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
    add("--validation", type=set_location, metavar="DIR|URL", help="shard set to fit the temperature of ECE scaled on")
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
