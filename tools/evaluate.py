"""Evaluate checkpoints of runs and released ones: python -m tools.evaluate --checkpoint FILE|RUN … --data DIR.

For several checkpoints of one method, for example with different seeds, it also reports mean ± standard deviation.
"""

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.loader import evaluation_batches
from shards.class_counts import GroupRule, shot_groups
from shards.class_names import class_ids, shown
from shards.commandline import (
    UsageError,
    run_command,
    tell,
)
from shards.object_store import is_url, set_location
from shards.reader import ShardSet
from tools.markdown import markdown
from tools.option_parsers import evaluate_parser
from train.checkpoints.files import checkpoint_file
from train.checkpoints.trained import Trained, load_trained
from train.datasets import classes_without_samples
from train.evaluation.class_tables import write_per_class, write_predictions
from train.evaluation.decoration import decorate
from train.evaluation.details import Details, with_details
from train.evaluation.metrics import MEANINGS, TITLES
from train.evaluation.posthoc import adjust_logits, tau_normalise
from train.evaluation.scores import Predictions, Scores, predict, score
from train.evaluation.spread import mean_and_spread
from train.evaluation.test_prior import for_test_prior, prior_cautions
from train.launch import device_of
from train.run_folder import write_json

logger = logging.getLogger(__name__)


def read_train_counts(path: Path | str, trained: Trained) -> np.ndarray:
    """Training samples per class of a network, int64 (classes,), from a shard set or JSON.

    The JSON is a list of counts in the network's order, or an object with such a list under "samples_per_class". If
    both the network and the source name their classes (a shard set, or "class_names" next to the counts, as in a
    dataset.json), classes are matched by name.
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
        UsageError: a released file has no counts, and the option is not given.
    """
    if options.train_counts is not None:
        return read_train_counts(options.train_counts, trained)
    if trained.samples_per_class is None:
        raise UsageError(
            f"{trained.path}: a released file does not store its classes' training counts; give "
            "--train-counts, the training shard set or JSON of counts"
        )
    return trained.samples_per_class


def matched(trained: Trained, dataset: ShardSet) -> ShardSet:
    """The set with the network's class ids, matched by name; unchanged for a released network, which has no names.

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
    """What a reader of the numbers needs to know."""
    found = []
    if options.logit_adjustment is not None and trained.corrects_prior:
        found.append(
            f"{trained.path}: trained with a loss that corrects the class prior already; --logit-adjustment corrects "
            "it a second time"
        )
    lacking = classes_without_samples(dataset)
    if lacking:
        found.append(f"{dataset.path}: no image of {len(lacking)} of {dataset.num_classes} classes: {shown(lacking)}")
    if trained.class_names is None:
        found.append(
            f"{trained.path}: a released file names no classes; those of {dataset.path} are taken in their order"
        )
    return found


def correct(trained: Trained, counts: np.ndarray, options: Namespace) -> None:
    """Edit the classifier, in place, as the options ask."""
    if options.tau_norm is not None:
        tau_normalise(trained.model, options.tau_norm)
    if options.logit_adjustment is not None:
        adjust_logits(trained.model, counts, options.logit_adjustment)


def evaluate(
    trained: Trained, dataset: ShardSet, counts: np.ndarray, crops: int, options: Namespace
) -> tuple[Scores, Details | None]:
    """Scores of a network on every image of a shard set; no details where their logits are too many to keep."""
    validation = None
    if options.validation is not None:
        validation_set = matched(trained, ShardSet.open(options.validation))
        check_fit(trained, validation_set, counts)
        validation = _predictions(trained, validation_set, crops, options)
    rule, predictions = GroupRule(options.many_min, options.few_max), _predictions(trained, dataset, crops, options)
    scores = score(predictions, counts, rule)
    return (scores, None) if predictions.logits is None else with_details(scores, counts, rule, validation)


def _predictions(trained: Trained, dataset: ShardSet, crops: int, options: Namespace) -> Predictions:
    device, views = trained.method.context.device, trained.views(crops)
    batches = evaluation_batches(dataset, views, options.batch_size, device, executor=options.executor)
    return predict(trained.method, trained.model, batches, len(dataset), nullcontext, keep_logits=True)


def write(
    folder: Path,
    trained: Trained,
    dataset: ShardSet,
    counts: np.ndarray,
    found: tuple[Scores, Details | None],
    rule: GroupRule,
    crops: int = 1,
    warnings: Sequence[str] = (),
) -> None:
    """scores.json, per_class.csv, predictions.csv, confusion.csv and the pictures of one checkpoint."""
    scores, details = found
    folder.mkdir(parents=True, exist_ok=True)
    names, groups = dataset.class_names, shot_groups(counts, rule)
    write_json(
        folder / "scores.json",
        {
            "checkpoint": str(trained.path),
            "network": trained.description,
            "preset": trained.preset.name,
            "crops": crops,
            "data": str(dataset.path),
            "group_rule": rule.describe(),
            "classes_without_images": classes_without_samples(dataset),
            "warnings": list(warnings),
            "test": scores.numbers,
            "reliability": None if details is None else details.reliability,
            "meanings": {name: meaning for name, meaning in MEANINGS.items() if name in scores.numbers},
        },
    )
    np.savetxt(folder / "confusion.csv", scores.confusion, fmt="%d", delimiter=",")
    path = folder / "per_class.csv"
    decorate(path, lambda: write_per_class(path, dataset, counts, rule, scores, details))
    images = folder / "predictions.csv"
    decorate(images, lambda: write_predictions(images, dataset, scores.predictions))
    decorate(folder, lambda: _draw(folder, names, counts, scores, groups))


def _draw(folder: Path, names: list[str], counts: np.ndarray, scores: Scores, groups: Mapping[str, np.ndarray]) -> None:
    # Imported here: a plotting library that fails to load must not cost the numbers.
    from train.evaluation import pictures

    def draw(name: str, picture: Callable[..., None], *content: Any) -> None:
        decorate(folder / name, lambda: picture(*content, folder / name))

    draw("accuracy_by_class_size.png", pictures.accuracy_by_class_size, counts, scores.recall, groups, names)
    draw("confusion.png", pictures.confusion, scores.confusion, names, counts, groups)


def table(scores: Mapping[str, Scores], with_mean: bool = True) -> str:
    """Markdown: one row per checkpoint, and mean ± standard deviation if there are several."""
    rows = [[name, *(mean_and_spread([s.numbers.get(key)]) for key in TITLES.values())] for name, s in scores.items()]
    if len(scores) > 1 and with_mean:
        columns = [[s.numbers.get(key) for s in scores.values()] for key in TITLES.values()]
        rows.append([f"mean of {len(scores)}", *map(mean_and_spread, columns)])
    return markdown(("checkpoint", *TITLES), rows)


def _explanation(scores: Mapping[str, Scores]) -> str:
    """What the columns mean, one line each."""
    numbers = [s.numbers for s in scores.values()]
    there = [(title, key) for title, key in TITLES.items() if any(n.get(key) is not None for n in numbers)]
    return "".join(f"- {title}: {MEANINGS[key]}\n" for title, key in there)


def differences(settings: Mapping[str, tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Names of settings other than the seed that differ between networks.

    settings: (description, settings) by checkpoint.
    """
    flat = [{"network": description, **values} for description, values in settings.values()]
    names = dict.fromkeys(name for one in flat for name in one)
    return [name for name in names if any(one.get(name) != flat[0].get(name) for one in flat)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, write, print the table."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = evaluate_parser().parse_args(arguments)
    return run_command("evaluate", lambda: _main(options))


def _main(options: Namespace) -> int:
    device = device_of(options.device)
    rule = _group_rule(options)
    options.crops = list(dict.fromkeys(options.crops))
    paths = [checkpoint_file(path) for path in options.checkpoint]
    names = _distinct_names(paths)
    options.out = options.out or Path("runs/evaluation") / _default_name(paths, options.data)
    claim(options.out, paths, options)
    dataset = ShardSet.open(set_location(options.data))
    scores: dict[int, dict[str, Scores]] = {crops: {} for crops in options.crops}
    settings: dict[str, tuple[str, Mapping[str, Any]]] = {}
    warnings: list[str] = []
    for name, path in zip(names, paths, strict=True):
        trained = load_trained(path, device, options.preset, options.weights)
        settings[name] = (trained.description, trained.settings)
        for crops, found in _evaluate_one(name, trained, dataset, rule, options, warnings):
            scores[crops][name] = found
    differing = differences(settings)
    if differing:
        warnings.append(f"no mean over the checkpoints: they differ in {', '.join(differing[:8])}")
    tables = [f"{_CROPS[crops]}\n\n{table(found, with_mean=not differing)}" for crops, found in scores.items()]
    notes = "".join(f"\n{warning}\n" for warning in dict.fromkeys(warnings))
    text = f"Results in percent on {options.data} ({len(dataset)} images); {rule.describe()}.\n\n"
    text += "\n".join(tables) + f"{notes}\n{_explanation(scores[options.crops[0]])}"
    (options.out / "table.md").write_text(text, encoding="utf-8", errors="backslashreplace")
    tell(f"\n{text}\nTables and pictures are in {options.out}")
    return 0


_CROPS = {1: "One crop of each image:", 5: "The mean of the logits of five crops:"}


def _evaluate_one(
    name: str, trained: Trained, dataset: ShardSet, rule: GroupRule, options: Namespace, warnings: list[str]
) -> Iterator[tuple[int, Scores]]:
    """Scores of a checkpoint by crops; they are written, and what one has to know is added to `warnings`."""
    counts, own = train_counts(options, trained), matched(trained, dataset)
    found = cautions(trained, own, options)
    if options.logit_adjustment is None:
        found += prior_cautions(trained, options.test_prior)
    trained = for_test_prior(trained, options.test_prior, counts)
    check_fit(trained, own, counts)
    for crops in options.crops:
        trained.views(crops)  # refused before the first of them takes its time
    tell(f"{trained.path}: {trained.description}, preset {trained.preset.name}")
    for warning in found:
        logger.warning("%s", warning)
    warnings += found
    correct(trained, counts, options)
    for number, crops in enumerate(options.crops):
        scored = evaluate(trained, own, counts, crops, options)
        folder = options.out / (f"{name}-{crops}-crops" if number else name)
        write(folder, trained, own, counts, scored, rule, crops, found)
        yield crops, scored[0]


_SETTINGS = ("preset", "tau_norm", "logit_adjustment", "many_min", "few_max", "test_prior")


def claim(out: Path, checkpoints: Sequence[Path], options: Namespace) -> None:
    """Claim the output folder for this evaluation, before anything is computed.

    Raises:
        FileExistsError: it holds the numbers of another evaluation.
    """
    out.mkdir(parents=True, exist_ok=True)
    own = {
        "checkpoints": [str(path.absolute()) for path in checkpoints],
        "data": str(options.data),
        **{name: getattr(options, name) for name in _SETTINGS},
        "crops": options.crops[0] if len(options.crops) == 1 else options.crops,
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


def _default_name(paths: Sequence[Path], data: str) -> str:
    """Such as "birds-cmo-seed0-best-on-birds-test"."""
    first = paths[0].absolute()
    run = first.parents[1] if first.parent.name == "checkpoints" else first.parent
    more = f"-and-{len(paths) - 1}-more" if len(paths) > 1 else ""
    return f"{run.name}-{first.stem}{more}-on-{'-'.join(Path(data).parts[-2:]).strip('/-')}"


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each checkpoint: as many trailing parts of its path as distinguish it."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["-".join((*path.with_suffix("").parts[-parts:],)).strip("/-") for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UsageError("the same checkpoint is given twice")


if __name__ == "__main__":
    sys.exit(main())
