"""The recipes of GLMC, MetaSAug and NCL: learning rate by epoch, and every setting that was published for them."""

from dataclasses import asdict
from typing import Any, NamedTuple

import pytest

from tests.helpers.steps import context
from tests.train.test_tables import RECIPE_NAMES, options_of, recipe_content
from tools.paper_tables import RECIPES_FOLDER
from train.methods.registry import find_method
from train.options import Options
from train.schedules import Schedule

METHODS = ("glmc", "metasaug", "ncl")
NAMES = sorted(name for name in RECIPE_NAMES if recipe_content(name)["method"]["name"].startswith(METHODS))


def options_of_recipe(name: str) -> Options:
    return options_of((f"--recipe={RECIPES_FOLDER / name}.yaml",))


# ------------------------------------------------------------------ learning rates

# By zero-based epoch, as the official code applies them.
GLMC_CIFAR_RATES = {0: 0.01, 50: 0.008535534, 100: 0.005, 199: 6.168376e-07}
GLMC_IMAGENET_RATES = {0: 0.1, 1: 0.01, 2: 0.02, 10: 0.1, 11: 0.11, 12: 0.09993785, 40: 0.08665259, 134: 6.215394e-05}
MAX_NORM_RATES = {0: 0.009755283, 4: 0.005, 9: 0.0}
METASAUG_RATES = {0: 0.1, 158: 0.1, 159: 0.001, 178: 0.001, 179: 1e-5, 199: 1e-5}
NCL_CIFAR_RATES = {0: 0.04666667, 1: 0.06, 4: 0.1, 318: 0.1, 319: 0.01, 358: 0.01, 359: 0.001, 399: 0.001}
RATES = {
    "cifar10-lt/glmc": GLMC_CIFAR_RATES,
    "cifar10-lt/ir10-glmc": GLMC_CIFAR_RATES,
    "cifar10-lt/ir50-glmc": GLMC_CIFAR_RATES,
    "cifar100-lt/glmc": GLMC_CIFAR_RATES,
    "cifar100-lt/ir10-glmc": GLMC_CIFAR_RATES,
    "cifar100-lt/ir50-glmc": GLMC_CIFAR_RATES,
    "cifar100-lt/glmc-cmo": GLMC_CIFAR_RATES,
    "imagenet-lt/glmc": GLMC_IMAGENET_RATES,
    "imagenet-lt/glmc-bs": GLMC_IMAGENET_RATES,
    "inat18/glmc": {0: 0.1, 1: 0.01, 11: 0.11, 12: 0.09991992, 119: 8.008254e-05},
    "cifar10-lt/glmc-maxnorm": MAX_NORM_RATES,
    "cifar100-lt/glmc-maxnorm": MAX_NORM_RATES,
    "imagenet-lt/glmc-maxnorm": MAX_NORM_RATES,
    "cifar10-lt/metasaug": METASAUG_RATES,
    "cifar10-lt/metasaug-ce": METASAUG_RATES,
    "cifar100-lt/metasaug": METASAUG_RATES,
    "cifar100-lt/metasaug-ce": METASAUG_RATES,
    "imagenet-lt/metasaug": {0: 3e-4, 19: 3e-4},
    "inat17/metasaug": {0: 0.1, 199: 0.1},
    "inat18/metasaug": {0: 0.1, 199: 0.1},
    "cifar10-lt/ncl": NCL_CIFAR_RATES,
    "cifar100-lt/ncl": NCL_CIFAR_RATES,
    "cifar100-lt/ncl-contrastive": NCL_CIFAR_RATES,
    "cifar100-lt/ncl-plus": NCL_CIFAR_RATES,
    "imagenet-lt/ncl": {0: 0.1999877, 99: 0.10005, 149: 0.02937468, 199: 1e-4},
    "inat18/ncl": {0: 0.1999969, 199: 0.10005, 399: 1e-4},
    "places-lt/ncl": {0: 0.009333333, 4: 0.02, 8: 0.02, 9: 0.002, 18: 0.002, 19: 0.0002, 29: 0.0002},
}


@pytest.mark.parametrize("name", NAMES)
def test_recipes_train_with_the_published_rates(name: str) -> None:
    options = options_of_recipe(name)
    schedule = Schedule(options.schedule, options.optimizer.lr, options.run.epochs)
    for epoch, rate in RATES[name].items():
        assert schedule.lr(epoch) == pytest.approx(rate, rel=1e-5, abs=1e-12), f"epoch {epoch}"


# ------------------------------------------------------------------ everything else


class Published(NamedTuple):
    """method: options beside those that all recipes of a method share, which are in SHARED."""

    epochs: int
    batch_size: int
    weight_decay: float
    nesterov: bool
    data: str
    model: dict[str, Any]
    method_name: str
    method: dict[str, Any]


SHARED: dict[str, dict[str, Any]] = {
    "glmc": {
        "rebalance": "reweight",
        "beta": 1.0,
        "mixup_prob": 1.0,
        "plain_first": 0,
        "plain_last": 0,
        "rounding": "ceil",
        "correct_lambda": False,
    },
    "glmc_maxnorm": {"threshold": 0.1},
    "metasaug": {"meta_from_epoch": 160, "meta_lr": 0.1, "late_virtual_lr": True, "statistics": "global"},
    "metasaug_large": {
        "loss": "ce",
        "strength": 0.25,
        "meta_from_epoch": 0,
        "meta_lr": 0.1,
        "statistics": "global",
    },
    "ncl": {
        "experts": 3,
        "copies": 1,
        "distillation": 0.6,
        "head": "linear",
        "contrastive": False,
        "mixing": "none",
    },
}


def glmc_cifar(classes: int, label_exponent: float, weighted_alpha: float, gamma: float, **others: Any) -> Published:
    numbers = {"label_exponent": label_exponent, "weighted_alpha": weighted_alpha, "contrast_weight": gamma}
    data = "cifar10-glmc" if classes == 10 else "cifar"
    return Published(200, 64, 5e-3, False, data, {"name": "resnet32", "width": 64}, "glmc", numbers | others)


def glmc_large(epochs: int, batch: int, weight_decay: float, data: str, **others: Any) -> Published:
    numbers = {"label_exponent": 1.0, "weighted_alpha": 0.2, "contrast_weight": 10}
    return Published(epochs, batch, weight_decay, False, data, {"name": "resnext50_32x4d"}, "glmc", numbers | others)


def max_norm(data: str, **model: Any) -> Published:
    return Published(10, 64, 0.1, False, data, model, "glmc_maxnorm", {})


def metasaug_cifar(loss: str, strength: float) -> Published:
    numbers = {"loss": loss, "strength": strength}
    return Published(200, 100, 5e-4, True, "cifar-metasaug", {"name": "resnet32", "width": 16}, "metasaug", numbers)


def metasaug_large(epochs: int, batch: int, data: str, per_class: int, view: str) -> Published:
    numbers = {"meta_per_class": per_class, "meta_view": view}
    return Published(epochs, batch, 5e-4, True, data, {"name": "resnet50"}, "metasaug_large", numbers)


def ncl_cifar(hard: int, **others: Any) -> Published:
    model = {"name": "resnet32", "width": 16}
    return Published(400, 64, 2e-4, True, "cifar-auto", model, "ncl", {"hard_classes": hard, **others})


def ncl_large(epochs: int, batch: int, data: str, hard: int, scale: float, **others: Any) -> Published:
    numbers = {"hard_classes": hard, "head": "cosine", "cosine_scale": scale, **others}
    return Published(epochs, batch, 2e-4, True, data, {"name": "resnet50", "pretrained": False}, "ncl", numbers)


def contrast(dim: int, queue: int) -> dict[str, Any]:
    parity = {"momentum": 0.999, "copy_init": False, "ema_head": False}
    return {"contrastive": True, "contrast_dim": dim, "queue": queue, "temperature": 0.2, **parity}


PUBLISHED = {
    "cifar10-lt/glmc": glmc_cifar(10, 1.2, 0.0, 1),
    "cifar10-lt/ir50-glmc": glmc_cifar(10, 1.2, 0.0, 1),
    "cifar10-lt/ir10-glmc": glmc_cifar(10, 1.0, 0.2, 2),
    "cifar100-lt/glmc": glmc_cifar(100, 1.2, 0.0, 4),
    "cifar100-lt/ir50-glmc": glmc_cifar(100, 1.2, 0.2, 6),
    "cifar100-lt/ir10-glmc": glmc_cifar(100, 1.2, 0.2, 4),
    # Ours: GLMC's loss under CMO's rule.
    "cifar100-lt/glmc-cmo": glmc_cifar(
        100,
        1.2,
        1.0,
        4,
        mixup_prob=0.5,
        plain_first=4,
        plain_last=3,
        rounding="floor",
        correct_lambda=True,
    ),
    "imagenet-lt/glmc": glmc_large(135, 120, 2e-4, "imagenet-sim"),
    "imagenet-lt/glmc-bs": glmc_large(135, 120, 2e-4, "imagenet-sim", rebalance="bs"),
    "inat18/glmc": glmc_large(120, 128, 1e-4, "inat-sim"),
    "cifar10-lt/glmc-maxnorm": max_norm("cifar10-glmc", name="resnet32", width=64),
    "cifar100-lt/glmc-maxnorm": max_norm("cifar", name="resnet32", width=64),
    "imagenet-lt/glmc-maxnorm": max_norm("imagenet-sim", name="resnext50_32x4d"),
    "cifar10-lt/metasaug": metasaug_cifar("ldam", 0.25),
    "cifar10-lt/metasaug-ce": metasaug_cifar("ce", 0.25),
    "cifar100-lt/metasaug": metasaug_cifar("ldam", 0.75),
    "cifar100-lt/metasaug-ce": metasaug_cifar("ce", 0.25),
    "imagenet-lt/metasaug": metasaug_large(20, 256, "imagenet", 10, "evaluation"),
    "inat18/metasaug": metasaug_large(200, 32, "inat", 2, "train"),
    "inat17/metasaug": metasaug_large(200, 32, "inat", 5, "train"),
    "cifar10-lt/ncl": ncl_cifar(3),
    "cifar100-lt/ncl": ncl_cifar(30),
    "cifar100-lt/ncl-contrastive": ncl_cifar(30, **contrast(64, 1024)),
    "cifar100-lt/ncl-plus": ncl_cifar(30, experts=2, copies=4),
    "imagenet-lt/ncl": ncl_large(200, 256, "imagenet-randncls", 300, 16.0),
    "inat18/ncl": ncl_large(400, 512, "inat-randncls", 2442, 32.0),
    "places-lt/ncl": ncl_large(30, 256, "places-sim", 122, 16.0, **contrast(1024, 65536))._replace(
        model={"name": "resnet152.tv_in1k", "pretrained": True}
    ),
}


def test_settings_of_each_recipe_are_listed_here() -> None:
    assert list(RATES.keys() ^ set(NAMES)) == list(PUBLISHED.keys() ^ set(NAMES)) == []


@pytest.mark.parametrize("name", NAMES)
def test_recipes_have_the_published_settings(name: str) -> None:
    options, published = options_of_recipe(name), PUBLISHED[name]
    run, optimizer = options.run, options.optimizer
    assert (run.epochs, run.batch_size) == published[:2]
    assert (optimizer.weight_decay, optimizer.nesterov, optimizer.momentum) == (*published[2:4], 0.9)
    assert options.schedule.for_epochs == published.epochs  # else phases and milestones would move
    assert (options.data.preset, options.method_name) == (published.data, published.method_name)
    found = {key: getattr(options.model, key) for key in published.model}
    assert found == published.model
    expected = SHARED[published.method_name] | published.method
    found = asdict(options.method)
    assert {key: found[key] for key in expected} == expected
    is_ncl = published.method_name == "ncl"
    method = find_method(options.method_name, vars(options.method)).make(options.method, context((1,) * 8142))
    assert method.objective.drop_last is is_ncl
    if is_ncl:
        assert run.seed == 42
