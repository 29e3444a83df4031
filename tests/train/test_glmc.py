"""GLMC: published vectors, its network and checkpoint names, what gets which gradient, shares of a global batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.mix_rule import MixPlan, cut_box
from pipeline.views.presets import Normalization
from tests.helpers.ranks import on_two_processes
from tests.helpers.steps import CPU, context, loss_of, make_method, micro_step, random_images, unmixed
from tests.helpers.vectors import wave
from train.evaluation.posthoc import tau_normalise
from train.inputs.input_builder import InputBuilder
from train.methods.glmc import GLMC, GLMCOptions
from train.methods.glmc_maxnorm import GLMCMaxNorm, MaxNormOptions, bounded_rows, row_norm_bound, softmax_bce
from train.models.build import ModelOptions
from train.models.glmc import Heads
from train.schedules import Schedule, ScheduleOptions


def glmc(counts: Any = (100, 40, 15, 4), epochs: int = 200, **options: Any) -> GLMC:
    return unmixed(GLMC, GLMCOptions(**options), context(counts, epochs))


def mix_of(lam: float, rows: int, box: Sequence[int] = (4, 6, 20, 30)) -> MixPlan:
    return MixPlan(True, np.full(rows, lam), np.tile(np.array(box, dtype=np.int32), (rows, 1)))


# ------------------------------------------------------------------ published vectors


def test_mixed_images_and_labels_equal_the_official_code() -> None:
    """Vector V5; the images are of one channel there."""
    input_builder = InputBuilder.create(Normalization((0.0,) * 3, (1 / 255,) * 3), CPU)

    def image(function: Any, factors: Any) -> torch.Tensor:
        plane = torch.from_numpy(wave(function, (4, 4), factors)).float()
        return plane[None, :, :, None].expand(1, 4, 4, 3)

    box = cut_box(4, 4, 0.4, 1, 2, "ceil")
    assert box == (0, 0, 3, 4)
    lam, boxes = torch.tensor([0.4]), torch.tensor([box], dtype=torch.int32)
    mixed = input_builder.mixup(image("sin", (0.3, 0.7)), image("cos", (0.4, 0.1)), lam)[0, 0].double()
    pasted = input_builder.paste_reference(image("sin", (0.2, 0.5)), image("cos", (0.6, 0.9)), boxes)[0, 0].double()
    assert mixed[0].tolist() == pytest.approx([0.6, 0.8546896, 0.9822198, 0.9184856], rel=1e-4)
    assert mixed[3].tolist() == pytest.approx([0.5307454, 0.5603287, 0.4002624, 0.09889032], rel=1e-4)
    assert pasted[0].tolist() == pytest.approx([1, 0.62161, -0.2272021, -0.9040721], rel=1e-4)
    assert pasted[3].tolist() == pytest.approx([0.5646425, 0.8912074, 0.9995736, 0.8632094], rel=1e-4)
    method = glmc((500, 100, 20, 5), label_exponent=1.2)
    t, tw = method.targets(mix_of(0.4, 1), np.array([0]), np.array([3]))
    assert t[0] == pytest.approx([0.4, 0.6])
    assert tw[0] == pytest.approx([0.005217188, 1.965747], rel=1e-4)


def heads_of_v6() -> tuple[Heads, Heads]:
    def tensor(*arguments: Any) -> torch.Tensor:
        return torch.from_numpy(wave(*arguments))

    global_mix = Heads(
        tensor("sin", (3, 4), (0.7, 1.3), 1, 2),
        tensor("cos", (3, 4), (0.4, 0.9), 0.2, 2),
        tensor("sin", (3, 5), (0.3, 0.8), 0.5),
        tensor("cos", (3, 5), (0.6, 0.2), 1.1),
    )
    local_mix = Heads(
        tensor("sin", (3, 4), (0.2, 1.1), 2, 2),
        tensor("cos", (3, 4), (0.9, 0.5), 1.2, 2),
        tensor("sin", (3, 5), (0.7, 0.4), 0.9),
        tensor("cos", (3, 5), (0.1, 0.5), 0.3),
    )
    return global_mix, local_mix


ORIGINAL_V6, WEIGHTED_V6 = np.array([0, 1, 0]), np.array([2, 3, 1])


def loss_of_v6(method: GLMC, epoch: int, mixes: tuple[Heads, Heads] | None = None) -> float:
    labels = torch.from_numpy(np.stack([ORIGINAL_V6, WEIGHTED_V6], axis=1))
    targets = (torch.from_numpy(t) for t in method.targets(mix_of(0.3, 3), ORIGINAL_V6, WEIGHTED_V6))
    alpha = torch.tensor(method.alpha(epoch), dtype=torch.float64)
    return method.per_sample(alpha, *(mixes or heads_of_v6()), labels, *targets).mean().item()


def test_loss_equals_the_official_code() -> None:
    """Vector V6: the whole loss, and its parts at the epochs and weights where they stand alone."""
    assert loss_of_v6(glmc(label_exponent=1.2, contrast_weight=4), 50) == pytest.approx(1.568832, rel=1e-4)
    plain = loss_of_v6(glmc(label_exponent=1.2, contrast_weight=0), 0)
    assert plain == pytest.approx(2.491802 + 2.421688, rel=1e-4)
    consistency = loss_of_v6(glmc(label_exponent=1.2, contrast_weight=1), 0) - plain
    assert consistency == pytest.approx(-0.8387552, rel=1e-4)
    method = glmc(label_exponent=1.2, contrast_weight=0)
    assert method.alpha(50) == 0.9375
    rebalanced = (loss_of_v6(method, 50) - 0.9375 * plain) / (1 - 0.9375)
    assert rebalanced == pytest.approx(3.407131 + 1.672179, rel=1e-4)


@pytest.mark.parametrize(("mix", "plain", "rebalanced"), [(0, 2.491802, 3.407131), (1, 2.421688, 1.672179)])
def test_cross_entropies_equal_the_official_code(mix: int, plain: float, rebalanced: float) -> None:
    """Vector V6, one mix and one classifier at a time: alpha is 1 at the start and 0 at the end."""
    alone = (heads_of_v6()[mix],) * 2
    method = glmc(label_exponent=1.2, contrast_weight=0)
    assert (method.alpha(0), method.alpha(200)) == (1, 0)
    assert loss_of_v6(method, 0, alone) / 2 == pytest.approx(plain, rel=1e-6)
    assert loss_of_v6(method, 200, alone) / 2 == pytest.approx(rebalanced, rel=1e-6)


def test_the_loss_keeps_the_precision_of_the_network() -> None:
    """Float64 gives float64, bfloat16 float32."""
    method, labels = glmc(label_exponent=1.2, contrast_weight=4), np.stack([ORIGINAL_V6, WEIGHTED_V6], axis=1)
    glob, loc = heads_of_v6()
    shares = np.array([[0.3, 0.7]]) * np.ones((3, 1))
    weights = np.array([100.0, 40, 15, 4]) ** -1.2
    targets = torch.from_numpy(shares), torch.from_numpy(shares * (4 * weights / weights.sum())[labels])
    soft, rebalanced = (torch.zeros(3, 4).double().scatter_add(1, torch.from_numpy(labels), t) for t in targets)
    expected = -4 * (F.cosine_similarity(glob.prediction, loc.projection))
    expected -= 4 * F.cosine_similarity(loc.prediction, glob.projection)
    for mix in (glob, loc):
        expected -= 0.9375 * (soft * mix.plain.log_softmax(1)).sum(1)
        expected -= 0.0625 * (rebalanced * mix.rebalanced.log_softmax(1)).sum(1)
    alpha = torch.tensor(0.9375, dtype=torch.float64)
    found = method.per_sample(alpha, glob, loc, torch.from_numpy(labels), *targets)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    half = (Heads(*(values.bfloat16() for values in mix)) for mix in (glob, loc))
    targets = (t.float() for t in targets)
    assert method.per_sample(alpha.float(), *half, torch.from_numpy(labels), *targets).dtype == torch.float32


def test_balanced_softmax_adds_log_counts_and_keeps_the_labels() -> None:
    counts = np.array([100, 40, 15, 4])
    method = glmc(counts, rebalance="bs", contrast_weight=0)
    plain = loss_of_v6(method, 0)
    expected = 0.0
    for mix in heads_of_v6():
        soft = np.zeros((3, 4))
        soft[np.arange(3), ORIGINAL_V6] += 0.3
        soft[np.arange(3), WEIGHTED_V6] += 0.7
        adjusted = mix.rebalanced.numpy() + np.log(counts)
        log_softmax = adjusted - np.log(np.exp(adjusted).sum(axis=1, keepdims=True))
        expected -= (soft * log_softmax).sum() / 3
    assert (loss_of_v6(method, 50) - 0.9375 * plain) / 0.0625 == pytest.approx(expected, rel=1e-4)


def test_rates_equal_the_official_code() -> None:
    """Vector V7."""
    cifar = Schedule(ScheduleOptions(kind="cosine", warmup_epochs=0), 0.01, 200)
    for epoch, rate in {0: 0.01, 50: 0.008535534, 100: 0.005, 199: 6.168376e-07}.items():
        assert cifar.lr(epoch) == pytest.approx(rate, rel=1e-4)
    late = ScheduleOptions(kind="cosine", warmup_epochs=10, warmup_overshoots=True, late=True)
    imagenet = Schedule(late, 0.1, 135)
    published = {0: 0.1, 1: 0.01, 2: 0.02, 10: 0.1, 11: 0.11, 12: 0.09993785, 40: 0.08665259, 90: 0.02943564}
    for epoch, rate in {**published, 134: 6.215394e-05}.items():
        assert imagenet.lr(epoch) == pytest.approx(rate, rel=1e-4)


ROWS_V8 = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [0.6, 0.8]], dtype=torch.float64)


def test_row_norms_are_bounded_as_by_the_official_code() -> None:
    """Vector V8."""
    weight = ROWS_V8.clone()
    bound = row_norm_bound(weight, 0.1)
    assert bound.item() == pytest.approx(1.4, rel=1e-12)
    weight[1] = torch.tensor([1.5, 0.0])
    expected = [[0.84, 1.12], [1.4, 0], [0, 1.4], [0.6, 0.8]]
    np.testing.assert_allclose(bounded_rows(weight, bound), expected, rtol=1e-12)


def test_the_tau_normaliser_is_that_of_the_official_code() -> None:
    """Vector V8, the companion of the projection; exponent 2."""
    model = nn.ModuleDict({"fc": nn.Linear(2, 4)}).double()
    model.default_cfg = {"classifier": "fc"}
    model["fc"].weight.data = ROWS_V8.clone()
    tau_normalise(model, 2)
    expected = [[0.12, 0.16], [1, 0], [0, 0.5], [0.6, 0.8]]
    np.testing.assert_allclose(model["fc"].weight.detach(), expected, rtol=1e-12)


# ------------------------------------------------------------------ network


@pytest.mark.parametrize(
    ("options", "classes", "parameters"),
    [
        (ModelOptions("resnet32", width=64), 100, 7_484_424),
        (ModelOptions("resnext50_32x4d"), 1000, 27_668_240),
        (ModelOptions("resnet18-stem32"), 100, 11.47e6),
        (ModelOptions("resnet34-stem32"), 100, 21.58e6),
        (ModelOptions("resnet50-stem32"), 100, 24.50e6),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_networks_have_the_published_size(options: ModelOptions, classes: int, parameters: float) -> None:
    method = glmc(np.ones(classes, dtype=int))
    with torch.device("meta"):
        model = method.build_model(options, seed=0)
    found = sum(p.numel() for p in model.parameters())
    assert found == pytest.approx(parameters, abs=0 if isinstance(parameters, int) else 0.005e6)


def test_state_dicts_have_the_published_names_and_go_back() -> None:
    """A plain network's names beside the heads; 194 tensors on ResNet-32."""
    method = glmc()
    model = method.build_model(ModelOptions("resnet32", width=4), seed=0)
    names = set(model.state_dict())
    heads = {f"{h}.{p}" for h in ("fc", "fc_cb", "projection_head.0", "contrast_head.0") for p in ("weight", "bias")}
    assert len(names) == 194
    assert heads | {"conv1.weight", "bn1.running_var", "layer3.4.conv2.weight"} < names
    other = method.build_model(ModelOptions("resnet32", width=4), seed=1)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(RuntimeError, match=r"Missing key.*encoder\.conv1\.weight"):
        other.load_state_dict({name: value for name, value in model.state_dict().items() if name != "conv1.weight"})


def test_stem32_networks_have_the_published_names() -> None:
    method = glmc()
    with torch.device("meta"):
        names = set(method.build_model(ModelOptions("resnet50-stem32"), seed=0).state_dict())
        small = set(method.build_model(ModelOptions("resnet18-stem32"), seed=0).state_dict())
    assert {"conv1.0.weight", "conv1.1.running_mean", "conv2_x.0.residual_function.7.weight"} < names
    assert {"conv2_x.0.shortcut.0.weight", "conv5_x.2.residual_function.6.weight", "fc_cb.bias"} < names
    assert "conv2_x.0.shortcut.0.weight" not in small  # neither stride nor width changes there
    assert {"conv3_x.0.shortcut.1.weight", "conv3_x.0.residual_function.4.bias"} < small


def test_stem32_networks_have_the_strides_of_the_paper() -> None:
    model = glmc().build_model(ModelOptions("resnet18-stem32"), seed=0)
    sizes = []
    for stage in range(2, 6):
        module = model.encoder.get_submodule(f"conv{stage}_x")
        module.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    assert model.features(torch.zeros(2, 3, 32, 32)).shape == (2, 512)
    assert sizes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_weights_are_a_function_of_the_seed_and_heads_differ() -> None:
    method, options = glmc(), ModelOptions("resnet32", width=4)
    first, again, other = (method.build_model(options, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.fc_cb.weight, other.fc_cb.weight)
    assert not torch.equal(first.fc.weight, first.fc_cb.weight)


# ------------------------------------------------------------------ a step


def streams(batch: int = 6, classes: int = 4, views: int = 2) -> dict[str, Any]:
    labels = (np.arange(batch) % classes).tolist()
    return {
        "original": (random_images(batch, views, seed=1), labels),
        "foreground": (random_images(batch, views, seed=2), labels[::-1]),
    }


def small_model(method: Any) -> nn.Module:
    return method.build_model(ModelOptions("resnet32", width=4), seed=0)


def test_a_step_is_the_equations_on_two_separate_passes() -> None:
    method = glmc(label_exponent=1.2, contrast_weight=4)
    model, reference = small_model(method), small_model(method)
    data = streams()
    mix = mix_of(0.3, 6)
    output = loss_of(method, model, micro_step(50, data, mix))

    plain = method.context.input_builder.plain
    (o1, o2), (w1, w2) = ([plain(view) for view in data[name][0]] for name in ("original", "foreground"))
    local = o2.clone()
    local[:, :, 4:20, 6:30] = w2[:, :, 4:20, 6:30]
    glob, loc = reference.heads(0.3 * o1 + 0.7 * w1), reference.heads(local)
    yo, yw = (F.one_hot(torch.tensor(data[name][1]), 4).float() for name in ("original", "foreground"))
    weights = np.array([100.0, 40, 15, 4]) ** -1.2
    weights = torch.from_numpy(4 * weights / weights.sum()).float()
    t, tw = 0.3 * yo + 0.7 * yw, 0.3 * weights * yo + 0.7 * weights * yw

    def ce(logits: torch.Tensor, target: Any) -> torch.Tensor:
        return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()

    def distance(p: Any, z: Any) -> torch.Tensor:
        return -F.cosine_similarity(p, z.detach()).mean()

    balanced, rebalanced = ce(glob.plain, t) + ce(loc.plain, t), ce(glob.rebalanced, tw) + ce(loc.rebalanced, tw)
    consistency = distance(glob.prediction, loc.projection) + distance(loc.prediction, glob.projection)
    expected = 0.9375 * balanced + 0.0625 * rebalanced + 4 * consistency
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    expected.backward()
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name, atol=1e-5, rtol=1e-4)
    assert int(model.encoder.bn1.num_batches_tracked) == 2


def test_each_classifier_learns_from_its_own_term_only() -> None:
    method = glmc(contrast_weight=0)
    model = small_model(method)
    loss_of(method, model, micro_step(0, streams(), mix_of(0.3, 6))).loss.backward()
    assert not model.fc_cb.weight.grad.any()  # alpha is 1 in epoch 0
    assert model.fc.weight.grad.any()


def test_shares_of_parts_add_up_to_the_loss_of_the_global_batch() -> None:
    method = glmc(contrast_weight=4)
    model = small_model(method).eval()  # batch statistics would differ between the parts, and are meant to
    data, mix = streams(batch=7), mix_of(0.3, 7)
    whole = loss_of(method, model, micro_step(50, data, mix)).loss
    parts = [loss_of(method, model, micro_step(50, data, mix, part, 3)).loss for part in range(3)]
    torch.testing.assert_close(sum(parts), whole)


def gradients(rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
    """Of one step, through the distributed wrapper where there are several processes."""
    method = glmc(contrast_weight=4)
    network = small_model(method).double().eval()
    model = network if world_size == 1 else DistributedDataParallel(network)
    model.register_forward_pre_hook(lambda module, images: tuple(view.double() for view in images))
    step = micro_step(50, streams(batch=7), mix_of(0.3, 7), rank, world_size)
    (loss_of(method, model, step).loss * world_size).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """Two passes in one call of the distributed wrapper."""
    one = gradients()
    for two in on_two_processes(gradients, tmp_path):
        for name, expected in one.items():
            # Targets and coefficients are float32.
            torch.testing.assert_close(two[name], expected, msg=name, rtol=1e-4, atol=1e-6)


def test_padding_rows_do_not_count() -> None:
    method = glmc()
    model = small_model(method).eval()
    data, mix = streams(batch=3), mix_of(0.3, 3)
    whole = loss_of(method, model, micro_step(50, data, mix)).loss
    parts = [loss_of(method, model, micro_step(50, data, mix, part, 2)).loss for part in range(2)]  # 1 and 2 rows
    torch.testing.assert_close(sum(parts), whole)


def test_a_step_without_a_mix_needs_no_weighted_stream() -> None:
    """As under CMO's rule: half of the steps do not mix."""
    method = glmc(mixup_prob=0.5, contrast_weight=0)
    model = small_model(method).eval()
    data = streams()
    output = loss_of(method, model, micro_step(0, {"original": data["original"]}, MixPlan.none(6)))
    images, labels = data["original"]
    expected = sum(
        F.cross_entropy(model.fc(model.features(method.context.input_builder.plain(view))), torch.tensor(labels))
        for view in images
    )
    torch.testing.assert_close(output.loss, expected)


def test_evaluation_uses_the_rebalanced_classifier() -> None:
    method = glmc()
    model = small_model(method).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(method.eval_logits(model, images), model.fc_cb(model.features(images)))


def test_defaults_are_sane_and_the_mix_rule_carries_the_published_oddity() -> None:
    assert glmc().mix_rule().correct_lambda
    rule = glmc(correct_lambda=False).mix_rule()
    assert (rule.probability, rule.rounding, rule.correct_lambda) == (1.0, "ceil", False)
    assert rule.active(0, 200) and rule.active(199, 200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rebalance": "bs", "label_exponent": 1.2}, "label_exponent is 1.2.*rebalance to reweight.*to 1.0"),
        ({"label_exponent": -0.1}, "label_exponent is -0.1, expected a finite number of at least 0"),
        ({"label_exponent": float("inf")}, "label_exponent is inf"),
        ({"weighted_alpha": -1.0}, "weighted_alpha is -1.0"),
        ({"contrast_weight": -4.0}, "contrast_weight is -4.0"),
        ({"contrast_weight": float("nan")}, "contrast_weight is nan"),
        ({"mixup_prob": 1.5}, r"probability must be in \[0, 1\], found 1.5"),
        ({"beta": 0.0}, "beta must be above 0, found 0.0"),
        ({"plain_first": -1}, "plain_first and plain_last must be at least 0, found -1, 0"),
        ({"plain_last": -1}, "plain_first and plain_last must be at least 0, found 0, -1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GLMCOptions(**options)


# ------------------------------------------------------------------ the MaxNorm stage


def max_norm() -> GLMCMaxNorm:
    return unmixed(GLMCMaxNorm, MaxNormOptions(), context((100, 40, 15, 4), 10))


FIRST_STAGE = ModelOptions("resnet32", width=4, init_from=Path("first.pt"))


def test_the_second_stage_needs_a_first() -> None:
    with pytest.raises(ValueError, match="second stage"):
        make_method("glmc_maxnorm", context((100, 40, 15, 4))).build_model(ModelOptions("resnet32", width=4), seed=0)


def test_only_the_rebalanced_classifier_trains_and_the_encoder_stays_as_it_is() -> None:
    method = make_method("glmc_maxnorm", context((100, 40, 15, 4)))
    model = method.build_model(FIRST_STAGE, seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method.trainable(name))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"fc_cb.weight", "fc_cb.bias"}
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    output = loss_of(method, model, micro_step(0, {"original": (random_images(6), [0, 1, 2, 3, 0, 1])}))
    output.loss.backward()
    assert model.fc_cb.weight.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # no batch statistics
    assert set(before) == set(small_model(glmc()).state_dict())  # a GLMC checkpoint fits


def test_loss_of_the_second_stage_is_the_weighted_mean_over_samples_and_classes() -> None:
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 3])
    probabilities = logits.double().softmax(dim=1).numpy()
    onehot = np.eye(4)[labels]
    bce = -(onehot * np.log(probabilities) + (1 - onehot) * np.log(1 - probabilities)).mean(axis=1)
    np.testing.assert_allclose(softmax_bce(logits, labels), bce, rtol=1e-5)

    method = max_norm()
    data = {"original": (random_images(5), labels.tolist())}
    model = method.build_model(FIRST_STAGE, seed=0)
    whole = loss_of(method, model, micro_step(0, data))
    effective = (1 - 0.9999) / (1 - 0.9999 ** np.array([100, 40, 15, 4]))
    weights = (4 * effective / effective.sum())[labels]
    expected = (weights * softmax_bce(whole.logits, labels).detach().numpy()).mean()
    assert whole.loss.item() == pytest.approx(expected, rel=1e-5)
    parts = [loss_of(method, model, micro_step(0, data, None, part, 2)).loss.item() for part in range(2)]
    assert sum(parts) == pytest.approx(expected, rel=1e-5)


def test_the_bound_is_that_of_the_first_stage_and_survives_a_restart() -> None:
    method = max_norm()
    model = method.build_model(FIRST_STAGE, seed=0)
    with torch.no_grad():
        model.fc_cb.weight.copy_(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)))
    norms = model.fc_cb.weight.norm(dim=1)
    bias = model.fc_cb.bias.clone()
    method.before_optimizer(model)
    with torch.no_grad():
        model.fc_cb.weight.mul_(3)
    resumed = max_norm()
    resumed.load_state_dict(method.state_dict())
    resumed.before_optimizer(model)
    resumed.project(model)
    bound = norms.min() + 0.1 * (norms.max() - norms.min())
    torch.testing.assert_close(model.fc_cb.weight.norm(dim=1), torch.minimum(3 * norms, bound))
    assert torch.equal(model.fc_cb.bias, bias)
