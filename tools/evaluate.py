"""Evaluate checkpoints of runs and released ones: python -m tools.evaluate --checkpoint FILE|RUN … --data DIR.

With several checkpoints of one method, for example of several seeds, mean ± standard deviation too.
"""

import csv
import json
import logging
import sys
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.loader import evaluation_batches
from shards.class_counts import GroupRule, shot_groups
from shards.class_names import class_ids, shown
from shards.commandline import (
    OldPresetName,
    Parser,
    UsageError,
    finite_number,
    home_path,
    run_command,
    tell,
    whole_number,
)
from shards.object_store import is_url, set_location
from shards.reader import ShardSet
from tools.markdown import markdown, mean_and_spread
from train.checkpoints.files import checkpoint_file
from train.checkpoints.trained import Trained, load_trained
from train.datasets import classes_without_samples
from train.evaluation.decoration import decorate
from train.evaluation.posthoc import adjust_logits, tau_normalise
from train.evaluation.scores import Scores, predict, score
from train.launch import device_of
from train.run_folder import write_json

logger = logging.getLogger(__name__)

SHOWN = ("all", "many", "medium", "few", "balanced", "worst", "harmonic", "calibration_error")
TITLES = ("All", "Many", "Medium", "Few", "Balanced", "Worst class", "Harmonic", "ECE")


def read_train_counts(path: Path | str, trained: Trained) -> np.ndarray:
    """Training samples of each class of a network, int64 (classes,): of a shard set, or from JSON.

    The JSON is a list of counts in the network's order, or an object with such a list under "samples_per_class". Where
    the network and the source name their classes (a shard set, or "class_names" beside the counts, as in a
    dataset.json), they are matched by name.
    """
    if is_url(path) or Path(path).is_dir():
        dataset = ShardSet.open(path)
        return _counts_by_name(dataset.class_names, dataset.samples_per_class, trained, str(path))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected the folder of a training shard set, or JSON of counts") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    by_key = content if isinstance(content, dict) else {"samples_per_class": content}
    counts, names = by_key.get("samples_per_class"), by_key.get("class_names")
    if not isinstance(counts, list) or not counts or not all(type(n) is int and n > 0 for n in counts):
        raise ValueError(f"{path}: expected a list of positive counts, alone or under 'samples_per_class'")
    if isinstance(names, list) and len(names) == len(counts):
        return _counts_by_name([str(name) for name in names], np.array(counts), trained, str(path))
    return np.array(counts, dtype=np.int64)


def _counts_by_name(names: Sequence[str], counts: np.ndarray, trained: Trained, where: str) -> np.ndarray:
    if trained.class_names is None:
        return counts
    ids = class_ids(names, trained.class_names, counts, where, f"the network {trained.path}")
    if set(ids[ids >= 0].tolist()) != set(range(trained.classes)):
        raise ValueError(f"{where}: {len(names)} classes, the network {trained.path} has {trained.classes} by name")
    result = np.zeros(trained.classes, dtype=np.int64)
    result[ids[ids >= 0]] = counts[ids >= 0]
    return result


def train_counts(options: Namespace, trained: Trained) -> np.ndarray:
    """Training samples of each class, from --train-counts or from the checkpoint.

    Raises:
        UsageError: a released file has none, and the option is not given.
    """
    if options.train_counts is not None:
        return read_train_counts(options.train_counts, trained)
    if trained.samples_per_class is None:
        raise UsageError(
            f"{trained.path}: a released file does not say how many training samples its classes have; give "
            "--train-counts, the training shard set or JSON of counts"
        )
    return trained.samples_per_class


def matched(trained: Trained, dataset: ShardSet) -> ShardSet:
    """The set under the network's class ids, by name; as it is for a released network, whose classes have no names.

    Raises:
        ValueError: it has a class that the network does not know.
    """
    if trained.class_names is None:
        return dataset
    result = dataset.with_classes(trained.class_names, f"the network {trained.path}")
    if dataset.class_names != result.class_names:
        logger.warning("%s has its own list of classes; matched by name to those of the network", dataset.path)
    return result


def check_fit(trained: Trained, dataset: ShardSet, counts: np.ndarray) -> None:
    """Refuse networks, data and counts with different numbers of classes."""
    found = {str(trained.path): trained.classes, str(dataset.path): dataset.num_classes, "--train-counts": len(counts)}
    if len(set(found.values())) > 1:
        raise ValueError(f"numbers of classes differ: {', '.join(f'{n} in {what}' for what, n in found.items())}")


def cautions(trained: Trained, dataset: ShardSet, options: Namespace) -> list[str]:
    """What a reader of the numbers has to know."""
    found = []
    if options.logit_adjustment is not None and trained.corrects_prior:
        found.append(
            f"{trained.path}: trained with the loss {trained.settings['method.loss']}, which corrects the class prior "
            "already; --logit-adjustment corrects it a second time"
        )
    lacking = classes_without_samples(dataset)
    if lacking:
        found.append(f"{dataset.path}: no image of {len(lacking)} of {dataset.num_classes} classes: {shown(lacking)}")
    if trained.class_names is None:
        found.append(
            f"{trained.path}: a released file names no classes; those of {dataset.path} are taken in their order"
        )
    return found


def evaluate(trained: Trained, dataset: ShardSet, counts: np.ndarray, options: Namespace) -> Scores:
    """Scores of a network on every image of a shard set, which has the network's class ids."""
    if options.tau_norm is not None:
        tau_normalise(trained.model, options.tau_norm)
    if options.logit_adjustment is not None:
        adjust_logits(trained.model, counts, options.logit_adjustment)
    device = trained.method.context.device
    batches = evaluation_batches(
        dataset, trained.preset.evaluation, options.batch_size, device, executor=options.executor
    )
    predictions = predict(trained.method, trained.model, batches, len(dataset), nullcontext)
    return score(predictions, counts, GroupRule(options.many_min, options.few_max))


def write(
    folder: Path,
    trained: Trained,
    dataset: ShardSet,
    counts: np.ndarray,
    scores: Scores,
    rule: GroupRule,
    warnings: Sequence[str] = (),
) -> None:
    """scores.json, per_class.csv, confusion.csv and the pictures of one checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"checkpoint": str(trained.path), "network": trained.description, "preset": trained.preset.name}
    content["data"] = str(dataset.path)
    lacking = classes_without_samples(dataset)
    about = {"group_rule": rule.describe(), "classes_without_images": lacking, "warnings": list(warnings)}
    write_json(folder / "scores.json", {**content, **about, "test": scores.numbers})
    np.savetxt(folder / "confusion.csv", scores.confusion, fmt="%d", delimiter=",")
    decorate(folder / "per_class.csv", lambda: _write_per_class(folder / "per_class.csv", dataset, counts, scores))
    decorate(folder, lambda: _draw(folder, dataset, counts, scores, rule))


def _write_per_class(path: Path, dataset: ShardSet, counts: np.ndarray, scores: Scores) -> None:
    predicted = scores.confusion.sum(axis=0)
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "train_samples", "test_samples", "recall", "precision"])
        for number, name in enumerate(dataset.class_names):
            correct = scores.confusion[number, number]
            shares = [_percent(correct, total) for total in (dataset.samples_per_class[number], predicted[number])]
            writer.writerow([number, name, counts[number], dataset.samples_per_class[number], *shares])


def _draw(folder: Path, dataset: ShardSet, counts: np.ndarray, scores: Scores, rule: GroupRule) -> None:
    from train.evaluation import pictures  # a plotting library that does not start must not cost the numbers

    def draw(name: str, picture: Callable[..., None], *content: Any) -> None:
        decorate(folder / name, lambda: picture(*content, folder / name))

    groups = shot_groups(counts, rule)
    draw("accuracy_by_class_size.png", pictures.accuracy_by_class_size, counts, scores.recall, groups)
    if dataset.num_classes <= pictures.MAX_CONFUSION_CLASSES:
        draw("confusion.png", pictures.confusion, scores.confusion, dataset.class_names)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else ""


def table(scores: Mapping[str, Scores], with_mean: bool = True) -> str:
    """Markdown: one row per checkpoint, and mean ± standard deviation where there are several."""
    rows = [[name, *(mean_and_spread([s.numbers[key]]) for key in SHOWN)] for name, s in scores.items()]
    if len(scores) > 1 and with_mean:
        columns = [[s.numbers[key] for s in scores.values()] for key in SHOWN]
        rows.append([f"mean of {len(scores)}", *map(mean_and_spread, columns)])
    return markdown(("checkpoint", *TITLES), rows)


def differences(settings: Mapping[str, tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Names of what differs between networks beside their seeds: (description, settings) by checkpoint."""
    flat = [{"network": description, **values} for description, values in settings.values()]
    names = dict.fromkeys(name for one in flat for name in one)
    return [name for name in names if any(one.get(name) != flat[0].get(name) for one in flat)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, write, print the table."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = _parser().parse_args(arguments)
    return run_command("evaluate", lambda: _main(options))


def _main(options: Namespace) -> int:
    device = device_of(options.device)
    rule = _group_rule(options)
    paths = [checkpoint_file(path) for path in options.checkpoint]
    names = _distinct_names(paths)
    options.out = options.out or Path("runs/evaluation") / _default_name(paths, options.data)
    claim(options.out, paths, options)
    dataset = ShardSet.open(set_location(options.data))
    scores, settings, warnings = {}, {}, []
    for name, path in zip(names, paths, strict=True):
        trained = load_trained(path, device, options.preset)
        counts, own = train_counts(options, trained), matched(trained, dataset)
        check_fit(trained, own, counts)
        tell(f"{path}: {trained.description}, preset {trained.preset.name}")
        found = cautions(trained, own, options)
        for warning in found:
            logger.warning("%s", warning)
        scores[name] = evaluate(trained, own, counts, options)
        settings[name] = (trained.description, trained.settings)
        warnings += found
        write(options.out / name, trained, own, counts, scores[name], rule, found)
    differing = differences(settings)
    if differing:
        warnings.append(f"no mean over the checkpoints: they differ in {', '.join(differing[:8])}")
    notes = "".join(f"\n{warning}\n" for warning in dict.fromkeys(warnings))
    text = f"Accuracy in percent on {options.data} ({len(dataset)} images); {rule.describe()}.\n\n"
    text += f"{table(scores, with_mean=not differing)}{notes}"
    (options.out / "table.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    tell(f"\n{text}\nTables and pictures are in {options.out}")
    return 0


def claim(out: Path, checkpoints: Sequence[Path], options: Namespace) -> None:
    """Make the output folder this evaluation's own, before anything is computed.

    Raises:
        FileExistsError: it holds the numbers of another one.
    """
    out.mkdir(parents=True, exist_ok=True)
    own = {
        "checkpoints": [str(path.absolute()) for path in checkpoints],
        "data": str(options.data),
        **{name: getattr(options, name) for name in ("preset", "tau_norm", "logit_adjustment", "many_min", "few_max")},
    }
    path = out / "evaluation.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else own
    differing = [name for name, value in own.items() if found.get(name) != value]
    if differing:
        raise FileExistsError(
            f"{out} holds the numbers of another evaluation: {differing[0]} {found.get(differing[0])}, here "
            f"{own[differing[0]]}; give another --out"
        )
    if (out / "options.yaml").exists() or (out / "result.json").exists():
        raise FileExistsError(f"{out} is the folder of a run; give another --out, such as {out / 'evaluation'}")
    write_json(path, own)


def _group_rule(options: Namespace) -> GroupRule:
    try:
        return GroupRule(options.many_min, options.few_max)
    except ValueError as error:
        raise UsageError(f"--many-min and --few-max: {error}") from error


def _parser() -> Parser:
    parser = Parser(prog="python -m tools.evaluate", description=__doc__)
    add = parser.add_argument
    file = "a checkpoint or the folder of a run, or a file as released"
    add("--checkpoint", type=home_path, nargs="+", required=True, metavar="FILE|RUN", help=file)
    add("--data", required=True, metavar="DIR|URL", help="shard set to evaluate on")
    counts = "training shard set, or its class counts (default: the run's)"
    add("--train-counts", type=set_location, metavar="DIR|URL|JSON", help=counts)
    add("--preset", help="evaluation view and normalisation by name (default: the run's; the usual one for a release)")
    add("--recipe", dest="preset", action=OldPresetName, help=SUPPRESS)
    at_least_none = whole_number(0)
    many, few = "many: at least N training samples (default: 101)", "few: at most N (default: 19; some trainers: 20)"
    add("--many-min", type=at_least_none, default=101, metavar="N", help=many)
    add("--few-max", type=at_least_none, default=19, metavar="N", help=few)
    norm = "divide class vectors by their norm to this power (Kang et al.)"
    add("--tau-norm", type=finite_number, metavar="TAU", help=norm)
    prior = "subtract TAU · log prior from the logits (Menon et al.)"
    add("--logit-adjustment", type=finite_number, metavar="TAU", help=prior)
    add("--batch-size", type=whole_number(1), default=256, help="images at once (default: 256)")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=default, help="cpu, cuda or cuda:N (default: %(default)s)")
    add("--executor", default="auto", choices=("auto", "dali", "resident", "reference"), help="who decodes")
    add("--out", type=home_path, metavar="DIR", help="where to write (default: runs/evaluation/RUN-on-DATA)")
    return parser


def _default_name(paths: Sequence[Path], data: str) -> str:
    """Such as "birds-cmo-seed0-best-on-birds-test"."""
    first = paths[0].absolute()
    run = first.parents[1] if first.parent.name == "checkpoints" else first.parent
    more = f"-and-{len(paths) - 1}-more" if len(paths) > 1 else ""
    return f"{run.name}-{first.stem}{more}-on-{'-'.join(Path(data).parts[-2:]).strip('/-')}"


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each checkpoint: the last parts of its path, as many as tell them apart."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["-".join((*path.with_suffix("").parts[-parts:],)).strip("/-") for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UsageError("the same checkpoint is given twice")


if __name__ == "__main__":
    sys.exit(main())
