"""PaCo and GPaCo against numbers derived in float64, the order inside a step, and groups of rows."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.runs import options
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import context, loss_of, make_method, micro_step, random_images
from tests.helpers.vectors import wave
from train.losses.paco import parametric_contrast
from train.methods.method import Method
from train.methods.objectives.paco import PaCo
from train.models.build import ModelOptions
from train.models.paco import Encoder, PaCoNetwork, build_paco


def array(*arguments: object) -> Tensor:
    return torch.from_numpy(wave(*arguments))  # type: ignore[arg-type]


def unit_rows(*arguments: object) -> Tensor:
    return F.normalize(array(*arguments), dim=1)


QUERIES = unit_rows("sin", (3, 4), (0.7, 1.9), 0.4)
KEYS = unit_rows("cos", (3, 4), (1.1, 0.6), 0.2)
QUEUE = unit_rows("sin", (6, 4), (0.9, 1.3), 1.5)
LABELS, QUEUE_LABELS = torch.tensor([4, 1, 1]), torch.tensor([1, 4, 0, 1, 2, 3])
PRIOR = torch.log(torch.tensor([100, 50, 20, 10, 5], dtype=torch.float64) / 185 + 1e-9)


def rows(anchors: int, q: Tensor, k: Tensor, z: Tensor, **constants: float) -> Tensor:
    """anchors: per image, 1 for PaCo and 2 for GPaCo."""
    both = torch.cat([q, k])
    columns, labels = torch.cat([both, QUEUE]), torch.cat([LABELS, LABELS, QUEUE_LABELS])
    valid = torch.ones(len(labels), dtype=torch.bool)
    return parametric_contrast(
        z + PRIOR,
        both[: 3 * anchors],
        LABELS.repeat(anchors),
        columns,
        labels,
        valid,
        **constants,  # type: ignore[arg-type]
    )


def test_paco_and_its_gradient() -> None:
    q, z = QUERIES.clone().requires_grad_(), array("cos", (3, 5), (0.8, 0.5), 0.3, 2).requires_grad_()
    found = rows(1, q, KEYS, z, alpha=0.05, temperature=0.2)
    np.testing.assert_allclose(found.detach(), (9.1180174, 6.097439, 6.9895882), rtol=1e-6)
    found.mean().backward()
    assert q.grad is not None and z.grad is not None
    np.testing.assert_allclose(q.grad[0], (1.055474, 0.20982719, -0.97747525, -0.18733175), rtol=1e-6)
    expected = (0.0095820637, 0.0028561834, 0.00048421791, 9.0015873e-05, -0.3030116)
    np.testing.assert_allclose(z.grad[0], expected, rtol=1e-6)


def test_weights_of_own_class_and_contrast() -> None:
    z = array("cos", (3, 5), (0.8, 0.5), 0.3, 2)
    found = rows(1, QUERIES, KEYS, z, alpha=0.5, temperature=0.07, beta=0.7, gamma=1.3)
    np.testing.assert_allclose(found, (9.7804463, 10.329261, 10.71032), rtol=1e-6)


def test_gpaco_and_its_gradient() -> None:
    q, k = QUERIES.clone().requires_grad_(), KEYS.clone().requires_grad_()
    found = rows(2, q, k, array("cos", (6, 5), (0.8, 0.5), 0.3, 2), alpha=0.05, temperature=0.2)
    expected = (9.1180174, 6.097439, 6.9895882, 7.3551844, 6.5895965, 4.662713)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-6)
    found.mean().backward()
    assert q.grad is not None and k.grad is not None
    np.testing.assert_allclose(q.grad[0], (0.64280315, 0.1557823, -0.51983626, -0.1958682), rtol=1e-6)
    np.testing.assert_allclose(k.grad[0], (0.38557432, 0.26926423, -0.39546517, -0.27097248), rtol=1e-6)


def test_padding_is_no_column() -> None:
    z = array("cos", (3, 5), (0.8, 0.5), 0.3, 2)
    both = torch.cat([QUERIES, KEYS, QUEUE])
    labels = torch.cat([LABELS, LABELS, QUEUE_LABELS])
    valid = torch.tensor([True, True, False, True, True, False] + [True] * 6)
    settings = {"alpha": 0.05, "temperature": 0.2}
    padded = parametric_contrast(z + PRIOR, QUERIES, LABELS, both, labels, valid, **settings)  # type: ignore[arg-type]
    without = parametric_contrast(
        z[:2] + PRIOR,
        QUERIES[:2],
        LABELS[:2],
        both[valid],
        labels[valid],
        valid[valid],
        **settings,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(padded[:2], without)


# ------------------------------------------------------------- whole steps

COUNTS = (40, 20, 8, 4)


def vectors(keys: str, alpha: float, momentum: float = 0.9, **values: Any) -> Method:
    """PaCo on rows of numbers in place of images."""
    plain = replace(context(COUNTS), input_builder=SimpleNamespace(plain=lambda x: x))  # type: ignore[arg-type]
    made = make_method(
        "paco", plain, keys=keys, contrast_alpha=alpha, key_momentum=momentum, key_queue=6, contrast_size=3, **values
    )
    assert isinstance(made.objective, PaCo)  # type: ignore[attr-defined]
    made.objective.log_prior = torch.log(torch.tensor(COUNTS, dtype=torch.float64) / 72 + 1e-9)  # type: ignore[attr-defined]
    return made


def linear(number: int) -> nn.Linear:
    made = nn.Linear(3, 3).double()
    made.weight.data = array("cos", (3, 3), (0.6, 1.1), 0.5 + number)
    made.bias.data = array("sin", (3,), (0.4,), 0.1 + number, 0.3)
    return made


def network(projection: nn.Module, momentum: bool, size: int, labels: list[int]) -> PaCoNetwork:
    first = nn.Linear(2, 3, bias=False).double()
    first.weight.data = array("sin", (3, 2), (0.8, 1.7), 0.3)
    made = PaCoNetwork(Encoder(nn.Sequential(first, nn.Tanh()), projection), 3, 4, 3, size, momentum).double()
    made.linear.weight.data = array("sin", (4, 3), (0.9, 0.7), 1.2)
    made.linear.bias.data = array("cos", (4,), (1.3,), 0.0, 0.2)
    made.queue = F.normalize(array("sin", (size, 3), (0.9, 0.4), 0.3), dim=0)
    made.queue_l = torch.tensor(labels)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(not name.startswith("encoder_k."))
    return made


def projection(momentum: bool) -> nn.Module:
    layers = [linear(0), nn.BatchNorm1d(3).double(), nn.ReLU(), linear(1)]
    return nn.Sequential(*(layers if momentum else [linear(0), nn.ReLU(), linear(1), nn.ReLU(), linear(2)]))


def train(method: Method, model: PaCoNetwork, parts: int = 1) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=0.01)
    losses = []
    for t, labels in enumerate(([3, 0, 1], [1, 1, 0], [0, 2, 3])):
        optimizer.zero_grad()
        images = (
            array("sin", (3, 2), (1.3, 0.7), 0.2 + 0.9 * t),
            array("cos", (3, 2), (0.5, 1.6), 0.4 + 0.9 * t),
        )
        loss = loss_of(method, model, micro_step(0, {"original": (images, labels)})).loss
        loss.backward()
        method.objective.before_optimizer(model)
        optimizer.step()
        losses.append(loss.item())
    return losses


TEST = array("sin", (2, 2), (1.3, 0.7), 0.2)


def test_three_steps_of_paco() -> None:
    """The momentum copy follows before the keys are computed: one step late the losses would be 6.384926, 5.9845066."""
    method, model = vectors("momentum", 0.3), network(projection(True), True, 6, [0, 1, 2, 3, 0, 1])
    np.testing.assert_allclose(train(method, model), (4.9594164, 6.386569, 5.972284), rtol=1e-6)
    assert model.queue_ptr.tolist() == [3]
    assert model.queue_l.tolist() == [0, 2, 3, 1, 1, 0]
    np.testing.assert_allclose(model.queue[0], (0.60660935, 0.59758127, 0.52432977), rtol=1e-6)
    np.testing.assert_allclose(model.queue[3], (0.55089414, 0.60767328, 0.57205667), rtol=1e-6)
    state = model.state_dict()
    np.testing.assert_allclose(state["encoder_q.0.weight"][0], (0.37950155, 1.0168109), rtol=1e-6)
    np.testing.assert_allclose(state["encoder_k.0.weight"][0], (0.30205516, 0.91941065), rtol=1e-6)
    means = [state[f"encoder_{side}.fc.1.running_mean"] for side in "qk"]
    np.testing.assert_allclose(means[0], (-0.024117742, -0.018516256, 0.014433757), rtol=1e-6)
    np.testing.assert_allclose(means[1], (-0.13745188, 0.0083384232, 0.16079029), rtol=1e-6)
    tested = method.objective.eval_logits(model.eval(), TEST)[0].detach()
    np.testing.assert_allclose(tested, (1.7527168, 0.98160558, -0.62697352, -1.4044296), rtol=1e-6)


def test_three_steps_of_gpaco() -> None:
    method, model = vectors("own", 0.3), network(projection(False), False, 6, [0, 1, 2, 3, 0, 1])
    np.testing.assert_allclose(train(method, model), (6.2650741, 6.1976535, 6.8054773), rtol=1e-6)
    np.testing.assert_allclose(model.state_dict()["encoder_q.0.weight"][0], (0.3169664, 0.93682539), rtol=1e-6)
    tested = method.objective.eval_logits(model.eval(), TEST)[0].detach()
    np.testing.assert_allclose(tested, (1.6913387, 0.91548707, -0.62084896, -1.386559), rtol=1e-6)


@pytest.mark.parametrize(
    ("group", "parts", "expected"), [(None, 1, 6.3290367), (4, 1, 6.3290367), (2, 1, 6.106576), (None, 2, 6.106576)]
)
def test_groups_see_themselves_and_the_queue(group: int | None, parts: int, expected: float) -> None:
    method = vectors("momentum", 0.05, group=group)
    model = network(linear(0), True, 8, [0, 1, 2, 3, 0, 1, 2, 3])
    images = (array("sin", (4, 2), (1.3, 0.7), 0.2), array("cos", (4, 2), (0.5, 1.6), 0.4))
    streams = {"original": (images, [3, 0, 3, 1])}
    losses = [loss_of(method, model, micro_step(0, streams, part=part, parts=parts)).loss for part in range(parts)]
    assert torch.stack(losses).sum().item() == pytest.approx(expected, rel=1e-6)
    method.objective.before_optimizer(model)
    assert model.queue_l.tolist() == [3, 0, 3, 1, 0, 1, 2, 3]
    expected_keys = model.encoder_k(images[1])[1].detach()  # type: ignore[misc]
    torch.testing.assert_close(model.queue[:4], expected_keys)


def test_a_part_that_groups_do_not_fill_is_refused() -> None:
    method, model = vectors("momentum", 0.05, group=2), network(linear(0), True, 8, [0] * 8)
    images = (array("sin", (3, 2), (1.3, 0.7), 0.2), array("cos", (3, 2), (0.5, 1.6), 0.4))
    with pytest.raises(ValueError, match=r"not a multiple of method\.group \(2\)"):
        loss_of(method, model, micro_step(0, {"original": (images, [3, 0, 3])}))


# ------------------------------------------------------------------ networks


@pytest.mark.parametrize(
    ("name", "classes", "dim", "momentum", "parameters"),
    [
        ("resnet32", 100, 32, True, 476_372),
        ("resnet32", 100, 32, False, 480_404),
        ("resnet50", 1000, 128, True, 30_019_752),
        ("resnet50", 1000, 128, False, 34_212_008),
    ],
)
def test_sizes_of_the_networks(name: str, classes: int, dim: int, momentum: bool, parameters: int) -> None:
    with torch.device("meta"):
        model = build_paco(ModelOptions(name), classes, 0, dim=dim, size=8, momentum=momentum)
    trained = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("encoder_k."))
    assert trained == parameters
    layers = (0, 1, 3) if momentum else (0, 2, 4)
    assert {f"encoder_q.fc.{layer}.weight" for layer in layers} | {"queue", "queue_l", "queue_ptr"} < set(
        model.state_dict()
    )


def test_the_copy_starts_equal_and_the_queue_with_columns_of_unit_norm() -> None:
    model = build_paco(ModelOptions(width=4), 5, 0, dim=8, size=64, momentum=True)
    assert model.encoder_k is not None
    pairs = zip(model.encoder_q.state_dict().values(), model.encoder_k.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    torch.testing.assert_close(model.queue.norm(dim=0), torch.ones(8))
    assert set(model.queue_l.tolist()) == set(range(5))


@pytest.mark.parametrize("keys", ["momentum", "own"])
def test_padding_rows_change_nothing(keys: str) -> None:
    """Seven rows in two parts of four: one is a repeat of weight 0."""
    method = make_method("paco", context((9, 4, 2)), keys=keys, contrast_size=4, key_queue=16)
    model = method.build_model(ModelOptions(width=4), seed=0).eval()
    streams = {"original": (random_images(7, views=2), [0, 2, 1, 1, 0, 0, 1])}
    total = sum(loss_of(method, model, micro_step(0, streams, part=p, parts=5)).loss for p in range(5))
    assert torch.isfinite(total)  # type: ignore[arg-type]
    method.objective.before_optimizer(model)
    assert model.get_buffer("queue_ptr").tolist() == [7]
    torch.testing.assert_close(model.get_buffer("queue")[:7].norm(dim=1), torch.ones(7))


def test_mixed_images_are_refused() -> None:
    with pytest.raises(ValueError, match="not a view of its key's image"):
        make_method("paco", context((9, 4, 2)), mixing="paste")


@pytest.mark.parametrize(("values", "batch"), [({"key_queue": 4}, 8), ({"group": 3}, 8)])
def test_batches_that_do_not_fit_are_refused(values: dict[str, int], batch: int) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        make_method("paco", context((9, 4, 2)), **values).objective.check_batch_size(batch)


@pytest.mark.parametrize("name", ["paco", "gpaco"])
def test_a_run_trains_all_but_the_copy(name: str, data: Path, tmp_path: Path) -> None:
    run = make_run(options(data, tmp_path / "run", max_steps=2, **{"method.name": name, "method.key_queue": 16}))
    before = {n: v.clone() for n, v in run.trainer.bare_model.state_dict().items()}
    take_steps(run)
    after = run.trainer.bare_model.state_dict()
    assert after["queue_ptr"].tolist() == [0]
    assert not torch.equal(after["encoder_q.conv1.weight"], before["encoder_q.conv1.weight"])
    assert ("encoder_k.conv1.weight" in after) is (name == "paco")
