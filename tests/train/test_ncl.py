"""NCL: published vectors, the loss against loops, networks and names, queue and momentum encoders, global batches."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from pipeline.mix_rule import MixPlan
from pipeline.rng import RowDraws
from pipeline.views.presets import PRESETS, SIM_32
from shards.class_counts import NCL_RULE
from tests.helpers.ranks import on_two_processes
from tests.helpers.runs import options as run_options
from tests.helpers.runs import records, same_weights
from tests.helpers.steps import context, loss_of, make_method, micro_step, random_images
from tests.helpers.vectors import wave
from train.checkpoints.files import load
from train.evaluation.scores import Predictions, score
from train.methods.method import Method
from train.methods.objectives.ncl import (
    NCL,
    NCLOptions,
    hard_mask,
    individual_loss,
    ncl_loss,
    ncl_plus_loss,
    nested_distillation,
)
from train.models.build import ModelOptions
from train.models.heads import BiasedCosineClassifier, CosineClassifier
from train.models.ncl import ContrastiveExperts, KeyQueue, build_experts, unit
from train.run import FINISHED, train
from train.schedules import Schedule, ScheduleOptions

COUNTS = (60, 25, 9, 3)
VECTOR_COUNTS = torch.tensor([100.0, 50, 20, 10, 5], dtype=torch.float64)


def ncl(counts: Sequence[int] = COUNTS, **options: Any) -> Method:
    return make_method("ncl", context(counts), **{"hard_classes": 2, **options})


def contrastive(**options: Any) -> NCL:
    return ncl(**{"experts": 2, "contrastive": True, "contrast_dim": 5, "queue": 16, **options})


def logits_of(experts: int, rows: int, classes: int) -> torch.Tensor:
    return 2 * torch.randn(experts, rows, classes, generator=torch.Generator().manual_seed(3)).double()


# --------------------------------------------------------------- published vectors


def test_ncl_loss_and_gradient_equal_the_official_code() -> None:
    logits = torch.from_numpy(wave("sin", (3, 2, 5), (0.7, 1.9, 1.3), 0.4, 2)).requires_grad_()
    labels = torch.tensor([4, 1])
    assert hard_mask(logits[0], labels, 3).tolist() == [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1]]
    undistilled = ncl_loss(logits, labels, VECTOR_COUNTS.log(), 3, 0.0).mean()
    assert float(undistilled.detach()) == pytest.approx(12.15538 + 11.56202, rel=1e-6)
    loss = ncl_loss(logits, labels, VECTOR_COUNTS.log(), 3, 0.6).mean()
    assert float(loss.detach()) == pytest.approx(25.2813, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = [-0.236927, 1.193262, 0.05014971, 0.0005850022, -1.008655]
    assert gradient[0, 0].tolist() == pytest.approx(expected, rel=1e-4)
    assert gradient.flatten(1).norm(dim=1).tolist() == pytest.approx([2.204115, 1.796206, 1.847388], rel=1e-5)


def test_parts_of_the_ncl_loss_equal_the_official_code() -> None:
    """Each of the two terms of either function alone: with all classes in the mask they are the same, hence halves."""
    logits = torch.from_numpy(wave("sin", (3, 2, 5), (0.7, 1.9, 1.3), 0.4, 2))
    labels, balanced = torch.tensor([4, 1]), logits + VECTOR_COUNTS.log()
    hard = balanced * hard_mask(logits[0], labels, 3)
    every = torch.ones(2, 5, dtype=torch.float64)
    for values, cross_entropies, distillation in ((balanced, 12.15538, 1.050401), (hard, 11.56202, 0.5135025)):
        assert float(individual_loss(values, every, labels).mean()) / 2 == pytest.approx(cross_entropies, rel=1e-6)
        assert 0.6 * float(nested_distillation(values, every).mean()) / 2 == pytest.approx(distillation, rel=1e-6)


def test_ncl_plus_loss_equals_the_official_code() -> None:
    logits = torch.from_numpy(wave("sin", (2, 4, 5), (0.7, 1.9, 1.3), 0.4, 2))
    loss = ncl_plus_loss(logits, torch.tensor([4, 1]), VECTOR_COUNTS.log(), 3, 0.6, copies=2)
    assert float(loss.mean()) == pytest.approx(21.12675, rel=1e-5)


def test_heads_equal_the_official_code() -> None:
    weight = torch.from_numpy(wave("sin", (3, 4), (0.5, 0.9), 0.2))
    features = torch.from_numpy(wave("cos", (2, 4), (0.8, 0.3), 0.5))
    head, plain = BiasedCosineClassifier(4, 3, 16.0).double(), CosineClassifier(4, 3).double()
    head.load_state_dict({"weight": weight, "bias": torch.from_numpy(wave("sin", (3,), (0.3,), 0.1))})
    plain.load_state_dict({"weight": weight.T.contiguous()})
    expected = [[12.58404, 14.79385, 12.98344], [-6.7797, 2.021853, 9.532203]]
    np.testing.assert_allclose(head(features).detach(), expected, rtol=1e-6)
    expected = [[0.780263, 0.9002771, 0.7712014], [-0.4299708, 0.1020272, 0.5554991]]
    np.testing.assert_allclose(plain(features).detach(), expected, rtol=1e-6)
    # In all digits of float64: the vectors have fewer than float32.
    cosines = (features / features.norm(dim=1, keepdim=True)) @ (weight / weight.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(plain(features).detach(), cosines, rtol=1e-13, atol=0)
    torch.testing.assert_close(head(features).detach(), 16 * cosines + head.bias.detach(), rtol=1e-13, atol=0)


def test_learning_rates_equal_the_official_code_whose_epochs_count_from_one() -> None:
    cifar = ScheduleOptions(for_epochs=400, milestones=(319, 359), factors=(0.1, 0.01), warmup_start=1 / 3)
    expected = {1: 0.04666667, 2: 0.06, 5: 0.1, 319: 0.1, 320: 0.01, 360: 0.001}
    imagenet = ScheduleOptions(kind="cosine", for_epochs=200, warmup_epochs=0, final_lr=1e-4, ends_at_zero=True)
    expected_cosine = {1: 0.1999877, 100: 0.10005, 150: 0.02937468, 200: 0.0001}
    for schedule, rates in (
        (Schedule(cifar, 0.1, 400), expected),
        (Schedule(imagenet, 0.2, 200), expected_cosine),
    ):
        for epoch, rate in rates.items():
            assert schedule.lr(epoch - 1) == pytest.approx(rate, rel=1e-6), f"epoch {epoch}"


def test_contrastive_loss_and_queue_equal_the_official_code() -> None:
    queue = KeyQueue(3, 4).double()
    start = torch.from_numpy(wave("sin", (3, 4), (0.9, 0.4), 0.3))
    queue.queue.copy_(start / start.norm(dim=0))
    found = []
    for time in (0, 1):
        queries = unit(torch.from_numpy(wave("sin", (2, 3), (0.7, 1.2), 0.1 + 2 * time)))
        keys = unit(torch.from_numpy(wave("cos", (2, 3), (0.5, 1.4), 0.4 + 2 * time)))
        own_key = torch.zeros(2, dtype=torch.int64)
        contrast = queue.contrast(queries, keys, 0.2)
        assert contrast.dtype == torch.float64
        found.append(float(nn.functional.cross_entropy(contrast, own_key)))
        queue.enqueue(keys)
    assert found == pytest.approx([7.085628, 8.129892], rel=1e-6)
    assert int(queue.queue_ptr) == 0
    assert queue.queue[0].tolist() == pytest.approx([0.6688124, 0.4993542, -0.6256997, -0.7236803], rel=1e-6)


def test_groups_of_classes_equal_the_official_report() -> None:
    labels = np.repeat(np.arange(5), 2)
    predicted = np.array([0, 0, 1, 2, 2, 2, 3, 0, 4, 4])
    nothing = np.zeros(10, dtype=np.float32)
    found = score(
        Predictions(labels, predicted, predicted == labels, nothing, nothing, np.zeros((10, 0), dtype=bool)),
        np.array([500, 100, 60, 20, 5]),
        NCL_RULE,
    ).numbers
    assert [found[name] for name in ("many", "medium", "few", "all")] == pytest.approx([75, 100, 75, 80])


@pytest.mark.parametrize(
    ("sampling", "epoch", "expected"),
    [
        # "square" of the official code: two square roots, so classes in proportion to n^(1/4).
        ({"weighted_alpha": 0.75}, 0, [0.4111535, 0.2749549, 0.1838734, 0.1300181]),
        ({"sampling": "progressive"}, 100, [0.6625, 0.1825, 0.0865, 0.0685]),
        ({"sampling": "progressive"}, 400, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_classes_are_drawn_as_by_the_samplers_of_the_official_code(
    sampling: dict[str, Any], epoch: int, expected: list[float]
) -> None:
    counts = np.array([500, 100, 20, 5])
    starts = np.concatenate([[0], np.cumsum(counts)])

    class Data:
        samples_per_class, class_starts, sample_ids_by_class = counts, starts, np.arange(starts[-1])

        def __len__(self) -> int:
            return len(self.sample_ids_by_class)

    (stream,) = make_method(
        "ncl", context(counts, epochs=400), hard_classes=2, mixing="oversample", **sampling
    ).objective.streams()
    # Epochs count from one in the official code; the first vector holds in any.
    draws = RowDraws(0, max(epoch - 1, 0), 0, np.arange(200_000))
    ids = stream.sampling.over(Data()).ids(draws, "original/samples", 0)
    shares = np.bincount(np.repeat(np.arange(4), counts)[ids]) / len(ids)
    np.testing.assert_allclose(shares, expected, atol=0.004)  # four standard deviations


# --------------------------------------------------------------------- the losses


def slow_divergence(members: list[np.ndarray], classes: np.ndarray) -> float:
    """sum over ordered pairs of sum_c p_j (log p_j − log(p_i + 1e-9)) over some classes, for one row."""
    p = [np.exp(v) / np.exp(v).sum() for v in members]
    pairs = permutations(range(len(p)), 2)
    return sum((p[j] * (np.log(p[j]) - np.log(p[i] + 1e-9)))[classes].sum() for i, j in pairs)


def slow_cross_entropy(logits: np.ndarray, label: int) -> float:
    return float(np.log(np.exp(logits).sum()) - logits[label])


def slow_mask(first: np.ndarray, label: int, hard: int) -> np.ndarray:
    others = sorted((c for c in range(len(first)) if c != label), key=lambda c: -first[c])
    return np.isin(np.arange(len(first)), [label, *others[: hard - 1]])


@pytest.mark.parametrize("experts", [1, 2, 4])
def test_ncl_loss_equals_loops(experts: int) -> None:
    counts, labels, factor = np.array([40.0, 30, 12, 7, 3, 2]), [0, 5, 3], 0.6
    logits = logits_of(experts, 3, 6)
    found = ncl_loss(logits, torch.tensor(labels), torch.from_numpy(np.log(counts)), 4, factor)
    for row, label in enumerate(labels):
        raw = [logits[k, row].numpy() for k in range(experts)]
        mask = slow_mask(raw[0], label, 4)
        balanced = [z + np.log(counts) for z in raw]
        masked = [np.where(mask, v, 0.0) for v in balanced]
        every = np.arange(6)
        expected = sum(slow_cross_entropy(v, label) for v in (*balanced, *masked))
        if experts > 1:
            distilled = slow_divergence(balanced, every) + slow_divergence(masked, every)
            expected += factor / (experts - 1) * distilled
        assert float(found[row]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("experts", "copies"), [(1, 2), (2, 4), (3, 2)])
def test_ncl_plus_loss_equals_loops(experts: int, copies: int) -> None:
    counts, labels, factor = np.array([40.0, 30, 12, 7, 3, 2]), [0, 5, 3], 0.6
    logits = logits_of(experts, 3 * copies, 6)
    found = ncl_plus_loss(logits, torch.tensor(labels), torch.from_numpy(np.log(counts)), 4, factor, copies)

    def partial(members: list[np.ndarray], mask: np.ndarray) -> float:
        count = len(members)
        return 2 / (count * (count - 1)) * (slow_divergence(members, np.arange(6)) + slow_divergence(members, mask))

    for image, label in enumerate(labels):
        raw = logits[:, image::3].numpy()  # (experts, copies, classes)
        balanced = raw + np.log(counts)
        masks = [slow_mask(raw[0, copy], label, 4) for copy in range(copies)]
        expected = 0.0
        for copy, mask in enumerate(masks):
            for v in balanced[:, copy]:
                expected += (slow_cross_entropy(v, label) + slow_cross_entropy(np.where(mask, v, 0.0), label)) / copies
            if experts > 1:
                expected += factor * partial(list(balanced[:, copy]), mask) / copies
        expected += factor * sum(partial(list(expert), masks[0]) for expert in balanced)
        assert float(found[image]) == pytest.approx(expected, rel=1e-9)


def test_hard_classes_are_those_of_the_first_expert_and_always_hold_the_label() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    assert hard_mask(logits, torch.tensor([3]), 2).tolist() == [[1, 0, 0, 1]]
    assert hard_mask(logits, torch.tensor([0]), 1).tolist() == [[1, 0, 0, 0]]
    assert hard_mask(logits, torch.tensor([1]), 4).tolist() == [[1, 1, 1, 1]]


@pytest.mark.parametrize(("classes", "hard"), [(10, 3), (100, 30), (1000, 300), (8142, 2442)])
def test_three_classes_in_ten_are_hard_as_published(classes: int, hard: int) -> None:
    assert ncl([2] * classes, hard_classes=None).derived_options()["hard_classes"] == hard


# ------------------------------------------------------------------- the networks


@pytest.mark.parametrize(
    ("model", "options", "parameters", "tensors"),
    [
        (ModelOptions(), {}, 1_410_012, 564),
        (ModelOptions(), {"contrastive": True}, None, 1152),
        (ModelOptions(name="resnet50"), {"head": "cosine"}, 76_671_096, 960),
    ],
    ids=["cifar", "cifar contrastive", "imagenet"],
)
def test_networks_have_the_published_tensors(
    model: ModelOptions,
    options: dict[str, Any],
    parameters: int | None,
    tensors: int,
) -> None:
    classes = 1000 if model.name == "resnet50" else 100
    method = ncl([2] * classes, **options)
    with torch.device("meta"):
        network = method.build_model(model, 0)
    assert len(network.state_dict()) == tensors
    if parameters:
        assert sum(p.numel() for p in network.parameters()) == parameters


def test_parameters_carry_the_names_of_the_official_code() -> None:
    plain = ncl(experts=2).build_model(ModelOptions(width=4), 0).state_dict()
    assert plain["classifier.1.weight"].shape == (4, 16)
    assert "backbone.1.layer3.4.bn2.num_batches_tracked" in plain
    state = contrastive().build_model(ModelOptions(width=4), 0).state_dict()
    assert state["classifier_ce.0.bias"].shape == (4,)
    for part in ("classifier", "classifier_MA"):
        assert state[f"{part}.1.0.weight"].shape == (16, 16)
        assert state[f"{part}.1.2.weight"].shape == (5, 16)
    assert state["MOCO.1.queue"].shape == (5, 16)
    assert state["MOCO.0.queue_ptr"].tolist() == [0]
    torch.testing.assert_close(state["MOCO.0.queue"].norm(dim=0), torch.ones(16))
    assert state["backbone_MA.0.conv1.weight"].shape == (4, 3, 3, 3)


def test_experts_start_apart_and_a_seed_makes_the_same_network() -> None:
    def state(seed: int, **options: Any) -> dict[str, torch.Tensor]:
        return contrastive(**options).build_model(ModelOptions(width=4), seed).state_dict()

    first = state(1, copy_init=False)
    assert same_weights(first, state(1, copy_init=False))
    names = ("backbone.0.conv1.weight", "backbone.1.conv1.weight", "backbone_MA.0.conv1.weight")
    assert not any(torch.equal(first[a], first[b]) for a, b in permutations(names, 2))
    assert not torch.equal(first[names[0]], state(2, copy_init=False)[names[0]])
    copied = state(1)
    assert torch.equal(copied[names[0]], first[names[0]])
    assert torch.equal(copied[names[0]], copied[names[2]])
    assert torch.equal(copied["classifier.1.2.weight"], copied["classifier_MA.1.2.weight"])


def test_large_backbones_start_with_default_convolutions_unless_pretrained() -> None:
    weight = (
        build_experts(ModelOptions(name="resnet10t"), 1, lambda f: nn.Linear(f, 2), 0)
        .backbone[0]
        .layer4[0]
        .conv1.weight
    )
    bound = 1 / (weight[0].numel()) ** 0.5  # Kaiming-uniform with a = √5
    assert 0.95 * bound < float(weight.abs().max()) <= bound


def pretend_processes(patch: pytest.MonkeyPatch, count: int) -> None:
    """As in a run of several, without a process group."""
    patch.setattr(dist, "is_initialized", lambda: True)
    patch.setattr(dist, "get_world_size", lambda: count)


def network_on(device: str, model: ModelOptions, **options: Any) -> nn.Module:
    """What the method builds for a device; it lies on the CPU until the trainer moves it."""
    method = ncl(**options)
    method.objective.context = replace(method.context, device=torch.device(device))
    return method.build_model(model, 0)


def batch_norms(network: nn.Module) -> dict[str, nn.Module]:
    modules = network.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (ModelOptions(width=4), {"experts": 2}),
        (ModelOptions(width=4), {"experts": 2, "contrastive": True, "queue": 16}),
        (ModelOptions("resnet10t"), {"experts": 1, "head": "cosine"}),
    ],
    ids=["plain", "contrastive", "timm"],
)
def test_several_gpus_synchronise_all_batch_norms_under_the_same_names(
    model: ModelOptions, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = network_on("cuda", model, **options)  # without a process group
    pretend_processes(monkeypatch, 2)
    together = network_on("cuda", model, **options)
    found = batch_norms(together)
    assert found.keys() == batch_norms(alone).keys()
    assert all(type(module) is nn.SyncBatchNorm for module in found.values())
    assert any(name.startswith("backbone_MA.1.") for name in found) is ("contrastive" in options)
    assert same_weights(alone.state_dict(), together.state_dict())
    pretend_processes(monkeypatch, 1)
    for network in (alone, network_on("cuda", model, **options)):
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())


def test_several_processes_on_the_cpu_are_told_that_their_batch_norms_stay_apart(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelOptions(width=4)
    network_on("cpu", model)
    assert not caplog.records
    pretend_processes(monkeypatch, 2)
    network = network_on("cpu", model)
    assert "each process normalises by its own part of a batch" in caplog.text
    assert {type(module) for module in batch_norms(network).values()} == {nn.BatchNorm2d}


# ------------------------------------------------------------ steps and global batches


@pytest.mark.parametrize(("copies", "experts"), [(1, 3), (3, 2)])
def test_shares_of_the_parts_add_up_to_the_loss_of_the_whole(copies: int, experts: int) -> None:
    labels, method = [0, 0, 1, 3, 2, 0, 1], ncl(copies=copies, experts=experts)
    images = random_images(len(labels), copies, size=4)
    logits = logits_of(experts, len(labels) * copies, 4).unflatten(1, (copies, -1))
    whole = method.objective.term(
        micro_step(0, {"original": (images, labels)}).of(method), "original", logits.flatten(1, 2)
    )
    parts = 0.0
    for part in range(4):  # the last has one sample and one of padding
        step = micro_step(0, {"original": (images, labels)}, part=part, parts=4)
        parts += float(
            method.objective.term(step.of(method), "original", logits[:, :, step.plan.positions].flatten(1, 2))
        )
    assert parts == pytest.approx(float(whole), rel=1e-5)


def test_copies_are_views_of_one_stream_and_the_first_of_them_counts_in_the_training_accuracy() -> None:
    method = ncl(copies=3, experts=2)
    assert [len(stream.views) for stream in method.objective.streams()] == [3]
    model = method.build_model(ModelOptions(width=4), 0).eval()
    images = random_images(2, views=3)
    output = loss_of(method, model, micro_step(0, {"original": (images, [0, 3])}))
    expected = model(method.context.input_builder.plain(images[0])).mean(dim=0)
    assert torch.allclose(output.logits, expected, atol=1e-5)


@pytest.mark.parametrize("copies", [1, 2])
def test_under_cmo_both_labels_share_the_loss(copies: int) -> None:
    method = ncl(copies=copies, experts=2, mixing="paste", mixup_prob=0.5)
    assert [(s.name, len(s.views)) for s in method.objective.streams()] == [
        ("original", copies),
        ("foreground", copies),
    ]
    model = method.build_model(ModelOptions(width=4), 0).eval()
    background, foreground = random_images(3, copies), random_images(3, copies, seed=1)
    boxes = np.tile(np.array([2, 3, 20, 30], dtype=np.int32), (3, 1))
    streams = {"original": (background, [0, 1, 2]), "foreground": (foreground, [3, 3, 0])}
    found = loss_of(method, model, micro_step(5, streams, MixPlan(True, np.full(3, 0.25), boxes)))
    paste = method.context.input_builder.paste
    pictures = [paste(b, f, torch.from_numpy(boxes)) for b, f in zip(background, foreground, strict=True)]
    logits = model(torch.cat(pictures))
    # Under either label alone, as if nothing were mixed.
    terms = [
        method.objective.term(micro_step(5, {"original": (background, labels)}).of(method), "original", logits)
        for _, labels in streams.values()
    ]
    expected = 0.25 * terms[0] + 0.75 * terms[1]
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_mean_of_raw_logits_is_evaluated_without_the_momentum_encoders() -> None:
    method = contrastive()
    model = method.build_model(ModelOptions(width=4), 0).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = torch.stack([model.classifier_ce[k](model.backbone[k](images)) for k in range(2)]).mean(dim=0)
    model.backbone_MA = nn.ModuleList()  # would fail if it were called
    assert torch.equal(method.objective.eval_logits(model, images), expected)
    assert method.objective.eval_members(model, images).shape == (2, 2, 4)


# -------------------------------------------------------------- contrastive branch


def test_the_second_view_is_the_preset_s() -> None:
    assert PRESETS["cifar-auto"].second == SIM_32
    method = contrastive()
    (stream,) = method.objective.streams()
    assert stream.views == (method.context.view, method.context.view)  # this context has no second one


def contrastive_step(method: NCL, model: nn.Module, part: int = 0, parts: int = 1) -> torch.Tensor:
    labels = [0, 0, 1, 3, 2, 0, 1]
    images = random_images(len(labels), views=2)
    return loss_of(method, model, micro_step(0, {"original": (images, labels)}, part=part, parts=parts)).loss


def test_the_contrastive_loss_adds_the_recognition_of_the_own_key() -> None:
    method = contrastive()
    model = method.build_model(ModelOptions(width=4), 0).eval()
    labels, views = [0, 0, 1, 3, 2, 0, 1], random_images(7, views=2)
    step = micro_step(0, {"original": (views, labels)})
    first, second = (method.context.input_builder.plain(view) for view in views)
    expected = method.objective.term(step.of(method), "original", (model(first), None, None))
    for k in range(2):
        queries = unit(model.classifier[k](model.backbone[k](first)))
        keys = unit(model.classifier_MA[k](model.backbone_MA[k](second)))
        logits = torch.cat([(queries * keys).sum(dim=1, keepdim=True), queries @ model.MOCO[k].queue], dim=1) / 0.2
        expected = expected + nn.functional.cross_entropy(logits, torch.zeros(7, dtype=torch.int64))
    assert float(contrastive_step(method, model).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_gradients_reach_queries_and_not_keys() -> None:
    method = contrastive()
    model = method.build_model(ModelOptions(width=4), 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method.trainable(name))
    contrastive_step(method, model).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (not name.split(".")[0].endswith("_MA")), name


@pytest.mark.parametrize("ema_head", [False, True])
def test_momentum_encoders_follow_the_weights_from_before_the_step(ema_head: bool) -> None:
    method = contrastive(copy_init=False, ema_head=ema_head, momentum=0.9)
    model = method.build_model(ModelOptions(width=4), 0)
    contrastive_step(method, model).backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method.objective.before_optimizer(model)
    after = model.state_dict()
    parameters = {name for name, _ in model.named_parameters()}
    for name in after:
        part = name.split(".")[0]
        if part == "MOCO":
            continue
        expected = before[name]
        if name in parameters and (part == "backbone_MA" or (part == "classifier_MA" and ema_head)):
            expected = 0.9 * before[name] + 0.1 * before[name.replace("_MA", "")]
        torch.testing.assert_close(after[name], expected, msg=name)


def test_keys_do_not_depend_on_the_order_of_the_batch() -> None:
    """Why no key batch is permuted: within one batch norm the order gives nothing away."""
    network = contrastive().build_model(ModelOptions(width=4), 0).double().train()
    assert isinstance(network, ContrastiveExperts)
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    keys = network(images, images)[2]
    torch.testing.assert_close(network(images, images[order])[2], keys[:, order])


def test_the_queue_takes_keys_round_its_end_and_forgets_the_oldest() -> None:
    queue = KeyQueue(2, 5)
    for step in range(4):
        queue.enqueue(torch.full((3, 2), float(step)))
    assert queue.queue[0].tolist() == [3, 3, 2, 2, 3]
    assert int(queue.queue_ptr) == 2


def test_micro_batches_fill_the_queue_with_the_keys_of_the_global_batch_in_its_order() -> None:
    queues = []
    for parts in (1, 4):  # of seven samples the last part has one, and one of padding
        method = contrastive()
        model = method.build_model(ModelOptions(width=4), 0).eval()
        for part in range(parts):
            contrastive_step(method, model, part, parts)
        method.objective.before_optimizer(model)
        assert int(model.MOCO[0].queue_ptr) == 7
        queues.append(model.MOCO[1].queue.clone())
    torch.testing.assert_close(queues[1], queues[0])


def gradient_of_a_rank(rank: int, ranks: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Summed over both, and the state of this one afterwards."""
    method = contrastive()
    model = method.build_model(ModelOptions(width=4), 0).eval()
    loss = contrastive_step(method, model, part=rank, parts=ranks)
    loss.backward()
    method.objective.before_optimizer(model)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    dist.all_reduce(gradient)
    return gradient, model.state_dict()


def test_two_processes_have_the_gradients_and_the_queues_of_one(tmp_path: Path) -> None:
    (summed, first), (_, second) = on_two_processes(gradient_of_a_rank, tmp_path)
    method = contrastive()
    model = method.build_model(ModelOptions(width=4), 0).eval()
    contrastive_step(method, model).backward()
    method.objective.before_optimizer(model)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert same_weights(first, second)
    for name in ("MOCO.0.queue", "MOCO.1.queue", "MOCO.0.queue_ptr"):
        torch.testing.assert_close(first[name], model.state_dict()[name])
    torch.testing.assert_close(summed, gradient, rtol=1e-3, atol=1e-5)


def test_a_stopped_run_continues_with_its_queues_and_momentum_encoders(data: Path, tmp_path: Path) -> None:
    changes = {
        "method.name": "ncl",
        "method.contrastive": "true",
        "method.experts": 2,
        "method.contrast_dim": 4,
        "method.queue": 32,
        "method.hard_classes": 2,
        "data.preset": "cifar-auto",
        "epochs": 1,
    }
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train(run_options(data, straight, **changes)) == FINISHED
    assert [r["step"] for r in records(straight) if r["kind"] == "steps"] == [0, 1, 2]  # 27 images, drop-last
    assert train(run_options(data, stopped, **changes, max_steps=1)) == FINISHED
    assert train(run_options(data, stopped, **changes, resume="auto")) == FINISHED
    newest = [load(max((folder / "checkpoints").glob("epoch*.pt")))["model"] for folder in (straight, stopped)]
    assert int(newest[0]["MOCO.0.queue_ptr"]) == 3 * 8
    assert same_weights(*newest)


# -------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"experts": 0}, "experts"),
        ({"contrastive": True, "copies": 2}, "copies"),
        ({"temperature": 0.0}, "temperature"),
        ({"momentum": 1.5}, "momentum"),
        ({"distillation": -0.6}, "distillation is -0.6, expected a finite number of at least 0"),
        ({"distillation": float("nan")}, "distillation is nan"),
        ({"cosine_scale": 0.0}, "cosine_scale is 0.0, expected a finite number above 0"),
        ({"queue": 0}, "queue is 0, contrast_dim 64; expected at least 1"),
        ({"contrast_dim": 0}, "queue is 1024, contrast_dim 0"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        NCLOptions(**options)


def test_more_hard_classes_than_classes_and_a_queue_below_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="hard_classes is 9, expected 1 to 4"):
        ncl(hard_classes=9)
    with pytest.raises(ValueError, match="queue is 4, smaller than a batch of 7"):
        contrastive(queue=4).objective.check_batch_size(7)
    contrastive(queue=7).objective.check_batch_size(7)
    ncl(queue=4).objective.check_batch_size(7)  # which has no queue


def test_a_run_whose_batch_does_not_fit_the_queue_ends_before_its_network_is_built(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NCL, "build_model", lambda *unused: pytest.fail("built"))
    changes = {"method.name": "ncl", "method.contrastive": True, "method.queue": 4, "method.hard_classes": 2}
    with pytest.raises(ValueError, match="queue is 4, smaller than a batch of 8"):
        train(run_options(data, tmp_path / "run", **changes))
