"""IB against the numbers of its official code, and how a run goes from cross entropy to it."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shards.class_counts import effective_number_weights, power_law_weights
from tests.helpers.steps import context, loss_of, make_method, micro_step, random_images
from tests.helpers.vectors import wave
from train.losses.functions import cross_entropy
from train.losses.influence import influence_balanced

COUNTS = (500, 100, 20, 5)
INVERSE, EFFECTIVE = power_law_weights(COUNTS, 1.0), effective_number_weights(COUNTS, 0.9999)
LABELS = torch.tensor([0, 2, 3, 1])


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).requires_grad_()


def inputs() -> tuple[Tensor, Tensor]:
    return tensor(wave("sin", (4, 4), (0.7, 1.3), 0.2, 2)), tensor(1 + wave("cos", (4, 3), (0.9, 0.5), 0.1, 0.8))


def loss(weights: np.ndarray, focal: float = 0.0, labels: Tensor = LABELS) -> tuple[Tensor, Tensor, Tensor]:
    z, f = inputs()
    return influence_balanced(z, f, labels, torch.from_numpy(weights), 1000.0, focal).mean(), z, f


def test_class_weights() -> None:
    np.testing.assert_allclose(INVERSE, (0.030534351, 0.15267176, 0.76335878, 3.0534351), rtol=1e-7)
    np.testing.assert_allclose(EFFECTIVE, (0.031280168, 0.15331908, 0.76353803, 3.0518627), rtol=1e-7)


def test_the_factor_is_differentiated_through_logits_and_features() -> None:
    value, z, f = loss(INVERSE)
    value.backward()
    assert value.item() == pytest.approx(1205.5897, rel=1e-6)
    assert z.grad is not None and f.grad is not None
    expected = [-0.54396976, 0.42093976, 0.1118855, 0.011144494]
    np.testing.assert_allclose(z.grad[0], expected, rtol=1e-6)
    np.testing.assert_allclose(f.grad[0], [-0.37998596] * 3, rtol=1e-6)


@pytest.mark.parametrize(("weights", "focal", "expected"), [(EFFECTIVE, 0.0, 1205.4012), (INVERSE, 1.0, 1150.3471)])
def test_variants(weights: np.ndarray, focal: float, expected: float) -> None:
    value, z, _ = loss(weights, focal)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    if focal:
        value.backward()
        assert z.grad is not None
        np.testing.assert_allclose(z.grad[0], [-0.077704531, 0.060130046, 0.015982526, 0.0015919592], rtol=1e-6)


def test_a_sample_that_is_all_but_learnt() -> None:
    z, f = tensor(np.array([[14.0, 0, 0, 0]])), torch.tensor([[1.0, 0.5, 0]], dtype=torch.float64)
    value = influence_balanced(z, f, torch.tensor([0]), torch.ones(4, dtype=torch.float64), 1000.0).sum()
    value.backward()
    assert value.item() == pytest.approx(2.4760529, rel=1e-6)
    assert z.grad is not None
    np.testing.assert_allclose(z.grad[0], [-2.4576574, 0.81921913, 0.81921913, 0.81921913], rtol=1e-6)


def test_two_labels_have_each_their_own_factor() -> None:
    other = torch.tensor([3, 3, 0, 2])
    mixed = 0.7 * loss(INVERSE)[0] + 0.3 * loss(INVERSE, labels=other)[0]
    assert mixed.item() == pytest.approx(1234.6962, rel=1e-6)


class Doubled(nn.Module):
    """A network of features and logits in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.linear = nn.Linear(3 * 32 * 32, 5).double(), nn.Linear(5, 4).double()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(images.double().flatten(1)).relu()
        return features, self.linear(features)


@pytest.mark.parametrize("epoch", [0, 99, 100, 199])
def test_it_replaces_cross_entropy_from_its_first_epoch_on(epoch: int) -> None:
    method, model = make_method("ib", context(COUNTS)), Doubled()
    labels = [0, 2, 3, 1, 0]
    step = micro_step(epoch, {"original": (random_images(5), labels)})
    features, logits = model(method.context.input_builder.plain(step.batches["original"].images[0]))
    weights = torch.from_numpy(INVERSE)
    plain = cross_entropy(logits, torch.tensor(labels)).mean()
    influence = influence_balanced(logits, features, torch.tensor(labels), weights, 1000.0).mean()
    expected = influence if epoch >= 100 else plain
    torch.testing.assert_close(loss_of(method, model, step).loss, expected, rtol=1e-6, atol=0, check_dtype=False)


@pytest.mark.parametrize("epoch", [0, 150])
def test_shares_of_micro_batches_add_up(epoch: int) -> None:
    method, model = make_method("ib", context(COUNTS)), Doubled()
    streams = {"original": (random_images(7), [0, 2, 3, 1, 0, 0, 1])}
    whole = loss_of(method, model, micro_step(epoch, streams)).loss
    parts = [loss_of(method, model, micro_step(epoch, streams, part=part, parts=3)).loss for part in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-6, atol=0)


def test_a_shorter_run_switches_earlier() -> None:
    assert make_method("ib", context(COUNTS, epochs=30)).derived_options() == {"ib_from_epoch": 15}


@pytest.mark.parametrize("values", [{"ib_alpha": 0.0}, {"ib_focal": -1.0}])
def test_impossible_options_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="ib_alpha"):
        make_method("ib", context(COUNTS), **values)
