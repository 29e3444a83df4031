"""MetaSAug: published vectors in float64, the method itself in float32 on one and two processes, and its phases."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from shards.class_counts import effective_number_weights
from tests.helpers.ranks import on_two_processes
from tests.helpers.runs import options
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import PlannedStep, context, loss_of, make_method, micro_step, random_images, unmixed
from tests.helpers.vectors import wave
from train.losses.class_statistics import ClassStatistics
from train.losses.functions import ldam_margins
from train.methods.base import StepOutput
from train.methods.metasaug import AugmentedLoss, MetaSAug, MetaSAugOptions, corrected_covariances
from train.methods.metasaug_large import MetaSAugLarge, MetaSAugLargeOptions
from train.models.build import ModelOptions

COUNTS = (500, 100, 20, 5)
CPU = torch.device("cpu")
CIFAR_SCHEDULE = {"milestones": (159, 179), "factors": (0.01, 0.0001), "warmup_epochs": 0}


def tensor(*arguments: Any) -> Tensor:
    return torch.from_numpy(wave(*arguments))


def products(factor: Tensor) -> Tensor:
    return factor @ factor.transpose(-1, -2)


# ------------------------------------------------------------------ class statistics


BATCHES = (
    (tensor("sin", (4, 2), (0.9, 1.7), 0.3), torch.tensor([0, 1, 0, 0])),
    (tensor("cos", (3, 2), (0.5, 1.1), 0.8), torch.tensor([1, 1, 0])),
)


def update(statistics: ClassStatistics, features: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
    present = labels.unique() if weights is None else labels[weights > 0].unique()
    statistics.update(features, labels, torch.ones(len(labels)) if weights is None else weights, present)


def test_statistics_equal_the_official_code() -> None:
    """Vector V4."""
    statistics = ClassStatistics(3, 2, False, CPU, torch.float64)
    update(statistics, *BATCHES[0])
    first = [[0.09639149, -0.03206016], [-0.03206016, 0.678848]]
    np.testing.assert_allclose(statistics.covariances[0], first, rtol=1e-4)
    assert not statistics.covariances[1:].any()
    np.testing.assert_allclose(statistics.means[0], [0.4332832, -0.2341612], rtol=1e-4)
    update(statistics, *BATCHES[1])
    second = [[[0.1540888, 0.06720054], [0.06720054, 0.6109241]], [[0.0756905, 0.106571], [0.106571, 0.160196]]]
    np.testing.assert_allclose(statistics.covariances[:2], second, rtol=1e-4)
    assert not statistics.covariances[2].any()
    np.testing.assert_allclose(statistics.means[:2], [[0.2681619, -0.4183605], [0.6320815, -0.2738113]], rtol=1e-4)
    assert statistics.counts.tolist() == [4, 3, 0]


def test_diagonal_statistics_are_the_diagonals_of_the_full_ones() -> None:
    """Vector V4, after either batch."""
    full, diagonal = (ClassStatistics(3, 2, kind, CPU, torch.float64) for kind in (False, True))
    published = ([[0.09639149, 0.678848], [0, 0]], [[0.1540888, 0.6109241], [0.0756905, 0.160196]])
    for batch, expected in zip(BATCHES, published, strict=True):
        update(full, *batch)
        update(diagonal, *batch)
        np.testing.assert_allclose(diagonal.covariances, full.covariances.diagonal(dim1=1, dim2=2), rtol=1e-12)
        np.testing.assert_allclose(diagonal.covariances[:2], expected, rtol=1e-4)
        np.testing.assert_allclose(diagonal.means, full.means, rtol=1e-12)


@pytest.mark.parametrize("diagonal", [False, True])
def test_statistics_are_those_of_all_samples_at_once(diagonal: bool) -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(3, 2, (40, 5)), rng.integers(0, 4, 40)
    labels[labels == 2] = 0  # a class that never comes
    statistics = ClassStatistics(4, 5, diagonal, CPU)
    for rows in np.array_split(np.arange(40), 7):
        update(statistics, torch.from_numpy(features[rows]).float(), torch.from_numpy(labels[rows]))
    for c in (0, 1, 3):
        expected = np.cov(features[labels == c].T, bias=True)
        expected = np.diag(expected) if diagonal else expected
        np.testing.assert_allclose(statistics.covariances[c], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(statistics.means[c], features[labels == c].mean(axis=0), rtol=1e-5)
    assert statistics.counts.tolist() == np.bincount(labels, minlength=4).tolist()
    assert not statistics.covariances[2].any()


def test_padding_rows_are_no_samples() -> None:
    features, labels = BATCHES[0]
    plain, padded = (ClassStatistics(3, 2, False, CPU, torch.float64) for _ in range(2))
    update(plain, features, labels)
    more = torch.cat([features, features[1:2] * 9])
    padded.update(more, torch.cat([labels, labels[1:2]]), torch.tensor([1.0, 1, 1, 1, 0]), labels.unique())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(padded.state_dict()[name], value)


# ------------------------------------------------------------------ augmented logits


def test_augmented_logits_equal_the_official_code() -> None:
    """Vector V5, full with margins and diagonal without."""
    weight, bias = tensor("sin", (4, 3), (0.5, 0.9), 0.2), tensor("cos", (4,), (0.4,), 0.1)
    logits = F.linear(tensor("cos", (2, 3), (0.8, 0.3), 0.6), weight, bias)
    labels, present = torch.tensor([3, 0]), torch.tensor([0, 3])
    class_weights = torch.from_numpy(effective_number_weights(COUNTS, 0.9999))[labels]
    full = AugmentedLoss(labels, class_weights / class_weights.sum(), present, 0.6, ldam_margins(COUNTS).double())
    covariances = products(tensor("sin", (4, 3, 3), (0.7, 0.4, 1.1), 0.3))[present]
    expected = [[2.588219, 2.820804, 2.241905, 0.7792869], [0.3774291, 0.6717633, 0.7744418, 1.110425]]
    np.testing.assert_allclose(full.augmented(logits, weight, covariances), expected, rtol=1e-4)
    assert full(logits, weight, covariances).item() == pytest.approx(2.939004, rel=1e-4)
    diagonal = replace(full, margins=None)
    variances = (tensor("sin", (4, 3), (0.7, 0.4), 0.3) ** 2)[present]
    expected = [[2.134895, 2.272818, 1.983375, 1.279287], [0.535543, 0.63892, 0.7648735, 0.9279911]]
    np.testing.assert_allclose(diagonal.augmented(logits, weight, variances), expected, rtol=1e-4)
    assert diagonal(logits, weight, variances).item() == pytest.approx(2.083664, rel=1e-4)


def test_diagonal_and_full_agree_on_a_diagonal_covariance() -> None:
    rng = torch.Generator().manual_seed(0)
    weight, logits = torch.randn(5, 3, generator=rng), torch.randn(6, 5, generator=rng)
    labels = torch.tensor([4, 1, 1, 3, 4, 0])
    variances = torch.rand(4, 3, generator=rng)
    loss = AugmentedLoss(labels, torch.full((6,), 1 / 6), labels.unique(), 0.7)
    torch.testing.assert_close(
        loss.augmented(logits, weight, variances), loss.augmented(logits, weight, torch.diag_embed(variances))
    )


# ------------------------------------------------------------------ the meta step


class Tanh(nn.Module):
    """The network of vector V6: f = tanh(W1 x + b1), z = W2 f + b2."""

    classifier_name = "classifier"

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.classifier = nn.Linear(3, 2), nn.Linear(2, 4)
        values = (
            tensor("sin", (2, 3), (0.9, 0.5), 0.1),
            tensor("sin", (2,), (0.3,), 0.2),
            tensor("sin", (4, 2), (0.5, 0.9), 0.2),
            tensor("cos", (4,), (0.4,), 0.1),
        )
        for parameter, value in zip(self.parameters(), values, strict=True):
            parameter.data = value
        self.seen: list[tuple[torch.dtype, bool]] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(self.hidden(x))
        logits = self.classifier(features)
        self.seen.append((logits.dtype, torch.is_autocast_enabled("cpu")))
        return features, logits


X, Y = tensor("sin", (4, 3), (0.7, 1.1), 0.3), torch.tensor([3, 0, 1, 3])
META_X, META_Y = tensor("cos", (4, 3), (0.4, 0.9), 0.5), torch.tensor([0, 1, 2, 3])
COVARIANCES = products(tensor("sin", (4, 2, 2), (0.7, 0.4, 1.1), 0.3))
MEANS = tensor("sin", (4, 2), (0.2, 0.6), 0.4)
CHANGES_B = {
    0: [[2.725021e-06, 1.450752e-06], [1.450752e-06, -3.09744e-07]],
    1: [[3.981556e-06, 2.727273e-06], [2.727273e-06, -6.001149e-07]],
    3: [[0.0003804404, 0.0001503514], [0.0001503514, -0.0003454122]],
}


def v6(strength: float) -> tuple[Tanh, AugmentedLoss, Callable, Callable]:
    network = Tanh()
    weights = torch.from_numpy(effective_number_weights(COUNTS, 0.9999))[Y]
    margins = 0.5 * (5 / torch.tensor(COUNTS, dtype=torch.float64)) ** 0.25
    loss = AugmentedLoss(Y, weights / weights.sum(), torch.arange(4), strength, margins)

    def inner(parameters: Any, covariances: torch.Tensor) -> torch.Tensor:
        _, logits = functional_call(network, dict(parameters), (X,))
        return loss(logits, parameters["classifier.weight"], covariances)

    def meta(parameters: Any) -> torch.Tensor:
        return F.cross_entropy(functional_call(network, dict(parameters), (META_X,))[1], META_Y)

    return network, loss, inner, meta


SUMS = [4.144995, 4.869129, 3.517073, 2.362663]  # of the entries of each covariance after the update
CHANGES_A = {3: [[7.07251e-06, 2.417998e-06], [2.417998e-06, -6.000905e-06]]}


@pytest.mark.parametrize(
    ("epoch", "strength", "virtual_lr", "inner_loss", "changes", "outer_loss"),
    [
        (170, 0.6375, 0.001, 2.408290334, CHANGES_A, 2.408290375),
        (100, 0.375, 0.1, 2.396313927, CHANGES_B, 2.396313297),
    ],
    ids=["a", "b"],
)
def test_meta_step_equals_the_official_code(
    epoch: int, strength: float, virtual_lr: float, inner_loss: float, changes: Any, outer_loss: float
) -> None:
    """Vector V6, in float64."""
    method = unmixed(MetaSAug, MetaSAugOptions(strength=0.75, late_virtual_lr=True), context(COUNTS, **CIFAR_SCHEDULE))
    assert (method.strength(epoch), method.virtual_lr(epoch)) == pytest.approx((strength, virtual_lr))
    network, loss, inner, meta = v6(strength)
    parameters = dict(network.named_parameters())
    assert inner(parameters, COVARIANCES).item() == pytest.approx(inner_loss, abs=1e-9)
    corrected = corrected_covariances(COVARIANCES, parameters, inner, meta, virtual_lr, 0.1, list)
    for c, change in changes.items():
        np.testing.assert_allclose(corrected[c] - COVARIANCES[c], change, rtol=1e-4)
    assert not (corrected - COVARIANCES)[2].any()  # no sample of class 2
    features, logits = network(X)
    outer = loss(logits, network.classifier.weight, corrected)
    assert outer.item() == pytest.approx(outer_loss, abs=1e-9)
    if epoch == 170:
        return
    statistics = ClassStatistics(4, 2, False, CPU, torch.float64)
    statistics.load_state_dict({"counts": torch.full((4,), 7.0), "means": MEANS, "covariances": COVARIANCES})
    update(statistics, features.detach(), Y)
    np.testing.assert_allclose(statistics.covariances.sum(dim=(1, 2)), SUMS, rtol=1e-6)
    sgd = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    outer.backward()
    sgd.step()
    rows = [[0.2151158, 0.8809074], [0.6319797, 0.9722271], [0.9167163, 0.8348333], [1.002516, 0.5812133]]
    np.testing.assert_allclose(network.classifier.weight.detach(), rows, rtol=1e-4)
    bias = [0.9295824, 0.8220707, 0.5749178, 0.4348622]
    np.testing.assert_allclose(network.classifier.bias.detach(), bias, rtol=1e-4)
    np.testing.assert_allclose(network.hidden.weight[0].detach(), [0.1180427, 0.5638333, 0.8722185], rtol=1e-4)


def test_meta_gradient_equals_differentiating_through_the_virtual_step() -> None:
    """The plain form: θ'(Σ) keeps its graph, and ∇_Σ L_meta(θ'(Σ)) is one call."""
    network, _, inner, meta = v6(0.375)
    parameters = dict(network.named_parameters())
    sigma = COVARIANCES.clone().requires_grad_()
    gradients = torch.autograd.grad(inner(parameters, sigma), list(parameters.values()), create_graph=True)
    virtual = {name: p - 0.1 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    (slope,) = torch.autograd.grad(meta(virtual), sigma)
    corrected = corrected_covariances(COVARIANCES, parameters, inner, meta, 0.1, 0.1, list)
    torch.testing.assert_close(corrected, COVARIANCES - 0.1 * slope, rtol=0, atol=1e-16)
    assert slope.abs().max() > 1e-3


def test_large_step_equals_the_official_code() -> None:
    """Vector V7, in float64: diagonal, the classifier alone."""
    classifier = nn.Linear(3, 4).double()
    classifier.weight.data = tensor("sin", (4, 3), (0.5, 0.9), 0.2)
    classifier.bias.data = tensor("cos", (4,), (0.4,), 0.1)
    variances = tensor("sin", (4, 3), (0.7, 0.4), 0.3) ** 2
    weights = torch.from_numpy(effective_number_weights(COUNTS, 0.9999))[Y]
    loss = AugmentedLoss(Y, weights / weights.sum(), torch.arange(4), 0.125)

    def inner(parameters: Any, covariances: torch.Tensor) -> torch.Tensor:
        return loss(F.linear(X, **parameters), parameters["weight"], covariances)

    def meta(parameters: Any) -> torch.Tensor:
        return F.cross_entropy(F.linear(META_X, **parameters), META_Y)

    parameters = dict(classifier.named_parameters())
    assert inner(parameters, variances).item() == pytest.approx(1.758836, rel=1e-6)
    corrected = corrected_covariances(variances, parameters, inner, meta, 0.3, 0.1, list)
    expected = [
        [2.581826e-06, -5.446562e-08, 2.009663e-06],
        [4.483802e-06, 4.292908e-07, 1.120302e-05],
        [0, 0, 0],
        [0.0003187675, -0.0001024224, 0.0003066981],
    ]
    np.testing.assert_allclose(corrected - variances, expected, rtol=1e-4)
    outer = loss(classifier(X), classifier.weight, corrected)
    assert outer.item() == pytest.approx(1.758852182, abs=1e-9)
    sgd = torch.optim.SGD(classifier.parameters(), 0.3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    outer.backward()
    sgd.step()
    rows = [[0.1511581, 0.7999047, 0.8806084], [1.165626, 0.7098634, -0.3600074]]
    np.testing.assert_allclose(classifier.weight[[0, 3]].detach(), rows, rtol=1e-4)
    statistics = ClassStatistics(4, 3, True, CPU, torch.float64)
    statistics.load_state_dict(
        {"counts": torch.full((4,), 9.0), "means": tensor("sin", (4, 3), (0.2, 0.6), 0.4), "covariances": variances}
    )
    update(statistics, X, Y)
    rows = [[0.09699062, 0.3735573, 0.8155583], [0.3987086, 0.2422147, 0.268597]]
    np.testing.assert_allclose(statistics.covariances[[0, 3]], rows, rtol=1e-4)


# ------------------------------------------------------------------ the method, on one and two processes


class Identity:
    """Stands for the input_builder: the vectors' inputs are floating point already."""

    def plain(self, images: Tensor) -> Tensor:
        return images


def method_of_v6(**options: Any) -> MetaSAug:
    base = replace(context(COUNTS, **CIFAR_SCHEDULE), input_builder=Identity())
    method = unmixed(MetaSAug, MetaSAugOptions(strength=0.75, meta_from_epoch=0, **options), base)
    method.statistics = ClassStatistics(4, 2, False, CPU)
    method.statistics.load_state_dict({"counts": torch.full((4,), 7.0), "means": MEANS, "covariances": COVARIANCES})
    return method


def step_of_v6(rank: int = 0, world_size: int = 1) -> PlannedStep:
    data = {"original": ((X.float(),), Y.tolist()), "meta": ((META_X.float(),), META_Y.tolist())}
    return micro_step(100, data, None, rank, world_size)


def run_v6(rank: int, world_size: int, autocast: bool, compiled: bool = False, **options: Any) -> dict[str, object]:
    """One step of the method in float32, through the distributed wrapper where there are several processes."""
    method, network = method_of_v6(**options), Tanh().float()
    if compiled:
        network.compile(backend="aot_eager")
    corrected = []
    original = method._corrected
    method._corrected = lambda *a: corrected.append(original(*a)) or corrected[-1]  # type: ignore[method-assign]
    model = network if world_size == 1 else DistributedDataParallel(network)
    wrapped = []
    if model is not network:
        model.register_forward_hook(lambda module, inputs, output: wrapped.append(len(network.seen)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = loss_of(method, model, step_of_v6(rank, world_size))
    (output.loss * world_size).backward()
    present = Y.unique()
    return {
        "loss": output.loss.item(),
        "change": (corrected[0] - COVARIANCES.float()[present]).numpy(),
        "gradient": network.classifier.weight.grad.numpy(),
        "sums": method.statistics.covariances.sum(dim=(1, 2)).numpy(),
        "seen": network.seen,
        "wrapped": wrapped,
    }


def check_v6(found: dict[str, object], loss: float) -> None:
    expected = np.array([CHANGES_B[0], CHANGES_B[1], CHANGES_B[3]])
    # A float32 covariance around 1 resolves 1e-7.
    np.testing.assert_allclose(found["change"], expected, atol=3e-7)
    np.testing.assert_allclose(found["sums"], SUMS, rtol=1e-4)
    assert loss == pytest.approx(2.396313297, rel=1e-5)


def test_the_method_takes_the_published_step_in_float32() -> None:
    """Vector V6 (b), the update of the statistics included."""
    found = run_v6(0, 1, autocast=False)
    check_v6(found, found["loss"])


def test_the_virtual_step_leaves_autocast() -> None:
    """Half precision would lose it: the change is as without autocast, and only the real step computes in bfloat16."""
    found = run_v6(0, 1, autocast=True)
    np.testing.assert_allclose(found["change"], run_v6(0, 1, autocast=False)["change"], atol=1e-9)
    assert found["seen"] == [(torch.bfloat16, True), (torch.float32, False), (torch.float32, False)]


def test_the_virtual_step_runs_uncompiled() -> None:
    """What torch.compile makes of a network cannot be differentiated twice; the real step may still run it."""
    compiled, plain = run_v6(0, 1, autocast=False, compiled=True), run_v6(0, 1, autocast=False)
    np.testing.assert_allclose(compiled["change"], plain["change"], atol=1e-9)
    np.testing.assert_allclose(compiled["gradient"], plain["gradient"], rtol=1e-5)


def allowed_tf32() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("fails", [False, True])
def test_the_virtual_step_is_without_tf32_and_leaves_the_real_step_as_it_was(fails: bool) -> None:
    method, network, seen = method_of_v6(), Tanh().float(), []

    def note(*unused: object) -> None:
        seen.append(allowed_tf32())
        if fails and len(seen) == 2:
            raise RuntimeError("inside the virtual step")

    network.register_forward_hook(note)
    before = allowed_tf32()
    assert before[0], "torch's default"
    if fails:
        with pytest.raises(RuntimeError, match="inside the virtual step"):
            loss_of(method, network, step_of_v6())
    else:
        loss_of(method, network, step_of_v6())
        assert seen == [before, (False, False), (False, False)]
    assert allowed_tf32() == before


def resumed(rank: int, world_size: int) -> str:
    method = method_of_v6(statistics="local")
    try:
        method.load_state_dict(method.state_dict())
    except ValueError as error:
        return str(error)
    return "resumed"


@pytest.mark.slow
def test_local_statistics_of_several_processes_do_not_resume(tmp_path: Path) -> None:
    """A checkpoint holds those of one."""
    assert resumed(0, 1) == "resumed"
    for answer in on_two_processes(resumed, tmp_path):
        assert "only those of the first of 2 processes" in answer


def test_the_log_says_what_the_correction_did_also_where_there_are_no_covariances_yet(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    method = method_of_v6()
    method.statistics.covariances.zero_()
    loss_of(method, Tanh().float(), step_of_v6())
    method.after_epoch(100)
    loss_of(method, Tanh().float(), step_of_v6())
    method.after_epoch(101)
    first, second = caplog.messages
    assert re.fullmatch(r"epoch 100: the last meta step moved covariances of 0 by \d.*", first)
    assert re.fullmatch(r"epoch 101: the last meta step moved the covariances by \d.* of their norm", second)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strength": -0.25}, "strength is -0.25, expected a finite number of at least 0"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"meta_lr": -0.1}, "meta_lr is -0.1"),
        ({"meta_lr": float("inf")}, "meta_lr is inf"),
        ({"meta_from_epoch": -1}, "meta_from_epoch is -1, expected an epoch, counted from 0"),
    ],
)
@pytest.mark.parametrize("kind", [MetaSAugOptions, MetaSAugLargeOptions])
def test_options_without_a_meaning_are_refused(kind: type, options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        kind(**options)


def test_an_empty_meta_set_is_refused() -> None:
    with pytest.raises(ValueError, match="meta_per_class is 0, expected at least 1"):
        MetaSAugLargeOptions(meta_per_class=0)


def steps_of_a_rank(rank: int, world_size: int) -> dict[str, dict]:
    return {
        "global": run_v6(rank, world_size, autocast=False),
        "autocast": run_v6(rank, world_size, autocast=True),
        "local": run_v6(rank, world_size, autocast=False, statistics="local"),
    }


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    return on_two_processes(steps_of_a_rank, tmp_path_factory.mktemp("ranks"))


def test_two_processes_take_the_step_of_one(two_processes: list[dict[str, dict]]) -> None:
    """The published vector under the distributed wrapper: same correction, statistics, loss and gradient."""
    one = run_v6(0, 1, autocast=False)
    loss = sum(ranks["global"]["loss"] for ranks in two_processes)
    for ranks in two_processes:
        check_v6(ranks["global"], loss)
        np.testing.assert_allclose(ranks["global"]["gradient"], one["gradient"], rtol=1e-4, atol=1e-7)


def test_the_virtual_step_bypasses_the_distributed_wrapper_and_autocast(two_processes: list[dict[str, dict]]) -> None:
    """The wrapper sees the real pass alone: the network's other two, on either batch, are the virtual step's."""
    for ranks in two_processes:
        for kind in ("global", "autocast", "local"):
            assert ranks[kind]["wrapped"] == [1]  # one call, which ended after one pass of the network
            assert len(ranks[kind]["seen"]) == 3
        assert [dtype for dtype, _ in ranks["autocast"]["seen"]] == [torch.bfloat16, torch.float32, torch.float32]
        np.testing.assert_allclose(ranks["autocast"]["change"], ranks["global"]["change"], atol=1e-7)


def test_local_statistics_differ_between_processes_but_gradients_are_shared(
    two_processes: list[dict[str, dict]],
) -> None:
    first, second = (ranks["local"] for ranks in two_processes)
    assert np.abs(first["change"] - second["change"]).max() > 1e-6
    assert np.abs(first["sums"] - second["sums"]).max() > 1e-3
    np.testing.assert_allclose(first["gradient"], second["gradient"])
    # A process corrects only the classes that it holds: rank 0 has classes 3 and 0, rank 1 has 1 and 3.
    assert not first["change"][1].any() and not second["change"][0].any()


def loss_of_a_rank(rank: int, world_size: int) -> tuple[float, float]:
    """With local statistics: this process's part of the loss, and the loss of its own batch alone."""
    method, network = method_of_v6(statistics="local", meta_lr=0.0), Tanh().float()
    share = loss_of(method, network, step_of_v6(rank, world_size)).loss.item()
    rows = list(range(2 * rank, 2 * rank + 2))
    data = {"original": ((X.float()[rows],), Y[rows].tolist()), "meta": ((META_X.float(),), META_Y.tolist())}
    alone = method_of_v6(meta_lr=0.0)
    alone.total = list
    return share, loss_of(alone, network, micro_step(100, data)).loss.item()


def test_with_local_statistics_each_process_normalises_by_its_own_class_weights(tmp_path: Path) -> None:
    """As a weighted cross entropy under a distributed wrapper does, which averages over processes."""
    for share, alone in on_two_processes(loss_of_a_rank, tmp_path):
        assert share == pytest.approx(alone / 2, rel=1e-5)


# ------------------------------------------------------------------ phases, networks, streams


def metasaug(epochs: int = 200, counts: Sequence[int] = COUNTS, **options: Any) -> MetaSAug:
    return unmixed(MetaSAug, MetaSAugOptions(**options), context(counts, epochs, **CIFAR_SCHEDULE))


def data_of(batch: int = 8, meta: int = 4) -> dict[str, Any]:
    labels = [(7 * i) % 4 for i in range(batch)]
    return {
        "original": (random_images(batch, size=16, seed=1), labels),
        "meta": (random_images(meta, size=16, seed=2), [0, 1, 2, 3][:meta]),
    }


def test_rates_of_both_phases_are_those_of_the_official_code() -> None:
    sane, published = metasaug(), metasaug(late_virtual_lr=True)
    optimizer = sane.context.schedule.lr
    rates = {0: 0.1, 158: 0.1, 159: 0.001, 178: 0.001, 179: 1e-5, 199: 1e-5}
    assert {e: optimizer(e) for e in rates} == pytest.approx(rates)
    virtual = {160: 0.001, 178: 0.001, 179: 0.001, 180: 1e-5, 199: 1e-5}
    assert {e: published.virtual_lr(e) for e in virtual} == pytest.approx(virtual)
    assert sane.virtual_lr(179) == pytest.approx(1e-5)


def test_first_phase_is_plain_cross_entropy_without_meta_stream() -> None:
    method = metasaug()
    model = method.build_model(ModelOptions(width=4), seed=0)
    original, meta = method.streams()
    assert (original.first_epoch, meta.first_epoch, meta.dataset) == (0, 160, "meta")
    data = {"original": data_of()["original"]}
    output = loss_of(method, model.eval(), micro_step(159, data))
    expected = F.cross_entropy(output.logits, torch.tensor(data["original"][1]))
    torch.testing.assert_close(output.loss, expected)
    assert not method.statistics.counts.any()


def test_phases_follow_the_length_of_the_run() -> None:
    assert metasaug(epochs=20).streams()[1].first_epoch == 16


def test_second_phase_updates_batch_norm_once_and_starts_from_empty_statistics() -> None:
    method = metasaug()
    model = method.build_model(ModelOptions(width=4), seed=0)
    reference = metasaug().build_model(ModelOptions(width=4), seed=0)
    step = micro_step(160, data_of())
    loss_of(method, model, step)
    reference(method.context.input_builder.plain(data_of()["original"][0][0]))
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)
    assert method.statistics.counts.tolist() == np.bincount(data_of()["original"][1], minlength=4).tolist()


def test_shares_of_parts_add_up_with_empty_statistics() -> None:
    """With Σ = 0 the loss is class-weighted cross entropy with margins."""
    whole_step = micro_step(160, data_of(7))
    labels = torch.tensor(data_of(7)["original"][1])
    model = metasaug().build_model(ModelOptions(width=4), seed=0).eval()

    def loss(step: PlannedStep) -> StepOutput:
        method = metasaug(meta_lr=0.0)
        method.build_model(ModelOptions(width=4), seed=0)
        return loss_of(method, model, step)

    whole = loss(whole_step)
    parts = sum(loss(micro_step(160, data_of(7), None, part, 3)).loss for part in range(3))
    torch.testing.assert_close(parts, whole.loss)
    weights = torch.from_numpy(effective_number_weights(COUNTS, 0.9999)).float()
    adjusted = whole.logits - F.one_hot(labels, 4) * ldam_margins(COUNTS)[labels, None]
    torch.testing.assert_close(whole.loss, F.cross_entropy(adjusted, labels, weight=weights))


def test_state_continues_exactly() -> None:
    method, again = metasaug(), metasaug()
    model = method.build_model(ModelOptions(width=4), seed=0)
    again.build_model(ModelOptions(width=4), seed=0)
    loss_of(method, model, micro_step(160, data_of()))
    again.load_state_dict({name: value.clone() for name, value in method.state_dict().items()})
    outputs = [loss_of(m, model, micro_step(161, data_of())).loss for m in (method, again)]
    assert outputs[0] == outputs[1]
    assert torch.equal(method.statistics.covariances, again.statistics.covariances)


def test_network_keeps_the_names_and_the_size_of_the_plain_one() -> None:
    model = metasaug(counts=[5] * 100).build_model(ModelOptions(), seed=0)
    assert sum(p.numel() for p in model.parameters()) == 470_004
    assert len(list(model.parameters())) == 95
    names = set(model.state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer3.4.bn2.weight", "linear.weight", "linear.bias"} < names
    assert not any(name.startswith("encoder") for name in names)


def large(**options: Any) -> MetaSAugLarge:
    return unmixed(MetaSAugLarge, MetaSAugLargeOptions(**options), context(COUNTS, 20, milestones=(), factors=()))


STAGE_ONE = ModelOptions("resnet18", init_from=Path("stage1.pt"))


def test_large_mode_trains_the_classifier_alone_on_features_computed_once() -> None:
    method = make_method("metasaug_large", context(COUNTS, 20, milestones=(), factors=()))
    model = method.build_model(STAGE_ONE, seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method.trainable(name))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}
    assert {"conv1.weight", "layer4.1.bn2.weight", "fc.weight"} < set(model.state_dict())
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    passes = []
    model.encoder.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    for epoch in (0, 1):
        loss_of(method, model, micro_step(epoch, data_of())).loss.backward()
    assert passes == [8, 4] * 2  # the training batch once, the meta batch once
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert method.objective.statistics.covariances.shape == (4, 512)
    assert method.objective.statistics.counts.sum() == 16


def test_large_mode_has_float32_features_under_autocast() -> None:
    method = large()
    model = method.build_model(STAGE_ONE, seed=0)
    seen = []
    model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(method, model, micro_step(1, data_of()))
    assert [(output.dtype, len(output)) for output in seen] == [(torch.float32, 8), (torch.float32, 4)]


def test_large_mode_starts_as_class_weighted_cross_entropy() -> None:
    """Strength 0 in the first epoch."""
    method = large()
    model = method.build_model(STAGE_ONE, seed=0)
    output = loss_of(method, model, micro_step(0, data_of()))
    weights = torch.from_numpy(effective_number_weights(COUNTS, 0.9999)).float()
    expected = F.cross_entropy(output.logits, torch.tensor(data_of()["original"][1]), weight=weights)
    torch.testing.assert_close(output.loss, expected)


def test_large_mode_draws_its_meta_set_as_told() -> None:
    meta = large(meta_per_class=10, meta_view="evaluation").streams()[1]
    assert (meta.sampling.per_class, meta.first_epoch, meta.full_batches) == (10, 0, True)
    assert meta.views == (large().context.evaluation_view,)
    assert large().streams()[1].views == (large().context.view,)


def test_large_mode_needs_a_first_stage() -> None:
    with pytest.raises(ValueError, match=r"--model\.init_from"):
        make_method("metasaug_large", context(COUNTS)).build_model(ModelOptions("resnet18"), seed=0)


def test_accumulation_is_refused_by_declaration() -> None:
    assert not MetaSAug.accumulates and not MetaSAugLarge.accumulates


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_leaves_statistics_and_correction_in_float32(precision: str, data: Path, tmp_path: Path) -> None:
    """After one step the estimate is that of full precision but for what the features round; then nothing overflows."""
    common = {"method.name": "metasaug", "data.meta": data / "train", "method.meta_from_epoch": 0}
    common |= {"schedule.warmup_epochs": 0, "optimizer.lr": 0.01}
    means = {}
    for chosen in ("no", precision):
        run = make_run(options(data, tmp_path / chosen, **common, mixed_precision=chosen, max_steps=1))
        assert take_steps(run) == 1 and isinstance(run.method.objective, MetaSAug)
        means[chosen] = run.method.objective.statistics.means
    assert (means[precision] - means["no"]).norm() < 0.02 * means["no"].norm()
    run = make_run(options(data, tmp_path / "run", **common, mixed_precision=precision))
    before = {name: value.detach().clone() for name, value in run.trainer.bare_model.named_parameters()}
    assert take_steps(run) == 12
    objective = run.method.objective
    assert isinstance(objective, MetaSAug) and objective._change is not None
    kept = [objective._change, *objective.statistics.state_dict().values()]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in kept)
    for name, value in run.trainer.bare_model.named_parameters():
        assert value.isfinite().all() and not torch.equal(value, before[name]), name
