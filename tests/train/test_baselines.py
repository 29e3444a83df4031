"""The baselines of CMO's tables: what they draw, what they mix, how labels count, what a second stage trains."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.loader import Loader
from pipeline.mix_rule import MixPlan
from pipeline.plan import Plan, Position
from pipeline.transfer import values_to_device
from pipeline.views.operations import Kind
from tests.helpers.runs import options
from tests.helpers.shard_sets import UnreadableSet, small_images
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import CPU, context, loss_of, make_method, micro_step, random_images
from train.checkpoints.files import save
from train.methods.base import MicroStep
from train.methods.method import Method
from train.methods.mixings.remix import remix_label_share
from train.methods.registry import find_method
from train.models.build import ModelOptions
from train.models.heads import ScaledLinear

COUNTS = (50, 20, 5)
SHARE_BY_CLASS = np.array(COUNTS) / sum(COUNTS)


def make(name: str, counts: tuple[int, ...] = COUNTS, epochs: int = 200, **values: Any) -> Method:
    return make_method(name, context(counts, epochs), **values)


def linear_model(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))


def mixing_step(mix: MixPlan, part: int = 0, parts: int = 1) -> Any:
    batch = len(mix)
    labels = np.random.default_rng(1).integers(0, 3, (2, batch))
    streams = {"original": (random_images(batch), labels[0]), "foreground": (random_images(batch, seed=1), labels[1])}
    return micro_step(10, streams, mix, part, parts)


def box_plan(batch: int, box: tuple[int, int, int, int]) -> MixPlan:
    top, left, bottom, right = box
    lam = 1 - (bottom - top) * (right - left) / 32**2
    return MixPlan(True, np.full(batch, lam), np.tile(np.array(box, np.int32), (batch, 1)))


def slow_cutmix(model: nn.Module, method: Method, step: Any, box: tuple[int, int, int, int]) -> torch.Tensor:
    """CutMix as in its paper: M ⊙ first + (1 − M) ⊙ second, labels weighted by the area that each image has."""
    first, second = step.batches["original"], step.batches["foreground"]
    mixed = first.images[0].clone()
    for i in range(len(mixed)):
        for row in range(box[0], box[2]):
            for column in range(box[1], box[3]):
                mixed[i, row, column] = second.images[0][i, row, column]
    logits = model(method.context.input_builder.plain(mixed))
    covered = (box[2] - box[0]) * (box[3] - box[1]) / 32**2
    return (1 - covered) * F.cross_entropy(logits, first.labels) + covered * F.cross_entropy(logits, second.labels)


@pytest.mark.parametrize(("name", "values"), [("cmo", {"weighted_alpha": 0.0}), ("cutmix", {})])
def test_cmo_with_exponent_0_and_cutmix_compute_cutmix(name: str, values: Mapping[str, Any]) -> None:
    method, model, box = make(name, **values), linear_model(), (3, 5, 21, 32)
    step = mixing_step(box_plan(6, box))
    torch.testing.assert_close(loss_of(method, model, step).loss, slow_cutmix(model, method, step, box))


def test_cmo_with_exponent_0_pastes_an_independent_instance_balanced_batch(tmp_path: Path) -> None:
    dataset = small_images(tmp_path / "set", (12, 6, 2))
    method = make("cmo", (12, 6, 2), weighted_alpha=0.0, mixup_prob=1.0, plain_first=0, plain_last=0)
    plan = Plan(
        {"train": dataset},
        method.objective.streams(),
        method.objective.mix_rule(),
        seed=0,
        global_batch_size=10,
        epochs=200,
    )
    pairs = np.zeros((20, 20))
    for epoch in range(200):
        for number in range(plan.steps_per_epoch):
            streams = plan.step(epoch, number).streams
            np.add.at(pairs, (streams["original"].sample_ids, streams["foreground"].sample_ids), 1)
    assert (pairs.sum(axis=1) == 200).all(), "the background shows every sample once an epoch"
    # 4000 pairs over 400 cells, rows fixed: chi-squared with 20 * 19 degrees of freedom.
    statistic = ((pairs - 10) ** 2 / 10).sum()
    assert abs(statistic - 380) < 5 * np.sqrt(2 * 380)
    with Loader(plan, CPU, stop=Position(1, 0), executor="reference") as loader:
        for loaded in loader:
            [micro] = loaded.micro_batches
            assert micro.mix is not None
            assert micro.mix.paste
            assert not np.array_equal(*(micro.batches[name].sample_ids for name in ("original", "foreground")))


def class_shares(method: Method, stream: str) -> np.ndarray:
    plan = Plan({"train": UnreadableSet(COUNTS)}, method.objective.streams(), method.objective.mix_rule(), 0, 25, 200)
    labels = [plan.stream_step(stream, epoch, step).labels for epoch in range(200) for step in range(3)]
    return np.bincount(np.concatenate(labels), minlength=3) / (200 * 75)


UNIFORM = np.full(3, 1 / 3)


@pytest.mark.parametrize(
    ("name", "values", "background", "foreground"),
    [
        ("cmo", {}, SHARE_BY_CLASS, UNIFORM),
        ("cmo", {"background": "weighted"}, UNIFORM, UNIFORM),  # CMO_minor
        ("cmo", {"background": "weighted", "foreground": "shuffled"}, UNIFORM, SHARE_BY_CLASS),  # CMO_back
        ("cmo", {"weighted_alpha": 2.0}, SHARE_BY_CLASS, (1 / np.array(COUNTS)) / (1 / np.array(COUNTS)).sum()),
        ("cmo", {"foreground": "effective"}, SHARE_BY_CLASS, UNIFORM),  # beta 0.9999: within 0.3 % of it here
        ("minority_augment", {"operation": "blur"}, SHARE_BY_CLASS, UNIFORM),
        ("cutmix", {}, SHARE_BY_CLASS, SHARE_BY_CLASS),
        ("mixup", {}, SHARE_BY_CLASS, SHARE_BY_CLASS),
        ("remix", {}, SHARE_BY_CLASS, SHARE_BY_CLASS),
        ("ros", {}, UNIFORM, None),
    ],
)
def test_classes_are_drawn_as_the_method_says(
    name: str, values: dict[str, Any], background: np.ndarray, foreground: np.ndarray | None
) -> None:
    method = make(name, **values)
    # Four standard errors of a share near 1/3 over 15,000 draws.
    np.testing.assert_allclose(class_shares(method, "original"), background, atol=0.016)
    if foreground is not None:
        np.testing.assert_allclose(class_shares(method, "foreground"), foreground, atol=0.016)


def blend(mix: MixPlan, step: Any, method: Method) -> torch.Tensor:
    """The mixture of normalised images."""
    lam = torch.from_numpy(mix.lam).float()[:, None, None, None]
    first, second = (method.context.input_builder.plain(step.batches[s].images[0]) for s in ("original", "foreground"))
    return lam * first + (1 - lam) * second


@pytest.mark.parametrize("name", ["mixup", "minority_augment"])
def test_mixup_is_the_soft_label_cross_entropy_of_the_blended_images(name: str) -> None:
    method, model, mix = make(name), linear_model(), MixPlan(True, np.full(6, 0.3), np.zeros((6, 4), np.int32))
    step = mixing_step(mix)
    labels = [F.one_hot(step.batches[stream].labels, 3) for stream in ("original", "foreground")]
    target = 0.3 * labels[0] + 0.7 * labels[1]
    expected = -(target * model(blend(mix, step, method)).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss_of(method, model, step).loss, expected)


def test_remix_gives_the_label_to_the_smaller_class_where_the_larger_one_is_the_smaller_part() -> None:
    rng = np.random.default_rng(0)
    lam, first, second = rng.random(500), rng.choice([3, 10, 30], 500), rng.choice([3, 10, 30], 500)
    found = remix_label_share(lam, first, second, kappa=3.0, tau=0.5)
    for share, x, n_first, n_second in zip(found, lam, first, second, strict=True):
        if n_first >= 3 * n_second and x < 0.5:
            assert share == 0
        elif 3 * n_first <= n_second and 1 - x < 0.5:
            assert share == 1
        else:
            assert share == x
    assert {0.0, 1.0} < set(found)


def test_remix_takes_the_counts_of_the_training_set() -> None:
    mix = MixPlan(True, np.full(8, 0.4), np.zeros((8, 4), np.int32))
    method, step, model = make("remix"), mixing_step(mix), linear_model()
    first, second = (step.batches[stream].labels for stream in ("original", "foreground"))
    share = torch.tensor([0.0 if COUNTS[a] >= 3 * COUNTS[b] else 0.4 for a, b in zip(first, second, strict=True)])
    assert 0 < (share == 0).sum() < 8
    logits = model(blend(mix, step, method))
    losses = [F.cross_entropy(logits, labels, reduction="none") for labels in (first, second)]
    torch.testing.assert_close(loss_of(method, model, step).loss, (share * losses[0] + (1 - share) * losses[1]).mean())


@pytest.mark.parametrize(("operation", "kind"), [("blur", {Kind.BLUR}), ("jitter", set(Kind) - {Kind.IDENTITY})])
def test_a_changed_minority_sample_replaces_the_background(operation: str, kind: set[Kind]) -> None:
    method, model = make("minority_augment", operation=operation), linear_model()
    step = mixing_step(box_plan(6, (0, 0, 4, 4)))
    foreground = step.batches["foreground"]
    expected = F.cross_entropy(model(method.context.input_builder.plain(foreground.images[0])), foreground.labels)
    torch.testing.assert_close(loss_of(method, model, step).loss, expected)
    plan = Plan({"train": UnreadableSet(COUNTS)}, method.objective.streams(), method.objective.mix_rule(), 0, 25, 200)
    plain, changed = (plan.stream_step(name, 50, 0).views[0].operations for name in ("original", "foreground"))
    assert not plain
    assert all(set(planned.kind.tolist()) <= kind for planned in changed)


@pytest.mark.parametrize("name", ["cmo", "cutmix", "mixup", "remix", "minority_augment"])
@pytest.mark.parametrize("rule", ["none", "reweight"])
def test_shares_of_micro_batches_add_up_to_the_loss_of_the_global_batch(name: str, rule: str) -> None:
    method, model, mix = make(name, rule=rule), linear_model(), box_plan(7, (0, 3, 9, 20))
    whole = loss_of(method, model, mixing_step(mix)).loss
    parts = [loss_of(method, model, mixing_step(mix, part, 3)).loss for part in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.7])
def test_logit_adjustment_adds_the_prior_to_the_power_of_tau(tau: float) -> None:
    method, model = make("logit_adjustment", tau=tau), linear_model()
    step = micro_step(0, {"original": (random_images(6), [0, 1, 2, 0, 0, 1])})
    batch = step.batches["original"]
    logits = model(method.context.input_builder.plain(batch.images[0])) + tau * torch.tensor(SHARE_BY_CLASS).log()
    torch.testing.assert_close(loss_of(method, model, step).loss, F.cross_entropy(logits, batch.labels).float())


def test_ride_remix_is_remix_around_the_loss_of_ride() -> None:
    mix = MixPlan(True, np.full(8, 0.4), np.zeros((8, 4), np.int32))
    method, ride, step = make("ride_remix"), make("ride").objective, mixing_step(mix)
    linear = linear_model(classes=9)

    def experts(images: torch.Tensor) -> torch.Tensor:
        return linear(images).reshape(-1, 3, 3).transpose(0, 1)

    output = experts(blend(mix, step, method))
    first, second = (np.array(COUNTS)[step.plan.labels(stream)] for stream in ("original", "foreground"))
    share = remix_label_share(mix.lam, first, second, 3.0, 0.5)
    values = ride.term_inputs(step.plan, "original", share) | ride.term_inputs(step.plan, "foreground", 1 - share)
    shared = MicroStep(step.batches, values_to_device(values, CPU), 8)
    expected = ride.term(shared, "original", output) + ride.term(shared, "foreground", output)
    torch.testing.assert_close(loss_of(method, experts, step).loss, expected)


@pytest.fixture(scope="module")
def first_stage(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a plain run's network."""
    path = tmp_path_factory.mktemp("first") / "first.pt"
    model = make("vanilla", (14, 7, 4, 2)).build_model(ModelOptions(width=4), seed=5)
    save(path, {"model": model.state_dict()})
    return path


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize(
    ("name", "freeze", "trained"), [("crt", False, "linear."), ("crt", True, "linear."), ("lws", True, "linear.scales")]
)
def test_a_second_stage_trains_its_classifier_alone(
    data: Path, first_stage: Path, tmp_path: Path, name: str, freeze: bool, trained: str
) -> None:
    changes = {"method.name": name, "method.freeze_statistics": freeze, "model.init_from": first_stage, "max_steps": 2}
    run = make_run(options(data, tmp_path / "run", **changes))
    take_steps(run)
    after = run.trainer.bare_model.state_dict()
    before = torch.load(first_stage, weights_only=True)["model"]
    changed = {key for key in after if key not in before or not torch.equal(after[key], before[key])}
    statistics = {key for key in after if key.endswith(STATISTICS)}
    expected = {key for key in after if key.startswith(trained)}
    assert expected
    assert changed == (expected if freeze else expected | statistics)


def test_crt_starts_its_classifier_afresh_and_lws_keeps_it() -> None:
    for name, kept in (("crt", False), ("lws", True)):
        method = make(name)
        method.build_model(ModelOptions(init_from=Path("first.pt")), seed=0)
        assert method.stage.inherits("linear.weight") is kept
        assert method.stage.inherits("layer1.0.conv1.weight")


def test_lws_scales_the_logits_of_the_classes() -> None:
    layer = ScaledLinear(4, 3)
    features = torch.randn(5, 4)
    unscaled = F.linear(features, layer.weight, layer.bias)
    torch.testing.assert_close(layer(features), unscaled)
    layer.scales.data = torch.tensor([1.0, 2.0, -0.5])
    torch.testing.assert_close(layer(features), unscaled * torch.tensor([1.0, 2.0, -0.5]))


@pytest.mark.parametrize("name", ["crt", "lws"])
def test_a_second_stage_needs_a_first(name: str) -> None:
    with pytest.raises(ValueError, match=r"--model\.init_from"):
        make(name).build_model(ModelOptions(), seed=0)


@pytest.mark.parametrize("values", [{"remix_kappa": 0.5}, {"remix_tau": 1.5}])
def test_remix_refuses_impossible_borders(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="kappa"):
        make("remix", **values)


def test_a_relabelling_of_experts_has_every_option_of_both() -> None:
    names = {field.name for field in fields(find_method("ride_remix").Options)}
    assert {"beta", "remix_kappa", "remix_tau", "experts", "diversity"} <= names
    assert not {"loss", "weighted_alpha"} & names
