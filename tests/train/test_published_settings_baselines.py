"""The recipes of IB, LADE, PC softmax, MiSLAS, TDE, BBN, PaCo, GPaCo and FSA: rates and every setting published."""

from dataclasses import asdict
from typing import Any, NamedTuple

import pytest

from tests.train.test_published_settings import options_of_recipe
from tests.train.test_tables import RECIPE_NAMES
from train.schedules import Schedule

STEMS = ("ib", "lade", "pc-softmax", "mislas", "tde", "bbn", "paco", "gpaco", "fsa")
NAMES = sorted(name for name in RECIPE_NAMES if name.partition("/")[2].startswith(STEMS))


class Published(NamedTuple):
    """rates: by zero-based epoch, as the official code applies them. method: options; others are not published."""

    epochs: int
    batch_size: int
    weight_decay: float
    data: str
    model: str
    rates: dict[int, float]
    method: dict[str, Any]


# ------------------------------------------------------------ IB, BBN, LADE, TDE

IB = {"ib_alpha": 1000.0, "ib_weights": "inverse", "ib_from_epoch": 100}
IB_RATES = {0: 0.02, 4: 0.1, 99: 0.1, 100: 1e-3, 159: 1e-3, 160: 1e-5, 180: 1e-7}
BBN_RATES = {0: 0.033333333, 1: 0.046666667, 4: 0.086666667, 5: 0.1, 119: 0.1, 120: 0.001, 160: 1e-5}
BBN_LARGE_RATES = {0: 0.05, 119: 0.05, 120: 0.005, 160: 0.0005}
LADE_RATES = {0: 0.093333333, 1: 0.12, 3: 0.17333333, 4: 0.2, 118: 0.2, 119: 0.002, 159: 2e-5}
LADE_IMAGENET_RATES = {0: 0.049996192, 89: 0.025, 178: 3.8076211e-6, 179: 0}
LADE_INAT_RATES = {99: 0.05, 199: 0}
LADE_PLACES_RATES = {0: 0.05, 8: 0.05, 9: 0.005, 19: 0.0005, 29: 5e-5}
TDE_RATES = {70: 0.021198925, 71: 0.019098301, 79: 0.0060307379, 88: 6.0917298e-5, 89: 0}
PLACES = {"features_rate": 0.02}  # 0.001 for the features, 0.05 for the classifier


def tde(alpha: float, decay_by_rate: bool) -> dict[str, Any]:
    return {"heads": 2, "scale": 16.0, "tde_alpha": alpha, "decay_by_rate": decay_by_rate}


def of_lade(dataset: str, **method: Any) -> Published:
    """LADE's settings of a data set, which PC softmax shares, and TDE but on ImageNet-LT."""
    return {
        "cifar": Published(200, 256, 5e-4, "cifar", "resnet32-bbn", LADE_RATES, method),
        "imagenet": Published(180, 256, 5e-4, "imagenet", "resnext50_32x4d", LADE_IMAGENET_RATES, method),
        "inat": Published(200, 256, 1e-4, "inat", "resnet50", LADE_INAT_RATES, method),
        "places": Published(30, 128, 5e-4, "imagenet", "resnet152.tv_in1k", LADE_PLACES_RATES, method | PLACES),
    }[dataset]


# ------------------------------------------------------------------ MiSLAS

MIXUP_RATES = {0: 0.02, 4: 0.1, 159: 0.1, 160: 0.01, 179: 0.01, 180: 0.001}
SECOND_RATES = {0: 0.1, 5: 0.05, 9: 0.0024471742}


def mislas(
    data: str, model: str, batch: int, decay: float, head: float, tail: float, rate: float, **others: Any
) -> Published:
    method = {"smooth_head": head, "smooth_tail": tail, "classifier_rate": rate}
    kept = {"freeze_statistics": False, "moving": "all", "objective": "smoothing", "stage": "las"}
    return Published(10, batch, decay, data, model, SECOND_RATES, method | kept | others)


# ------------------------------------------------------------------ PaCo, GPaCo

PACO_RATES = {0: 0.005, 9: 0.05, 10: 0.055, 11: 0.05, 320: 0.05, 321: 0.005, 360: 0.005, 361: 0.0005}
PACO_LARGE_RATES = {0: 0.1, 9: 1.0, 10: 0.99998385, 200: 0.5180743, 399: 1.61392705e-05}  # of the base rate
PACO_PLACES_RATES = {4: 0.02, 5: 0.019927089, 29: 7.2911259e-05}


def paco_large(
    data: str, model: str, lr: float, alpha: float, temperature: float, keys: str, decay: float = 5e-4
) -> Published:
    method = {"keys": keys, "contrast_alpha": alpha, "contrast_temperature": temperature, "contrast_size": 128}
    rates = {epoch: lr * factor for epoch, factor in PACO_LARGE_RATES.items()}
    shared = {"key_queue": 8192, "key_momentum": 0.999, "group": 32, "stage": "whole"}
    return Published(400, 128, decay, data, model, rates, method | shared)


def paco_places(alpha: float, keys: str) -> Published:
    large = paco_large("places-sim", "resnet152.tv_in1k", 0.02, alpha, 0.2, keys)
    frozen = {"stage": "last_block", "frozen": "convolutions", "fresh_block": False}
    return large._replace(epochs=30, rates=PACO_PLACES_RATES, method=large.method | frozen)


PACO_CIFAR = {"keys": "momentum", "contrast_alpha": 0.01, "contrast_temperature": 0.05, "contrast_size": 32}
PACO_CIFAR |= {"key_queue": 1024, "key_momentum": 0.999, "group": None}

# --------------------------------------------------------------------- FSA

FSA = {"head_share": 0.9, "partners": 3}  # thresholds are not published
FSA_FIRST_RATES = {0: 0.1, 149: 0.1, 150: 0.01, 299: 0.01}
FSA_FIRST_LARGE_RATES = {0: 0.1, 29: 0.1, 30: 0.01, 60: 0.001, 90: 1e-4}


def fsa(epochs: int, data: str, model: str) -> Published:
    return Published(epochs, 64, 0.0, data, model, {0: 0.001, epochs - 1: 0.001}, FSA)


PUBLISHED = {
    **{f"cifar{n}-lt/ib": Published(200, 128, 2e-4, "cifar", "resnet32", IB_RATES, IB) for n in (10, 100)},
    "inat18/ib": Published(200, 512, 2e-4, "inat", "resnet50", IB_RATES, IB),
    **{
        f"cifar{n}-lt/bbn": Published(200, 128, 2e-4, "cifar", "resnet32", BBN_RATES, {"share_epochs": None})
        for n in (10, 100)
    },
    **{
        f"inat{n}/bbn": Published(
            180, 128, 1e-4, "inat-imagenet-statistics", "resnet50", BBN_LARGE_RATES, {"share_epochs": 200}
        )
        for n in (17, 18)
    },
    "cifar100-lt/lade": of_lade("cifar", regulariser=0.1, penalty=0.01),
    "imagenet-lt/lade": of_lade("imagenet", regulariser=0.05, penalty=0.5),
    "inat18/lade": of_lade("inat", regulariser=0.05, penalty=0.5),
    "places-lt/lade": of_lade("places", regulariser=0.005, penalty=0.1),
    "cifar100-lt/pc-softmax": of_lade("cifar"),
    "imagenet-lt/pc-softmax": of_lade("imagenet"),
    "inat18/pc-softmax": of_lade("inat"),
    "places-lt/pc-softmax": of_lade("places"),
    "cifar10-lt/tde": of_lade("cifar", **tde(1.0, False)),
    "cifar100-lt/tde": of_lade("cifar", **tde(1.5, False)),
    "imagenet-lt/tde": Published(90, 512, 5e-4, "imagenet", "resnext50_32x4d", TDE_RATES, tde(3.0, True)),
    "inat18/tde": of_lade("inat", **tde(3.0, True)),
    "places-lt/tde": of_lade("places", **tde(3.0, True)),
    **{
        f"cifar{n}-lt/mislas-first": Published(200, 128, 2e-4, "cifar", "resnet32", MIXUP_RATES, {"beta": 1.0})
        for n in (10, 100)
    },
    "imagenet-lt/mislas-first": Published(
        180, 256, 5e-4, "imagenet", "resnet50", {1: 0.099992385, 179: 7.6152423e-6}, {"beta": 0.2}
    ),
    "inat18/mislas-first": Published(200, 256, 1e-4, "inat-jitter", "resnet50", {0: 0.1, 100: 0.05}, {"beta": 0.2}),
    "places-lt/mislas-first": Published(
        90,
        256,
        5e-4,
        "imagenet",
        "resnet152.tv_in1k",
        {0: 0.1, 45: 0.05},
        {"beta": 0.2, "stage": "last_block", "frozen": "all", "fresh_block": True},
    ),
    "cifar10-lt/mislas": mislas("cifar", "resnet32", 128, 2e-4, 0.3, 0.0, 0.5, freeze_statistics=True),
    "cifar100-lt/mislas": mislas("cifar", "resnet32", 128, 2e-4, 0.4, 0.1, 0.2),
    "imagenet-lt/mislas": mislas("imagenet", "resnet50", 256, 5e-4, 0.3, 0.0, 0.05),
    "inat18/mislas": mislas("inat-jitter", "resnet50", 256, 1e-4, 0.3, 0.0, 0.05),
    "places-lt/mislas": mislas("imagenet", "resnet152.tv_in1k", 256, 5e-4, 0.4, 0.1, 0.05, moving="last_block"),
    "cifar100-lt/paco": Published(400, 128, 5e-4, "cifar-auto", "resnet32", PACO_RATES, PACO_CIFAR),
    "imagenet-lt/paco": paco_large("imagenet-randncls", "resnet50", 0.02, 0.05, 0.2, "momentum"),
    "imagenet-lt/paco-resnext50": paco_large("imagenet-stack2", "resnext50_32x4d", 0.02, 0.05, 0.07, "momentum"),
    "imagenet-lt/paco-resnext101": paco_large("imagenet-stack3", "resnext101_32x4d", 0.03, 0.05, 0.2, "momentum"),
    "inat18/paco": paco_large("inat-randncls", "resnet50", 0.02, 0.05, 0.2, "momentum", 1e-4),
    "places-lt/paco": paco_places(0.05, "momentum"),
    "imagenet-lt/gpaco": paco_large("imagenet-gpaco2", "resnet50", 0.04, 0.045, 0.2, "own"),
    "imagenet-lt/gpaco-resnext50": paco_large("imagenet-gpaco3", "resnext50_32x4d", 0.06, 0.05, 0.2, "own"),
    "imagenet-lt/gpaco-resnext101": paco_large("imagenet-gpaco5", "resnext101_32x4d", 0.06, 0.05, 0.2, "own"),
    "inat18/gpaco": paco_large("inat-randncls", "resnet50", 0.04, 0.05, 0.2, "own", 1e-4),
    "places-lt/gpaco": paco_places(0.02, "own"),
    **{
        f"cifar{n}-lt/fsa-first": Published(300, 128, 2e-4, "cifar", "resnet18-stem32", FSA_FIRST_RATES, {"loss": "ce"})
        for n in (10, 100)
    },
    **{
        f"inat{n}/fsa-first": Published(100, 256, 1e-4, "inat", "resnet50", FSA_FIRST_LARGE_RATES, {"loss": "ce"})
        for n in (17, 18)
    },
    **{f"cifar{n}-lt/fsa": fsa(44, "cifar", "resnet18-stem32") for n in (10, 100)},
    **{f"inat{n}/fsa": fsa(1, "inat", "resnet50") for n in (17, 18)},
}
# Optimizer steps of a phase whose length is not one in epochs.
STEPS = {"cifar10-lt/fsa": 6400, "cifar100-lt/fsa": 6400, "inat17/fsa": 200, "inat18/fsa": 200}


def test_settings_of_each_recipe_are_listed_here() -> None:
    assert list(PUBLISHED.keys() ^ set(NAMES)) == []


@pytest.mark.parametrize("name", NAMES)
def test_recipes_have_the_published_settings(name: str) -> None:
    options, published = options_of_recipe(name), PUBLISHED[name]
    run, optimizer = options.run, options.optimizer
    assert (run.epochs, run.batch_size, run.max_steps) == (*published[:2], STEPS.get(name))
    assert (optimizer.kind, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.9, "bbn" in name)
    assert (optimizer.weight_decay, optimizer.decay) == (published.weight_decay, "all")
    assert (options.data.preset, options.model.name) == (published.data, published.model)
    assert options.model.pretrained is (published.model == "resnet152.tv_in1k" and name != "places-lt/mislas")
    found = asdict(options.method)
    assert {key: found[key] for key in published.method} == published.method


@pytest.mark.parametrize("name", NAMES)
def test_recipes_train_with_the_published_rates(name: str) -> None:
    options, rates = options_of_recipe(name), PUBLISHED[name].rates
    assert options.schedule.for_epochs == options.run.epochs  # else phases and milestones would move
    schedule = Schedule(options.schedule, options.optimizer.lr, options.run.epochs)
    assert [schedule.lr(epoch) for epoch in rates] == pytest.approx(list(rates.values()), rel=1e-5, abs=1e-12)
