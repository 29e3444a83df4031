"""Every published row and every recipe resolves and plans; each network of each method takes two steps."""

import re
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml

from pipeline.plan import Plan
from pipeline.views.presets import PRESETS, Preset
from pipeline.views.view import OneOf, ResizeCenterCrop, View
from shards.class_counts import CMO_RULE, NCL_RULE, SHIFTED_RULE, GroupRule
from tests.helpers.shard_sets import UnreadableSet, small_images
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import CPU
from tools.paper_tables import NUMBERS, RECIPES_FOLDER, Row, as_arguments, read_tables
from tools.sources.subsets import long_tailed_counts
from tools.sweep import first_stage
from train.checkpoints.files import save
from train.inputs.input_builder import InputBuilder
from train.methods.base import MethodContext
from train.methods.fsa import FSA
from train.methods.method import Method
from train.methods.registry import find_method
from train.models.build import RESNET32
from train.options import Options, parse
from train.schedules import Schedule

TABLES = read_tables()
ROWS = [row for table in TABLES.values() for row in table.rows]
RECIPE_NAMES = {f"{path.parent.name}/{path.stem}" for path in RECIPES_FOLDER.glob("*/*.yaml")}
# Fine-tuning needs pretrained weights: tests/train/test_finetune.py has its recipes.
RECIPE_NAMES = {name for name in RECIPE_NAMES if "/finetune-" not in name}
UNPUBLISHED = [Row(name, name, {}) for name in sorted(RECIPE_NAMES - {row.recipe for row in ROWS})]

# Counted in CMO's paper: cells of the All column, whoever's method it is.
ROWS_OF_TABLE = dict(
    zip(
        ("2", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"),
        (18, 15, 9, 3, 19, 10, 4, 4, 8, 4, 32, 9, 3),
        strict=True,
    )
)

# The tables of the other methods: rows that can be run, and rows that cannot; and what their READMEs say.
ROWS_AND_MISSING = {
    "glmc-cifar": (12, 12),
    "glmc-large": (5, 0),
    "metasaug-cifar": (20, 0),
    "metasaug-large": (3, 0),
    "ncl": (5, 1),
    "ib": (1, 0),
    "lade": (12, 0),
    "mislas": (18, 0),
    "tde": (8, 0),
    "bbn": (10, 0),
    "paco": (9, 1),
    "fsa": (52, 2),
}
RATIOS = (200, 100, 50, 20, 10)
# Accuracy, by ratio: without and with MaxNorm; on subsets without repeated samples, and on the first ones.
GLMC_CIFAR = {
    "CIFAR-10-LT": {100: (88.49, 89.58), 50: (91.04, 92.04), 10: (94.85, 95.00)},
    "CIFAR-100-LT": {100: (57.99, 58.41), 50: (63.85, 64.57), 10: (73.47, 74.28)},
}
GLMC_CIFAR_FIRST = {
    "CIFAR-10-LT": {100: (87.75, 87.57), 50: (90.18, 90.22), 10: (94.04, 94.03)},
    "CIFAR-100-LT": {100: (55.88, 57.11), 50: (61.08, 62.32), 10: (70.74, 72.33)},
}
# All, many, medium, few.
GLMC_LARGE = {
    "ImageNet-LT": (56.3, 70.1, 52.4, 30.4),
    "ImageNet-LT, RandAugment": (56.3, 70.1, 52.4, 30.4),
    "ImageNet-LT, balanced softmax": (57.21, 64.76, 55.67, 42.19),
    "ImageNet-LT, MaxNorm": (56.7, 60.8, 55.9, 45.5),
    "iNaturalist 2018": (72.21, 64.60, 73.16, 73.01),
}
# Error, by ratio.
METASAUG_CIFAR = {
    "CIFAR-10-LT, LDAM": (22.65, 19.34, 15.66, 11.90, 10.32),
    "CIFAR-10-LT, CE": (23.11, 19.46, 15.97, 12.36, 10.56),
    "CIFAR-100-LT, LDAM": (56.91, 51.99, 47.73, 42.47, 38.72),
    "CIFAR-100-LT, CE": (60.06, 53.13, 48.10, 42.15, 38.27),
}
METASAUG_LARGE = {"ImageNet-LT": 52.33, "iNaturalist 2018": 30.50, "iNaturalist 2017": 100 - 63.28}
NCL = {  # from secondary listings; whether of a single expert
    "CIFAR-100-LT, ratio 100": (54.2, False),
    "CIFAR-100-LT, ratio 100, single expert": (53.3, True),
    "CIFAR-100-LT, ratio 50, single expert": (56.8, True),
    "CIFAR-10-LT, ratio 100, single expert": (84.7, True),
    "ImageNet-LT, single expert": (57.4, True),
}
GROUP_SIZES = {"cifar100": (35, 35, 30), "imagenet": (385, 479, 136), "inat18": (842, 3701, 3599)}
LARGE = ("wide_resnet50_2", "resnet101", "resnet152", "resnet152.tv_in1k", "resnext101_32x4d")
NETWORK_OPTIONS = ("experts", "reduced", "head", "contrastive", "copies")
SIDE = 64
SMALL_COUNTS = (8, 4, 2)


def power_law_with(classes: int, largest: int, smallest: int, total: int) -> np.ndarray:
    """Class sizes with these ends and this sum; to plan, those of the real lists are not needed."""

    def sizes(decay: float) -> np.ndarray:
        return np.round(smallest + (largest - smallest) * np.linspace(1, 0, classes) ** decay).astype(np.int64)

    low, high = 1.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sizes(middle).sum() > total else (low, middle)
    counts = sizes(high)
    counts[1] += total - counts.sum()
    return counts


@cache
def training_set(path: str) -> UnreadableSet:
    """A set with the numbers of classes and samples of the real one."""
    name = Path(path).parent.name
    if name == "digits-lt":
        return UnreadableSet(long_tailed_counts(134, 10, 0.01).tolist())
    cifar = re.fullmatch(r"cifar(10|100)-lt(?:-glmc|(-metasaug))?(?:-ir(\d+))?", name)
    if cifar is not None:
        classes = int(cifar[1])
        largest = 50_000 // classes - (10 if cifar[2] else 0)
        return UnreadableSet(long_tailed_counts(largest, classes, 1 / int(cifar[3] or 100)).tolist())
    ends = {
        "imagenet-lt": (1000, 1280, 5, 115_846),
        "inat18": (8142, 1000, 2, 437_513),
        "inat17": (5089, 3919, 9, 579_184),
        "places-lt": (365, 4980, 5, 62_500),
    }
    return UnreadableSet(power_law_with(*ends[name]).tolist())


def group_rule(method: str) -> GroupRule:
    """The one of the method's authors."""
    if method.startswith("glmc"):
        return SHIFTED_RULE
    return NCL_RULE if method == "ncl" else CMO_RULE


@cache
def options_of(arguments: tuple[str, ...]) -> Options:
    return parse(arguments)


def make_method(options: Options, counts: np.ndarray) -> Method:
    recipe = PRESETS[options.data.preset]
    schedule = Schedule(options.schedule, options.optimizer.lr, options.run.epochs)
    input_builder = InputBuilder.create(recipe.normalization, CPU)
    context = MethodContext(counts, recipe.train, recipe.evaluation, schedule, input_builder, CPU, recipe.second)
    return find_method(options.method_name, vars(options.method)).make(options.method, context)


def test_every_published_row_can_be_run_or_is_said_to_be_missing() -> None:
    sizes = {number: len(table.rows) + len(table.missing) for number, table in TABLES.items()}
    assert {number: sizes[number] for number in ROWS_OF_TABLE} == ROWS_OF_TABLE
    for number, table in TABLES.items():
        for one in table.missing:
            assert "not implemented" in one["reason"] or number not in ROWS_OF_TABLE
            assert one["name"]
            assert one["published"]["all"] > 30


def rows_of(number: str) -> dict[str, dict[str, float]]:
    return {row.name: row.published for row in TABLES[number].rows}


def test_tables_of_the_other_methods_have_all_their_rows() -> None:
    assert {number: (len(t.rows), len(t.missing)) for number, t in TABLES.items() if not number.isdigit()} == (
        ROWS_AND_MISSING
    )
    for number in ROWS_AND_MISSING:
        assert len(rows_of(number)) == len(TABLES[number].rows), "two rows of one name"


def test_published_numbers_of_glmc_are_those_of_its_readme() -> None:
    def cifar(published: dict[str, dict[int, tuple[float, float]]]) -> dict[str, dict[str, float]]:
        return {
            f"{dataset}, ratio {ratio}{stage}": {"all": number}
            for dataset, ratios in published.items()
            for ratio, numbers in ratios.items()
            for stage, number in zip(("", ", MaxNorm"), numbers, strict=True)
        }

    assert rows_of("glmc-cifar") == cifar(GLMC_CIFAR)
    # Their names end in what they are.
    missing = {one["name"].rpartition(", ")[0]: one["published"] for one in TABLES["glmc-cifar"].missing}
    assert missing == cifar(GLMC_CIFAR_FIRST)
    assert rows_of("glmc-large") == {
        name: dict(zip(NUMBERS, numbers, strict=True)) for name, numbers in GLMC_LARGE.items()
    }


def test_published_numbers_of_metasaug_are_the_errors_of_its_readme() -> None:
    errors = {
        f"{part}, ratio {ratio}": error
        for part, row in METASAUG_CIFAR.items()
        for ratio, error in zip(RATIOS, row, strict=True)
    }
    for number, expected in (("metasaug-cifar", errors), ("metasaug-large", METASAUG_LARGE)):
        assert {name: round(100 - p["all"], 2) for name, p in rows_of(number).items()} == pytest.approx(expected)
    # The released checkpoints say that two of them were trained with half the rate.
    rates = {row.name: options_of(tuple(row.arguments())).optimizer.lr for row in TABLES["metasaug-cifar"].rows}
    halved = {name for name, rate in rates.items() if rate == 0.05}
    assert set(rates.values()) == {0.1, 0.05}
    assert halved == {f"CIFAR-10-LT, {loss}, ratio {ratio}" for loss in ("LDAM", "CE") for ratio in (20, 10)}


def test_published_numbers_of_ncl_are_those_of_the_listings() -> None:
    rows = TABLES["ncl"].rows
    assert {row.name: (row.published["all"], row.single_expert) for row in rows} == NCL
    assert all(set(row.published) == {"all"} and row.source == "copied" for row in rows)
    assert [one["published"] for one in TABLES["ncl"].missing] == [{"all": 60.5}]


def test_rows_read_the_training_set_of_the_ratio_in_their_name() -> None:
    named = [(row, int(found[1])) for row in ROWS if (found := re.search(r"ratio (\d+)", row.name))]
    assert len(named) > 50
    for row, ratio in named:
        counts = training_set(options_of(tuple(row.arguments())).data.train).samples_per_class
        # The smallest classes are rounded down, to 2 instead of 2.45 images at the worst.
        assert counts.max() / counts.min() == pytest.approx(ratio, rel=0.25), row


def test_published_numbers_agree_with_themselves_unless_a_note_says_that_they_do_not() -> None:
    complete = [row for row in ROWS if set(row.published) == set(NUMBERS)]
    assert len(complete) > 40
    for row in complete:
        sizes = GROUP_SIZES[row.recipe.split("-")[0].split("/")[0]]
        implied = np.dot([row.published[key] for key in NUMBERS[1:]], sizes) / sum(sizes)
        assert abs(implied - row.published["all"]) < 0.3 or "groups" in row.note, f"{row}: {implied:.2f}"


def test_rows_that_share_a_run_share_their_number() -> None:
    published: dict[tuple[str, bool], float] = {}
    for row in ROWS:
        assert row.source in ("paper", "cited", "copied")
        number = row.published["all"]
        assert published.setdefault((row.run_name, row.single_expert), number) == number, row
    assert len(published) < len(ROWS)


def check_plan(row: Row) -> None:
    """Its options fit each other, its streams mix when they should, and its groups are those of its authors."""
    options = options_of(tuple(row.arguments()))
    dataset, run = training_set(options.data.train), options.run
    method = make_method(options, dataset.samples_per_class)
    datasets: Any = {"train": dataset}
    if options.data.meta is not None:
        datasets["meta"] = UnreadableSet([20] * dataset.samples_per_class.size)
    if isinstance(method.objective, FSA):
        method.objective.partners = torch.tensor([[0, 1, 2]] * dataset.samples_per_class.size)  # of a first phase
    rules = (method.objective.streams(), method.objective.mix_rule())
    plan = Plan(datasets, *rules, run.seed, run.batch_size, run.epochs, method.objective.drop_last)
    full, rest = divmod(len(dataset), run.batch_size)
    assert plan.steps_per_epoch == full + (rest > 0 and not method.objective.drop_last)
    middle = run.epochs // 2
    mixing = plan.paste_steps(middle)
    assert bool(len(mixing)) == any(stream.when == "mixing" for stream in plan.streams.values()), row
    step = plan.step(middle, int(mixing[0]) if len(mixing) else 0)
    used = [name for name, stream in plan.streams.items() if middle >= stream.first_epoch]
    assert {name: len(stream) for name, stream in step.streams.items()} == dict.fromkeys(used, run.batch_size)
    assert options.data.group_rule() == group_rule(options.method_name)
    assert not row.single_expert or method.options.experts > 1
    if row.first_stage is not None:
        first = options_of(tuple(first_stage(row).arguments()))
        assert (first.data, first.model.name) == (replace(options.data, meta=None), options.model.name)


@pytest.mark.parametrize("number", TABLES)
def test_every_row_resolves_and_plans(number: str) -> None:
    for row in TABLES[number].rows:
        check_plan(row)


@pytest.mark.parametrize("row", UNPUBLISHED, ids=lambda row: row.name)
def test_every_recipe_without_a_published_row_resolves_and_plans(row: Row) -> None:
    check_plan(row)


def test_glmc_recipes_have_the_seed_and_the_images_of_the_published_runs() -> None:
    names = [name for name in RECIPE_NAMES if "glmc" in name]
    assert len(names) > 10
    for name in names:
        options = options_of((f"--recipe={RECIPES_FOLDER / name}.yaml",))
        assert options.run.seed == 3407, name
        assert "-glmc" in str(options.data.train) or not name.startswith("cifar"), name


def test_second_stages_start_from_the_run_folder_of_the_first() -> None:
    rows = [row for row in ROWS if row.first_stage is not None and not row.overrides]
    assert rows
    for row in rows:
        init_from = options_of(tuple(row.arguments())).model.init_from
        assert init_from is not None
        assert init_from.parent.parent == options_of(tuple(first_stage(row).arguments())).run.run_dir, row


def rates(recipe: str, epochs: list[int]) -> list[float]:
    options = options_of((f"--recipe={RECIPES_FOLDER / recipe}.yaml",))
    schedule = Schedule(options.schedule, options.optimizer.lr, options.run.epochs)
    return [schedule.lr(epoch) for epoch in epochs]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("cifar100-lt/bs-cmo", {0: 0.02, 3: 0.08, 4: 0.1, 159: 0.1, 160: 1e-3, 179: 1e-3, 180: 1e-5}),
        ("imagenet-lt/bs-cmo", {0: 0.02, 59: 0.1, 60: 0.01, 79: 0.01, 80: 0.001}),
        ("inat18/bs-cmo", {0: 0.02, 74: 0.1, 75: 0.01, 159: 0.01, 160: 0.001}),
        (
            "cifar100-lt/bs-cmo-long",
            {0: 0.01, 9: 0.1, 10: 0.11, 11: 0.1, 320: 0.1, 321: 0.01, 360: 0.01, 361: 0.001},
        ),
        (
            "inat18/bs-cmo-long",
            {0: 0.002, 9: 0.02, 10: 0.01999967721, 200: 0.01036148560, 399: 3.22785e-7},
        ),
        ("cifar100-lt/ib", {0: 0.02, 4: 0.1, 99: 0.1, 100: 1e-3, 159: 1e-3, 160: 1e-5, 180: 1e-7}),
        (
            "cifar100-lt/lade",
            {0: 0.093333333, 1: 0.12, 3: 0.17333333, 4: 0.2, 118: 0.2, 119: 0.002, 159: 2e-5},
        ),
        ("imagenet-lt/pc-softmax", {0: 0.049996192, 89: 0.025, 178: 3.8076211e-6, 179: 0}),
        ("places-lt/lade", {0: 0.05, 8: 0.05, 9: 0.005, 19: 0.0005, 29: 0.00005}),
        ("cifar10-lt/mislas-first", {0: 0.02, 159: 0.1, 160: 0.01, 180: 0.001}),
        ("imagenet-lt/mislas-first", {1: 0.099992385, 179: 7.6152423e-6}),
        ("cifar100-lt/mislas", {0: 0.1, 5: 0.05, 9: 0.0024471742}),
        ("imagenet-lt/tde", {70: 0.021198925, 71: 0.019098301, 79: 0.0060307379, 88: 6.0917298e-5, 89: 0}),
        (
            "cifar100-lt/paco",
            {0: 0.005, 9: 0.05, 10: 0.055, 11: 0.05, 320: 0.05, 321: 0.005, 360: 0.005, 361: 0.0005},
        ),
        ("imagenet-lt/paco", {0: 0.002, 9: 0.02, 10: 0.019999677, 200: 0.010361486, 399: 3.2278541e-07}),
        ("cifar10-lt/bbn", {0: 0.033333333, 1: 0.046666667, 4: 0.086666667, 5: 0.1, 119: 0.1, 120: 0.001, 160: 1e-5}),
        ("inat18/bbn", {119: 0.05, 120: 0.005, 160: 0.0005}),
    ],
)
def test_recipes_train_with_the_rates_of_the_official_code(recipe: str, expected: dict[int, float]) -> None:
    assert rates(recipe, list(expected)) == pytest.approx(list(expected.values()), rel=1e-5, abs=1e-15)


# ------------------------------------------------------------------ two steps


@cache
def recipe_content(name: str) -> dict[str, Any]:
    return yaml.safe_load((RECIPES_FOLDER / f"{name}.yaml").read_text())


def method_options(row: Row) -> dict[str, Any]:
    overrides = {name.removeprefix("method."): value for name, value in row.overrides.items()}
    return recipe_content(row.recipe)["method"] | overrides


def backbone(row: Row) -> str:
    return row.overrides.get("model.name", recipe_content(row.recipe)["model"]["name"])


def variant(row: Row) -> str:
    """Method, what of its options changes its network or what passes it, and backbone."""
    options = method_options(row)
    parts = [f"{name}-{options[name]}" for name in NETWORK_OPTIONS if name in options]
    parts += ["ldam"] if options.get("loss") == "ldam" else []  # a cosine classifier
    parts += [options["mixing"]] if "mixing" in options else []
    return "-".join((options["name"], *parts, backbone(row)))


ROW_OF_VARIANT = {variant(row): row for row in (*UNPUBLISHED, *ROWS)}


def small_view(view: View | OneOf) -> View | OneOf:
    """The same view on 64-pixel images."""
    if isinstance(view, OneOf):
        first, second = (replace(one, geometry=replace(one.geometry, size=SIDE)) for one in view.views)
        return OneOf((first, second))
    if isinstance(view.geometry, ResizeCenterCrop):
        return replace(view, geometry=ResizeCenterCrop(SIDE, SIDE))
    return replace(view, geometry=replace(view.geometry, size=SIDE))


def small_recipe(recipe: Preset) -> Preset:
    second = None if recipe.second is None else small_view(recipe.second)
    return replace(recipe, train=small_view(recipe.train), evaluation=small_view(recipe.evaluation), second=second)


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    for split in ("train", "test", "meta"):
        small_images(folder / split, SMALL_COUNTS, SIDE)
    return folder


def first_stage_checkpoint(folder: Path, row: Row, width: dict[str, Any]) -> Path:
    options = parse([*first_stage(row).arguments(), *as_arguments(width)])
    model = make_method(options, np.array(SMALL_COUNTS)).build_model(options.model, seed=7)
    save(folder / "first.pt", {"model": model.state_dict()})
    return folder / "first.pt"


def pretrained_weights(folder: Path, name: str) -> Path:
    """Of one of timm's networks, which are random here."""
    torch.save(timm.create_model(name, zero_init_last=False).state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def two_steps(row: Row, data: Path, folder: Path, batch_size: int, **width: Any) -> None:
    """Take them, on steps that mix where the method mixes, and see that what learns has moved, and nothing else."""
    chosen = method_options(row)
    method = chosen["name"]
    changes = width | {
        "model.pretrained": False,
        "data.train": data / "train",
        "data.test": data / "test",
        "data.executor": "reference",
    }
    changes |= {"batch_size": batch_size, "max_steps": 2, "device": "cpu", "trackers": "[]", "run_dir": folder / "run"}
    known = {field.name for field in fields(find_method(method, chosen).Options)}
    always = {"plain_first": 0, "plain_last": 0}
    changes |= {f"method.{name}": value for name, value in always.items() if name in known}
    if getattr(options_of(tuple(row.arguments())).method, "mixup_prob", 0):
        changes["method.mixup_prob"] = 1.0
    if method == "ncl":
        changes["method.hard_classes"] = 2  # of the three classes
    if method in ("paco", "gpaco"):  # groups of two, and a copy that follows at once
        changes |= {"method.group": 2, "method.key_queue": 16, "method.key_momentum": 0.5, "accumulation": 1}
    if row.first_stage is not None:
        changes["model.init_from"] = first_stage_checkpoint(folder, row, width)
    if method.startswith("metasaug"):
        changes |= {"data.meta": data / "meta", "method.meta_from_epoch": 0}
    if chosen.get("stage") == "last_block":
        changes["model.weights"] = pretrained_weights(folder, backbone(row))
    if method == "fsa":  # of three classes, the largest has more than half of the images
        changes |= {"method.partners": 1, "method.head_share": 0.5}
    run = make_run(parse([*row.arguments(), *as_arguments(changes)]))
    model = run.trainer.bare_model
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    assert take_steps(run) == 2
    if run.plan.mix_rule is not None and run.plan.mix_rule.probability == 1:
        assert run.plan.pastes(0, 0)
    for name, value in model.named_parameters():
        assert torch.isfinite(value).all(), name
        # Momentum encoders follow untrained, PaCo's where the network that it copies learns.
        moves = run.method.trainable(name.replace("encoder_k.", "encoder_q.")) or name.startswith("backbone_MA.")
        if name.startswith("backbone.rb_block.") and name.endswith("bias"):
            continue  # BBN's second branch weighs nothing in epoch 0: decay alone moves it, and no zero
        assert torch.equal(value, before[name]) is not moves, name


def _slow_if_large(row: Row) -> Any:
    """The deepest and widest networks are variants of others in this list."""
    return pytest.param(row, marks=pytest.mark.slow if backbone(row) in LARGE else ())


@pytest.mark.parametrize("row", map(_slow_if_large, ROW_OF_VARIANT.values()), ids=ROW_OF_VARIANT)
def test_each_network_of_each_method_takes_two_steps_at_64_pixels(
    row: Row, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MetaSAug's large mode at its own 224; one of NCL's three experts of 152 layers."""
    content, name = recipe_content(row.recipe), backbone(row)
    at_full_size = method_options(row)["name"] == "metasaug_large"
    if not at_full_size:
        recipe = PRESETS[content["data"]["preset"]]
        monkeypatch.setitem(PRESETS, recipe.name, small_recipe(recipe))
    smaller: dict[str, Any] = {"model.width": 4} if name in RESNET32 else {}
    if name == "resnet152.tv_in1k" and method_options(row)["name"] == "ncl":
        smaller |= {"method.experts": 1, "method.queue": 16}
    two_steps(row, small_data, tmp_path, batch_size=2 if at_full_size or name in LARGE else 4, **smaller)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROW_OF_VARIANT.values(), ids=ROW_OF_VARIANT)
def test_each_network_of_each_method_takes_two_steps_at_its_full_size(row: Row, tmp_path: Path) -> None:
    side = PRESETS[recipe_content(row.recipe)["data"]["preset"]].evaluation.size
    for split in ("train", "test", "meta"):
        small_images(tmp_path / split, SMALL_COUNTS, side)
    two_steps(row, tmp_path, tmp_path, batch_size=8)
