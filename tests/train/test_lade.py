"""LADE and PC softmax against the numbers of the official code, on one process and as if on two."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.steps import context, loss_of, make_method, micro_step, random_images
from tests.helpers.vectors import wave
from train.losses.functions import balanced_softmax
from train.losses.lade import EPSILON, lade_regulariser
from train.models.build import ModelOptions

COUNTS = (500, 100, 20, 5)
PRIOR = np.array(COUNTS) / sum(COUNTS)
LABELS = np.array([0, 0, 1, 2, 0, 1])


def logits(rows: slice = slice(None)) -> Tensor:
    return torch.from_numpy(wave("sin", (6, 4), (0.7, 1.3), 0.2, 2))[rows].clone().requires_grad_()


def regulariser(z: Tensor, penalty: float, rows: slice = slice(None), others: tuple[Tensor, ...] = ()) -> Tensor:
    """The share of some rows; `others`: the log-sum-exps of the other ranks."""
    own = LABELS[rows]
    coefficients = torch.from_numpy(PRIOR[own] / np.bincount(LABELS, minlength=4)[own])
    return lade_regulariser(
        z,
        torch.from_numpy(own),
        coefficients,
        torch.ones(len(own), dtype=torch.float64),
        torch.from_numpy(PRIOR),
        penalty,
        len(LABELS),
        lambda row: torch.stack([row, *others]),
    )


def test_regulariser_and_its_gradient() -> None:
    z = logits()
    value = regulariser(z, 0.1)
    value.backward()
    assert value.item() == pytest.approx(-0.044698141, rel=1e-6)
    assert z.grad is not None
    np.testing.assert_allclose(z.grad[0], [-0.20612537, 0.10137174, 0.020436719, 0.00024564141], rtol=1e-6)


@pytest.mark.parametrize(
    ("penalty", "alpha", "l_r", "total"), [(0.1, 0.1, -0.044698141, 2.2691051), (0.5, 0.05, 0.16057633, 2.2816037)]
)
def test_total(penalty: float, alpha: float, l_r: float, total: float) -> None:
    z = logits()
    value = regulariser(z, penalty)
    plain = balanced_softmax(z, torch.from_numpy(LABELS), torch.from_numpy(np.log(PRIOR + EPSILON))).mean()
    assert plain.item() == pytest.approx(2.2735749, rel=1e-6)
    assert value.item() == pytest.approx(l_r, rel=1e-6)
    assert (plain + alpha * value).item() == pytest.approx(total, rel=1e-6)
    if alpha == 0.1:
        (plain + alpha * value).backward()
        assert z.grad is not None
        np.testing.assert_allclose(z.grad[3], [0.18119994, 0.0035991311, -0.16951425, 0.00041777838], rtol=1e-6)


def test_shares_of_two_ranks_are_exact_in_value_and_gradient() -> None:
    whole = logits()
    expected = regulariser(whole, 0.1)
    expected.backward()
    parts = (slice(0, 3), slice(3, 6))
    sums = [logits(rows).detach().logsumexp(dim=0) for rows in parts]
    shares, gradients = [], []
    for rows, other in zip(parts, reversed(sums), strict=True):
        z = logits(rows)
        share = regulariser(z, 0.1, rows, (other,))
        share.backward()
        shares.append(share.item())
        assert z.grad is not None
        gradients.append(z.grad)
    assert sum(shares) == pytest.approx(expected.item(), abs=1e-14)
    torch.testing.assert_close(torch.cat(gradients), whole.grad, rtol=1e-13, atol=1e-15)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 32 * 32, 4).double()

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.double().flatten(1))


def test_the_objective_is_balanced_softmax_with_the_regulariser() -> None:
    method, model = make_method("lade", context(COUNTS), penalty=0.5, regulariser=0.05), Linear()
    step = micro_step(0, {"original": (random_images(6), LABELS.tolist())})
    z = model(method.context.input_builder.plain(step.batches["original"].images[0]))
    plain = balanced_softmax(z, torch.from_numpy(LABELS), torch.from_numpy(np.log(PRIOR + EPSILON))).mean()
    expected = plain + 0.05 * regulariser(z, 0.5)
    torch.testing.assert_close(loss_of(method, model, step).loss, expected, rtol=1e-6, atol=0)


def test_a_rank_of_padding_only_adds_nothing_and_has_no_gradient() -> None:
    z = logits(slice(0, 2))
    no = torch.zeros(2, dtype=torch.float64)
    prior, total = torch.from_numpy(PRIOR), logits().detach().logsumexp(dim=0)
    labels = torch.from_numpy(LABELS[:2])
    share = lade_regulariser(z, labels, no, no, prior, 0.1, 6, lambda row: torch.stack([row, total]))
    share.backward()
    assert share.item() == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_mixed_images_and_micro_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="mean logit of each class"):
        make_method("lade", context(COUNTS), mixing="mixup")
    assert not make_method("lade", context(COUNTS)).objective.accumulates
    with pytest.raises(ValueError, match="penalty"):
        make_method("lade", context(COUNTS), penalty=-1.0)


def test_pc_softmax_trains_like_cross_entropy_and_ranks_without_the_prior() -> None:
    method, plain = make_method("pc_softmax", context(COUNTS)), make_method("vanilla", context(COUNTS))
    model, same = (m.build_model(ModelOptions(width=4), seed=0).eval() for m in (method, plain))
    step = micro_step(0, {"original": (random_images(6), LABELS.tolist())})
    torch.testing.assert_close(loss_of(method, model, step).loss, loss_of(plain, same, step).loss)
    images = method.context.input_builder.plain(random_images(3)[0])
    expected = same(images) - torch.from_numpy(np.log(PRIOR)).float()
    torch.testing.assert_close(method.objective.eval_logits(model, images), expected)
    assert "log_prior" in model.state_dict()
