"""BBN against the numbers of its official code: combiner, streams, batch norm of two passes, three steps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.plan import Plan
from tests.helpers.shard_sets import UnreadableSet
from tests.helpers.steps import context, loss_of, make_method, micro_step, random_images
from tests.helpers.vectors import wave
from train.methods.bbn import BBN
from train.models.bbn import TwoBranchNetwork, build_two_branch_network
from train.models.build import ModelOptions, build_model


def share(epochs: int, epoch: int, share_epochs: int | None = None) -> float:
    """λ of an epoch counted from one."""
    method = make_method("bbn", context((9, 4, 2), epochs, for_epochs=epochs), share_epochs=share_epochs).objective
    assert isinstance(method, BBN)
    return method.share(epoch - 1)


@pytest.mark.parametrize(
    ("epochs", "share_epochs", "expected"),
    [
        (200, None, {1: 1.0, 2: 0.999975, 100: 0.754975, 160: 0.367975, 200: 0.009975}),
        (180, 200, {2: 0.999975, 90: 0.801975, 180: 0.198975}),
        (90, 100, {2: 0.9999, 90: 0.2079}),
    ],
)
def test_weight_moves_from_branch_to_branch(epochs: int, share_epochs: int | None, expected: dict[int, float]) -> None:
    for epoch, value in expected.items():
        assert share(epochs, epoch, share_epochs) == pytest.approx(value, abs=1e-12)


def test_a_shorter_run_moves_weight_faster() -> None:
    method = make_method("bbn", context((9, 4, 2), 18, for_epochs=180), share_epochs=200).objective
    assert isinstance(method, BBN)
    assert method.share(9) == pytest.approx(1 - (90 / 200) ** 2)


class Trunk(nn.Module):
    """Vectors instead of images: a trunk, and two blocks whose output has one location."""

    def __init__(self, trunk: nn.Module, cb: nn.Module, rb: nn.Module) -> None:
        super().__init__()
        self.shared, self.cb_block, self.rb_block = (
            trunk,
            *(nn.Sequential(b, nn.Unflatten(1, (-1, 1, 1))) for b in (cb, rb)),
        )

    def trunk(self, x: Tensor) -> Tensor:
        return self.shared(x)


def array(*arguments: object) -> Tensor:
    return torch.from_numpy(wave(*arguments))  # type: ignore[arg-type]


def network(trunk: Trunk, weight: Tensor, bias: Tensor) -> TwoBranchNetwork:
    made = TwoBranchNetwork(trunk, weight.shape[1] // 2, len(weight)).double()
    made.classifier.weight.data, made.classifier.bias.data = weight, bias
    return made


def loss(logits: Tensor, lam: float, uniform: list[int], drawn: list[int]) -> Tensor:
    losses = (F.cross_entropy(logits, torch.tensor(labels)) for labels in (uniform, drawn))
    return sum(w * one for w, one in zip((lam, 1 - lam), losses, strict=True))  # type: ignore[return-value]


def test_combined_logits_and_their_gradient() -> None:
    first = array("sin", (2, 3), (0.7, 1.1), 0.4).requires_grad_()
    second = array("cos", (2, 3), (0.9, 0.6), 0.2).requires_grad_()
    trunk = Trunk(nn.Identity(), nn.Identity(), nn.Identity())
    model = network(trunk, array("sin", (4, 6), (0.8, 0.5), 1.1), array("cos", (4,), (1.3,), 0.3, 0.2))
    lam = share(200, 120)
    assert lam == pytest.approx(0.645975)
    z = model(first, second, lam)
    np.testing.assert_allclose(z[0].detach(), (2.8274868, 0.86894414, -1.6116753, -2.9479769), rtol=1e-6)
    value = loss(z, lam, [0, 1], [3, 2])
    assert value.item() == pytest.approx(1.8489805, rel=1e-6)
    value.backward()
    assert first.grad is not None and second.grad is not None and model.classifier.bias.grad is not None
    np.testing.assert_allclose(first.grad[0], (0.28316188, 0.36609385, 0.35939328), rtol=1e-6)
    np.testing.assert_allclose(second.grad[0], (0.14506857, 0.057654687, -0.043875069), rtol=1e-6)
    bias = (0.36871386, -0.067230549, -0.13247567, -0.16900765)
    np.testing.assert_allclose(model.classifier.bias.grad, bias, rtol=1e-6)
    tested = model(first, second, 0.5)[0].detach()
    np.testing.assert_allclose(tested, (2.4391563, 0.26841152, -2.060135, -2.9723342), rtol=1e-6)


def test_classes_of_the_second_stream_are_reversed() -> None:
    counts = (500, 100, 20, 5)
    method = make_method("bbn", context(counts)).objective
    plan = Plan({"train": UnreadableSet(counts)}, method.streams(), None, 0, 100, 200, method.drop_last)
    assert plan.steps_per_epoch == 6
    labels = [plan.stream_step("reversed", epoch, step).labels for epoch in range(40) for step in range(6)]
    shares = np.bincount(np.concatenate(labels), minlength=4) / 24_000
    expected = (0.0076335878, 0.038167939, 0.19083969, 0.76335878)
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / 24_000))
    ids = np.concatenate([plan.stream_step("original", 0, step).sample_ids for step in range(6)])
    assert len(set(ids.tolist())) == 600


def test_the_statistics_of_the_trunk_move_twice_the_uniform_batch_first() -> None:
    norm = nn.BatchNorm1d(2)
    model = network(Trunk(norm, nn.Identity(), nn.Identity()), torch.zeros(3, 4).double(), torch.zeros(3).double())
    model(array("sin", (3, 2), (0.7, 1.1), 0.4), array("cos", (3, 2), (0.9, 0.6), 0.2), 0.3)
    np.testing.assert_allclose(norm.running_mean, (0.1015514, 0.051723004), rtol=1e-6)
    np.testing.assert_allclose(norm.running_var, (0.86871995, 0.88444119), rtol=1e-6)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None).double()
    made.weight.data = weight
    if bias is not None:
        made.bias.data = bias
    return made


def test_three_epochs_of_one_step() -> None:
    norm = nn.BatchNorm1d(3)
    trunk = nn.Sequential(linear(array("sin", (3, 2), (0.8, 1.7), 0.3)), norm, nn.Tanh())
    cb = linear(array("cos", (2, 3), (0.6, 1.1), 0.5), array("sin", (2,), (0.4,), 0.1))
    rb = linear(array("cos", (2, 3), (0.9, 0.7), 1.4), array("sin", (2,), (0.7,), 0.6))
    blocks = Trunk(trunk, nn.Sequential(cb, nn.Tanh()), nn.Sequential(rb, nn.Tanh()))
    model = network(blocks, array("sin", (4, 4), (0.9, 0.7), 1.2), array("cos", (4,), (1.3,), 0.0, 0.2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.01, nesterov=True)
    labels = (([0, 1, 0], [3, 2, 3]), ([1, 0, 2], [3, 3, 1]), ([0, 0, 1], [2, 3, 3]))
    for epoch, (own, expected) in enumerate(zip(labels, (1.2398277, 1.8978057, 1.7548689), strict=True), start=1):
        optimizer.zero_grad()
        x = array("sin", (3, 2), (1.3, 0.7), 0.2 + 0.9 * epoch), array("cos", (3, 2), (0.5, 1.6), 0.4 + 0.9 * epoch)
        lam = share(3, epoch)
        value = loss(model(*x, lam), lam, *own)
        assert value.item() == pytest.approx(expected, rel=1e-6)
        value.backward()
        optimizer.step()
        if epoch == 1:  # weight decay alone
            np.testing.assert_allclose(rb.weight[0].detach(), (0.16964421, -0.5038869, -0.94043212), rtol=1e-6)
    np.testing.assert_allclose(rb.weight[0].detach(), (0.14426799, -0.52425724, -0.95058641), rtol=1e-6)
    np.testing.assert_allclose(norm.running_mean, (-0.17329232, -0.2048098, -0.12398813), rtol=1e-6)
    np.testing.assert_allclose(norm.running_var, (0.71733659, 0.72687654, 0.62221804), rtol=1e-6)
    tested = model.eval()(array("sin", (2, 2), (1.3, 0.7), 0.2))[0].detach()
    np.testing.assert_allclose(tested, (1.7622612, 0.8518356, -0.58193941, -1.6755355), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [("resnet32", 100, 550_388), ("resnet32", 10, 538_778), ("resnet50", 8142, 61_328_398)],
)
def test_sizes_and_names_of_the_networks(name: str, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = build_two_branch_network(ModelOptions(name), classes, seed=0)
    assert sum(p.numel() for p in model.parameters()) == parameters
    names = set(model.state_dict())
    assert {"backbone.conv1.weight", "backbone.cb_block.bn1.weight", "backbone.rb_block.conv2.weight"} < names
    assert {"classifier.weight", "classifier.bias"} < names
    last = "layer3.4" if name == "resnet32" else "layer4.2"
    assert not any(last in one for one in names)


def test_branches_start_with_weights_of_their_own() -> None:
    model = build_two_branch_network(ModelOptions("resnet26"), 3, seed=0)
    state = model.state_dict()
    assert not torch.equal(state["backbone.cb_block.conv1.weight"], state["backbone.rb_block.conv1.weight"])
    images = torch.randn(2, 3, 64, 64)
    model.eval()
    torch.testing.assert_close(model(images), model(images, images, 0.5))


def test_the_backbone_alone_is_a_plain_network_of_twice_the_features() -> None:
    model = build_model(ModelOptions("resnet32-bbn"), 100, "linear", seed=0)
    assert sum(p.numel() for p in model.parameters()) == 550_388
    assert sum(p.numel() for n, p in model.named_parameters() if "linear" not in n) == 537_488


def test_both_terms_are_means_over_the_global_batch() -> None:
    method = make_method("bbn", context((9, 4, 2))).objective
    model = method.build_model(ModelOptions(width=4), seed=0).eval()
    streams = {
        "original": (random_images(7), [0, 2, 1, 1, 0, 0, 1]),
        "reversed": (random_images(7, seed=1), [2, 2, 1, 2, 0, 2, 1]),
    }
    whole = micro_step(120, streams)
    images = [method.context.input_builder.plain(streams[name][0][0]) for name in streams]
    lam = 1 - (120 / 200) ** 2
    expected = loss(model(*images, lam), lam, *(streams[name][1] for name in streams))
    torch.testing.assert_close(loss_of(method, model, whole).loss, expected)
    parts = [loss_of(method, model, micro_step(120, streams, part=part, parts=3)).loss for part in range(3)]
    torch.testing.assert_close(torch.stack(parts).sum(), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"name": "resnet18-stem32"}, "BBN splits resnet32"), ({"name": "resnet50", "pretrained": True}, "scratch")],
)
def test_other_backbones_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_two_branch_network(ModelOptions(**values), 3, seed=0)  # type: ignore[arg-type]


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="share_epochs"):
        make_method("bbn", context((9, 4, 2)), share_epochs=0)
