"""Losses, class weights and their denominators against the numbers that the official code gives."""

import numpy as np
import pytest
import torch

from train.losses import functions
from train.losses.criterion import Criterion

CPU = torch.device("cpu")


def counts(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_ldam_margins() -> None:
    margins = functions.ldam_margins(counts(500, 100, 20, 5))
    torch.testing.assert_close(margins, torch.tensor([0.1581139, 0.2364354, 0.3535534, 0.5]), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("rule", "targets", "expected"), [("none", [2, 0], 3.015253), ("reweight", [1, 2], 44.66633)])
def test_ldam_loss(rule: str, targets: list[int], expected: float) -> None:
    criterion = Criterion("ldam", rule, counts(100, 50, 10), drw_epoch=0, device=CPU)
    cosines = torch.tensor([[0.2, -0.1, 0.5], [0.7, 0.3, -0.4]])
    loss = mean_loss(criterion, cosines, targets)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_balanced_softmax() -> None:
    prior = functions.log_prior(counts(100, 50, 10))
    torch.testing.assert_close(prior, torch.tensor([-0.4700036, -1.1631508, -2.7725887]), rtol=1e-5, atol=0)
    criterion = Criterion("bs", "none", counts(100, 50, 10), drw_epoch=0, device=CPU)
    loss = mean_loss(criterion, torch.tensor([[1, 2, 0.5], [-1, 0, 3]]), [0, 2])
    assert loss == pytest.approx(0.6214092, rel=1e-5)


@pytest.mark.parametrize(("loss", "rule", "expected"), [("ce", "reweight", 2.210868), ("bs", "none", 1.598956)])
def test_mixed_loss_normalises_each_term_by_its_own_weights(loss: str, rule: str, expected: float) -> None:
    criterion = Criterion(loss, rule, counts(500, 100, 20, 5), drw_epoch=0, device=CPU)
    logits = torch.tensor([[2, -1, 0.5, 0.25], [0.3, 0.3, 0.3, 0.3], [-2, 1.5, 4, 1]])
    mixed = 0.75 * mean_loss(criterion, logits, [0, 0, 1]) + 0.25 * mean_loss(criterion, logits, [3, 2, 3])
    assert mixed == pytest.approx(expected, rel=1e-5)


def test_deferred_weights_switch_on_at_their_epoch() -> None:
    criterion = Criterion("ce", "drw", counts(500, 100, 20, 5), drw_epoch=160, device=CPU)
    assert (criterion.class_weights(159) == 1).all()
    expected = [0.03128017, 0.15331908, 0.76353803, 3.05186273]
    np.testing.assert_allclose(criterion.class_weights(160), expected, rtol=1e-5)
    np.testing.assert_allclose(criterion.class_weights(399), expected, rtol=1e-5)  # the official code fails from 320 on


def test_coefficients_add_up_to_one_over_the_global_batch() -> None:
    criterion = Criterion("ce", "reweight", counts(500, 100, 20, 5), drw_epoch=0, device=CPU)
    coefficients = criterion.coefficients(0, np.array([0, 0, 3, 1]))
    assert coefficients.sum() == pytest.approx(1)
    assert coefficients[2] / coefficients[0] == pytest.approx(3.05186273 / 0.03128017, rel=1e-5)


def test_focal_loss_counts_what_is_certain_less() -> None:
    """By its definition from probabilities; and where a sample is certain, loss and gradient are 0, not NaN."""
    logits, labels = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]], dtype=torch.float64), torch.tensor([0, 1])
    p = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(functions.focal(logits, labels, 2.0), -((1 - p) ** 2) * p.log())
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)
    functions.focal(certain, torch.tensor([0]), 2.0).sum().backward()
    assert torch.equal(certain.grad, torch.zeros(1, 2))


def test_inverse_weights_give_every_class_the_same_weight() -> None:
    criterion = Criterion("ce", "inverse", counts(500, 100, 20, 5), drw_epoch=0, device=CPU)
    weights = criterion.class_weights(0)
    assert (weights * counts(500, 100, 20, 5)).tolist() == pytest.approx([weights[3] * 5] * 4)
    assert weights.mean() == pytest.approx(1)


def test_balanced_softmax_refuses_class_weights() -> None:
    with pytest.raises(ValueError, match=r"method\.rule is drw, expected none"):
        Criterion("bs", "drw", counts(5, 2), drw_epoch=0, device=CPU)


@pytest.mark.parametrize("loss", ["ce", "bs", "focal", "ldam"])
def test_bfloat16_logits_lose_nothing_but_their_own_rounding(loss: str) -> None:
    criterion = Criterion(loss, "none", counts(100000, 50, 2), drw_epoch=0, device=CPU)
    rounded = torch.tensor([[0.25, 0.5, -0.125], [0.75, -0.5, 0.0]], dtype=torch.bfloat16)
    labels = torch.tensor([2, 1])
    torch.testing.assert_close(
        criterion.per_sample(rounded, labels), criterion.per_sample(rounded.float(), labels), rtol=0, atol=0
    )


def mean_loss(criterion: Criterion, logits: torch.Tensor, targets: list[int]) -> float:
    coefficients = torch.from_numpy(criterion.coefficients(0, np.array(targets)))
    return float((coefficients * criterion.per_sample(logits, torch.tensor(targets))).sum())
