"""The options of a run: typed, filled from a recipe (YAML) and the command line, checked before anything is loaded."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser

from pipeline.views.presets import Preset
from shards.class_counts import GroupRule
from shards.commandline import USAGE, say_error
from shards.local_copy import CacheOptions, default_cache_folder
from train.early import chosen_method, method_of, normalised
from train.losses.precision import Precision
from train.methods.registry import find_method, method_names
from train.models.backbone_views import BACKBONE_PRESETS, find_preset
from train.models.build import ModelOptions
from train.option_forms import current_arguments, current_recipe
from train.resources import find_recipe
from train.schedules import ScheduleOptions


def _at_least(minimum: float, **values: float | None) -> None:
    for name, value in values.items():
        if value is not None and value < minimum:
            raise ValueError(f"{name} is {value}, expected at least {minimum}")


@dataclass(frozen=True)
class DataOptions:
    """Shard sets and the reading of their images.

    Args:
        train: folder of the training shard set (made by `python -m tools.build_shards`), or its URL in an object
            store: s3://bucket/imagenet-lt/train, gs://…, az://…, https://…
        test: folder or URL of the shard set for the final numbers; without one they are measured on the validation
            set.
        validation: folder or URL of the shard set for selecting the best epoch; without one, the best epoch on the
            test set is also reported, as in the papers, and labelled as such.
        meta: folder or URL of the balanced shard set for MetaSAug's meta stream; may be the training set.
        cache: folder for local copies of sets given by URL; by default longtail in the user's cache folder.
        cache_gigabytes: disk space limit of these copies; by default nine tenths of the free space.
        preset: augmentation, evaluation crop and normalisation, by name (`longtail presets`) or from a .yaml file;
            backbone, backbone-mda and backbone-plain follow the pretrained network.
        image_size: side of the network's input in pixels, if different from the preset's.
        mean: means of red, green and blue, for pixel values from 0 to 1, if different from the preset's.
        std: standard deviations of red, green and blue, likewise.
        executor: auto (small images resident on the device, DALI for others), dali, resident or reference (PIL).
        decode_threads: DALI threads per process; by default the cores divided by the processes on this machine.
        many_min: a class with at least this many training samples is "many".
        few_max: a class with at most this many training samples is "few"; classes in between are "medium".
        bad_sample_budget: undecodable or corrupt samples that a run may replace before it stops.
    """

    train: str
    test: str | None = None
    validation: str | None = None
    meta: str | None = None
    cache: Path | None = None
    cache_gigabytes: float | None = None
    preset: str = "imagenet"
    image_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    executor: Literal["auto", "dali", "resident", "reference"] = "auto"
    decode_threads: int | None = None
    many_min: int = 101
    few_max: int = 19
    bad_sample_budget: int = 10

    def __post_init__(self) -> None:
        if self.preset not in BACKBONE_PRESETS:
            self.make_preset(ModelOptions())
        elif self.image_size is not None:
            raise ValueError(
                f"data.image_size: preset {self.preset} takes the size from the backbone; to change it use "
                "model.image_size"
            )
        if self.test is None and self.validation is None:
            raise ValueError(
                "neither data.test nor data.validation is given, so nothing would be measured; to hold out a "
                "validation set from the training images: python -m tools.build_shards SOURCE --holdout 0.1"
            )
        _at_least(1, decode_threads=self.decode_threads)
        _at_least(0, bad_sample_budget=self.bad_sample_budget)
        _at_least(0.001, cache_gigabytes=self.cache_gigabytes)
        self.group_rule()

    def cache_options(self) -> CacheOptions:
        """The cache for copies of sets in object stores."""
        limit = None if self.cache_gigabytes is None else int(self.cache_gigabytes * 1e9)
        return CacheOptions(self.cache or default_cache_folder(), limit)

    def make_preset(self, model: ModelOptions) -> Preset:
        """The views and the normalisation; for some presets they follow the network."""
        return find_preset(self.preset, model, self.image_size, self.mean, self.std)

    def group_rule(self) -> GroupRule:
        """Which classes are many, medium and few."""
        return GroupRule(many_min=self.many_min, few_max=self.few_max)


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer; by default stochastic gradient descent on all parameters, including norms and biases.

    Args:
        kind: sgd, or adamw (which uses neither momentum nor nesterov).
        lr: base learning rate; not scaled with the batch size.
        momentum: momentum of sgd.
        nesterov: use Nesterov momentum.
        weight_decay: weight decay.
        decay: parameters with weight decay: all, or matrices (no norms, biases or adapter scales, nor timm's exempt
            parameters).
        layer_decay: factor on the learning rate from each layer to the one below, with timm's layer groups; 0.65 to
            0.9 for tuning a whole pretrained network.
        clip_norm: clip a step's gradients to this norm.
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 2e-4
    decay: Literal["all", "matrices"] = "all"
    layer_decay: float | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _at_least(0, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.kind == "adamw" and self.nesterov:
            raise ValueError("optimizer.nesterov is true, but adamw does not support it; omit it")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay is {self.layer_decay}, expected above 0 and at most 1")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optimizer.clip_norm is {self.clip_norm}, expected above 0")


SelectBy = Literal["balanced", "all", "harmonic", "worst"]


@dataclass(frozen=True)
class RunOptions:
    """Length, batch size, device and bookkeeping of a run.

    Args:
        epochs: passes over the original stream; milestones and phase starts are rescaled to it.
        batch_size: samples per optimizer step, over all processes and micro-batches.
        accumulation: micro-batches that a process runs sequentially per step, to save memory.
        seed: determines every draw: initial weights, samples, crops, pastes.
        device: auto (a GPU if available), cpu or cuda.
        mixed_precision: bf16 runs the network (never the losses) in bfloat16; fp16 in float16 with a loss scale, for
            GPUs older than Ampere.
        compile: torch.compile the network, which fuses its operations. The first steps take about a minute.
        cuda_graphs: replay whole steps, from the paste to the optimizer, as CUDA graphs; for small networks, whose
            kernels are shorter than their launches. One process on a GPU; not with MetaSAug.
        ema_decay: evaluate an exponential moving average of the weights with this decay, limited to
            1 - (1 + n)^(-2/3) in step n: 0.99 from step 1,000, 0.999 from step 31,600. Training is not affected.
        deterministic: use torch's deterministic kernels; slower on a GPU, no difference on the CPU.
        run_dir: the run folder; by default runs/RECIPE-seedSEED, or runs/DATA-METHOD-seedSEED without a recipe.
        resume: never, auto (continue if the folder has a checkpoint, otherwise start) or the path of a checkpoint.
        checkpoint_every_steps: steps between checkpoints, in addition to the one after every epoch.
        checkpoint_every_minutes: minutes between checkpoints, likewise.
        keep_checkpoints: number of latest checkpoints to keep.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        select_by: criterion for the best epoch: balanced (mean recall over classes), all (accuracy over images, as in
            the papers), harmonic (harmonic mean of recalls) or worst (lowest recall). The first two agree if the
            selection set has the same number of images for every class.
        patience: stop the run after this many evaluations without a new best epoch; null runs all epochs.
        log_every_steps: steps between lines of training loss in metrics.jsonl (reading it waits for the device).
        max_steps: stop the run after this many steps, for quick trials.
        dry_run: take a few steps, report the length and requirements of the run, and write nothing.
        trackers: Accelerate's experiment trackers to log to: tensorboard, wandb, …; separate several with spaces.
        meet_within_seconds: how long processes wait for each other at the start. Later a process waits ten minutes for
            a response; one that dies closes its connections, which the others detect at once on the CPU.
    """

    epochs: int = 200
    batch_size: int = 128
    accumulation: int = 1
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mixed_precision: Precision = "no"
    compile: bool = False
    cuda_graphs: bool = False
    ema_decay: float | None = None
    deterministic: bool = False
    run_dir: Path | None = None
    resume: str = "never"
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float | None = None
    keep_checkpoints: int = 2
    evaluate_every: int = 1
    select_by: SelectBy = "balanced"
    patience: int | None = None
    log_every_steps: int = 50
    max_steps: int | None = None
    dry_run: bool = False
    trackers: tuple[str, ...] = ("tensorboard",)
    meet_within_seconds: float = 45.0

    def __post_init__(self) -> None:
        _at_least(
            1,
            epochs=self.epochs,
            accumulation=self.accumulation,
            checkpoint_every_steps=self.checkpoint_every_steps,
            keep_checkpoints=self.keep_checkpoints,
            evaluate_every=self.evaluate_every,
            patience=self.patience,
            log_every_steps=self.log_every_steps,
            max_steps=self.max_steps,
            meet_within_seconds=self.meet_within_seconds,
        )
        _at_least(2, batch_size=self.batch_size)  # batch normalisation needs two samples
        _at_least(0, seed=self.seed)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, expected a number between 0 and 1")


@dataclass(frozen=True)
class Options:
    """All options of a run; made by `Options.of` in Python, by `parse` from a command line.

    Attributes:
        method_name, method: the method and its own options.
        resolved: the same options as plain containers, as saved with the run.
    """

    data: DataOptions
    model: ModelOptions
    method_name: str
    method: Any
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    run: RunOptions
    resolved: dict[str, Any]

    @classmethod
    def of(cls, recipe: str | Path | None = None, **values: Any) -> "Options":
        """Options from Python values, with the same checks as the command line.

            Options.of("cifar100-lt/bs-cmo", epochs=20)
            Options.of(data={"train": "data/mine/train", "test": "data/mine/test"}, method={"loss": "bs"}, epochs=30)

        Args:
            recipe: a YAML file, or DATASET/METHOD of an included recipe.
            values: override the recipe; sections (data, model, method, optimizer, schedule) are mappings.

        Raises:
            ValueError: an unknown option, a value of the wrong type, or options that contradict each other.
            FileNotFoundError: there is no such recipe.
        """
        file = None if recipe is None else find_recipe(str(recipe))
        content = {} if file is None else _read_yaml(file)
        content = _merged(current_recipe(content, _LISTS), current_recipe(_plain(values), _LISTS))
        chosen = method_of(content)
        method_name = chosen.pop("name", "cmo")
        method = find_method(method_name, chosen)
        parser = _parser(method.Options, method.without, exit_on_error=False)
        try:
            namespace = parser.parse_object(content)
            return _finished(parser, namespace, [] if file is None else [file], method_name, method.Options)
        except ArgumentError as error:
            raise ValueError(str(error)) from error


def parse(arguments: Sequence[str]) -> Options:
    """Options from a command line such as `--recipe recipes/digits-lt/ce.yaml --epochs 20`.

    An unknown key, a value of the wrong type or a contradiction exits with status 2 and a message.
    """
    try:
        arguments = current_arguments(normalised(arguments), _LISTS)
        chosen = chosen_method(arguments)
        method_name = chosen.pop("name", "cmo")
        method = find_method(method_name, chosen)
    except (ValueError, FileNotFoundError, yaml.YAMLError) as error:
        say_error("train", str(error))
        sys.exit(USAGE)
    parser = _parser(method.Options, method.without)
    namespace = parser.parse_args(list(arguments))
    recipes = namespace.pop("recipe")
    try:
        return _finished(parser, namespace, recipes or [], method_name, method.Options)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
        raise AssertionError("parser.error does not return") from error


def _finished(
    parser: ArgumentParser, namespace: Any, recipes: Sequence[Any], method_name: str, method_options: type
) -> Options:
    """From parsed values to checked options, with derived values filled in."""
    namespace.pop("recipe", None)
    _expand_home(namespace, parser)
    values = namespace.as_dict()
    data = DataOptions(**values["data"])
    if namespace["model.name"] == _AUTO:
        namespace["model.name"] = _network_for(data.make_preset(ModelOptions()).train.size)
        values = namespace.as_dict()
    resolved = yaml.safe_load(parser.dump(namespace))
    method_values = values.pop("method")
    del method_values["name"]
    # The network's name comes last: looking it up imports timm.
    sections = {name: section(**values.pop(name)) for name, section in _SECTIONS.items() if name != "model"}
    model = ModelOptions(**values.pop("model"))
    run = RunOptions(**values)
    if run.run_dir is None:
        name = _run_name(recipes) if recipes else _data_and_method(data, method_name, method_values)
        run = replace(run, run_dir=Path("runs") / f"{name}-seed{run.seed}")
    method = method_options(**method_values)
    return Options(**sections, model=model, method_name=method_name, method=method, run=run, resolved=resolved)


_AUTO = "auto"  # model.name if none was chosen
LARGEST_SMALL_IMAGE = 64  # pixels per side up to which the networks for 32 pixels make sense


def _network_for(image_size: int) -> str:
    return "resnet32" if image_size <= LARGEST_SMALL_IMAGE else "resnet50"


def _plain(value: Any) -> Any:
    """Paths as text and tuples as lists, as in a recipe."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _merged(first: Mapping[str, Any] | None, second: Mapping[str, Any]) -> dict[str, Any]:
    """Both, merged section by section; the second takes precedence."""
    result = dict(first or {})
    for name, value in second.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = _merged(result[name], value) if both else value
    return result


def _run_name(recipes: Sequence[Any]) -> str:
    """DATASET-METHOD for a recipe in a data set's folder, as in this project; the file name for any other."""
    path = Path(str(recipes[-1]))
    return f"{path.parent.name}-{path.stem}" if path.parent.parent.name == "recipes" else path.stem


def _data_and_method(data: Any, method_name: str, method: Mapping[str, Any]) -> str:
    """A name such as "birds-cmo-bs" for data/birds/train, to tell first tries apart."""
    folder = Path(data.train).absolute()
    name = folder.parent.name if folder.name in ("train", "training") else folder.name
    return "-".join(filter(None, (name, method_name, method.get("loss"))))


def _expand_home(namespace: Any, parser: ArgumentParser) -> None:
    """Expand `~` to the home folder in every path, from the command line or a recipe."""
    for name, value in list(namespace.items()):
        is_text_for_path = isinstance(value, str) and (name == "resume" or name.startswith("data."))
        if (is_text_for_path or isinstance(value, Path)) and str(value).startswith("~"):
            try:
                expanded = Path(value).expanduser()
                namespace[name] = str(expanded) if isinstance(value, str) else expanded
            except RuntimeError as error:  # ~nobody
                parser.error(f"{name}: {value}: {error}")


_SECTIONS = {"data": DataOptions, "model": ModelOptions, "optimizer": OptimizerOptions, "schedule": ScheduleOptions}
_LISTS = {
    f"{section}.{field.name}".removeprefix(".")
    for section, options in {**_SECTIONS, "": RunOptions}.items()
    for field in fields(options)
    if any(get_origin(kind) is tuple for kind in (field.type, *get_args(field.type)))
}


class _Parser(ArgumentParser):
    """Explains why the method does not have an option; `reasons` by name."""

    reasons: Mapping[str, str] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        told = [
            f"method.{name}: {why}"
            for name, why in self.reasons.items()
            if "is now called" not in message
            and re.search(rf"\bmethod\.{name}\b|'method' .*'{name}'", message)  # of a command line, of a recipe
        ]
        if not self.exit_on_error:
            super().error("\n".join([message, *told]), ex)
        say_error("train", "\n".join([*told, f"{message}; see python -m train --help"]))
        sys.exit(USAGE)

    def parse_path(self, path: Any, *arguments: Any, **settings: Any) -> Any:
        """Read a recipe, whose options may use alternative forms."""
        try:
            content = current_recipe(_read_yaml(Path(str(path))), _LISTS)
        except ValueError as error:
            self.error(str(error))
        return self.parse_string(yaml.safe_dump(content), path=Path(str(path)).name, **settings)


def _parser(method_options: type, without: Mapping[str, str], exit_on_error: bool = True) -> ArgumentParser:
    parser = _Parser(prog="python -m train", allow_abbrev=False, exit_on_error=exit_on_error)
    parser.reasons = without
    parser.add_argument("--recipe", action=ActionConfigFile, help="a YAML file with any of the options below")
    parser.add_argument("--method.name", default="cmo", help=f"one of {', '.join(method_names())}")
    parser.add_class_arguments(method_options, "method")
    for name, section in _SECTIONS.items():
        parser.add_class_arguments(section, name)
    parser.add_class_arguments(RunOptions)
    parser.set_defaults({"model.name": _AUTO})
    return parser


def _read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: it is not YAML; the message says where.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a recipe in YAML, found {' '.join(str(error).split())}") from error
