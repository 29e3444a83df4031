"""Modules, heads and what is tuned, against the numbers of the released code (float64) and published counts."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from train.losses import functions
from train.losses.criterion import Criterion, Loss, Rule
from train.losses.lade import lade_regulariser
from train.models.heads import ScaledCosine, class_means, set_class_vectors, text_vectors
from train.models.tuning import (
    BesideMLP,
    LowRank,
    Tuning,
    automatic_size,
    fold_lora,
    insert,
    set_modes,
    tuned_names,
)


def wave(
    function: str, shape: tuple[int, ...], steps: tuple[float, ...], offset: float = 0.0, scale: float = 1.0
) -> Tensor:
    """scale · function(offset + Σ steps_k i_k) at every index i, float64."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    phase = offset + sum(step * axis for step, axis in zip(steps, axes, strict=True))
    return scale * getattr(torch, function)(phase)


COUNTS = [100, 50, 20, 10, 5]
PRIOR = functions.log_prior(COUNTS).double()
LOGITS = wave("sin", (3, 5), (0.7, 1.9), 0.4, 2)
LABELS = torch.tensor([4, 1, 0])


def near(found: Tensor, expected: list[float] | float) -> None:
    torch.testing.assert_close(found.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-7)


@torch.no_grad()
def fill(module: BesideMLP, offset: float) -> None:
    """The parameters of the vectors."""
    width, size = module.up.weight.shape
    module.double()
    module.norm.weight.copy_(1 + wave("sin", (width,), (0.37,), offset, 0.3))
    module.norm.bias.copy_(wave("sin", (width,), (0.37,), offset + 1, 0.3))
    module.down.weight.copy_(wave("sin", (size, width), (0.37, 0.11), offset + 2, 0.3))
    module.down.bias.copy_(wave("sin", (size,), (0.37,), offset + 3, 0.3))
    module.up.weight.copy_(wave("sin", (width, size), (0.37, 0.11), offset + 4, 0.3))
    module.up.bias.copy_(wave("sin", (width,), (0.37,), offset + 5, 0.3))
    if module.scale is not None:
        module.scale.fill_(0.7)


@torch.no_grad()
def fill_low_rank(module: LowRank, down: float, up: float) -> None:
    module.double()
    module.down.copy_(wave("sin", tuple(module.down.shape), (0.37, 0.11), down, 0.3))
    module.up.copy_(wave("sin", tuple(module.up.shape), (0.37, 0.11), up, 0.3))


def test_logit_adjusted_loss_and_its_gradient() -> None:
    z = LOGITS.clone().requires_grad_()
    loss = functions.balanced_softmax(z, LABELS, PRIOR).mean()
    loss.backward()
    near(loss, 1.69817565)
    assert z.grad is not None
    near(z.grad[0], [0.149239702, 0.15216726, 0.00239678345, 0.00475790271, -0.308561648])
    near(z.grad.norm(), 0.559119563)
    near(functions.balanced_softmax(LOGITS, LABELS, 0.5 * PRIOR).mean(), 1.34707905)
    near(functions.cross_entropy(LOGITS, LABELS).mean(), 1.27757965)


def test_ldam_on_logits_that_carry_the_scale() -> None:
    margins = functions.ldam_margins(COUNTS).double()
    near(functions.ldam(LOGITS / 25, LABELS, margins, 25).mean(), 9.29381673)


@pytest.mark.parametrize(
    ("loss", "rule", "expected"),
    [
        ("ce", "none", 1.27757965),
        ("focal", "none", 0.776257927),
        ("ce", "reweight", 0.856186465),
        ("ce", "inverse", 0.855911391),
        ("la", "none", 1.69817565),
    ],
)
def test_losses_and_class_weights(loss: Loss, rule: Rule, expected: float) -> None:
    """The weights as the loss of a step has them: divided by their sum over the batch."""
    criterion = Criterion(loss, rule, np.array(COUNTS), 0, torch.device("cpu"))
    rows = criterion.per_sample(LOGITS, LABELS)
    near((torch.from_numpy(criterion.coefficients(0, LABELS.numpy())) * rows).sum(), expected)


def test_lade() -> None:
    prior = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    present = torch.ones(3, dtype=torch.float64)
    regulariser = lade_regulariser(LOGITS, LABELS, prior[LABELS], present, prior, penalty=0.1, batch_size=3)
    near(functions.balanced_softmax(LOGITS, LABELS, PRIOR).mean() + 0.1 * regulariser, 1.64682122)


def test_cosine_head_and_its_gradients() -> None:
    head = ScaledCosine(4, 5).double()
    with torch.no_grad():
        head.weight.copy_(wave("sin", (5, 4), (0.5, 0.9), 0.2))
    x = wave("cos", (2, 4), (0.8, 0.3), 0.5).requires_grad_()
    z = head(x)
    near(z[0], [19.5065751, 22.5069275, 19.2800344, 12.3288911, 3.15592552])
    loss = functions.balanced_softmax(z, torch.tensor([4, 1]), PRIOR).mean()
    loss.backward()
    near(loss, 20.6094789)
    assert head.weight.grad is not None and x.grad is not None
    near(head.weight.grad[0], [0.511192424, 0.0341858148, -0.144478173, -0.00272216098])
    near(x.grad.norm(), 19.0624694)


def test_modules_alone() -> None:
    x = wave("cos", (2, 6), (0.8, 0.5), 0.2)
    module = BesideMLP(6, 2, scaled=True)
    fill(module, 0.1)
    expected = [-0.347079287, -0.329782705, -0.267851581, -0.169668002, -0.0485206547, 0.0791937356]
    near(module(x)[0], expected)
    low_rank = LowRank(6, 6, 2)
    fill_low_rank(low_rank, 0.1, 1.1)
    expected = [-0.0598486216, -0.0616503056, -0.0627067728, -0.0630052528, -0.0625421377, -0.0613230255]
    near(low_rank(x)[0], expected)


class OneBlock(nn.Module):
    """timm's block, filled by the formula of the vectors."""

    def __init__(self, layer_scale: bool) -> None:
        super().__init__()
        self.block = Block(8, 2, mlp_ratio=2, qkv_bias=True, init_values=1.0 if layer_scale else None).double()
        b = self.block
        for norm in (b.norm1, b.norm2):
            norm.eps = 1e-6
        parts = (b.norm1, b.attn.qkv, b.attn.proj, b.norm2, b.mlp.fc1, b.mlp.fc2)
        tensors = [getattr(part, name) for part in parts for name in ("weight", "bias")]
        with torch.no_grad():
            for k, tensor in enumerate(tensors):
                steps = (0.37, 0.11)[: tensor.ndim]
                tensor.copy_(wave("sin", tuple(tensor.shape), steps, 0.1 + k, 0.3) + (1.0 if k in (0, 6) else 0.0))
            if layer_scale:
                b.ls1.gamma.copy_(wave("sin", (8,), (0.37,), 12.1, 0.3))
                b.ls2.gamma.copy_(wave("sin", (8,), (0.37,), 13.1, 0.3))

    def token(self) -> Tensor:
        return self.block(wave("cos", (3, 8), (0.9, 0.5), 0.3)[None])[0, 0]


FROZEN = [0.596288864, 0.277377522, -0.155357682, -0.596354285, -0.931760873, -1.06810772, -0.956727691, -0.607740319]
BLOCK_VECTORS = {
    "adaptformer": (
        [0.519986358, 0.297827326, -0.0409233546, -0.403423582, -0.686446061, -0.803611012, -0.708847466, -0.410026009]
    ),
    "adapter": (
        [0.586468251, 0.376647983, 0.0395680619, -0.332155542, -0.634047192, -0.777173256, -0.711949049, -0.442247146]
    ),
    "lora": (
        [0.855735921, 0.540842111, 0.0764657424, -0.427548237, -0.848819309, -1.0822564, -1.06605164, -0.797443064]
    ),
}


def fill_inserted(model: OneBlock, kind: str) -> None:
    if kind == "lora":
        fill_low_rank(model.block.attn.lora.q, 20.1, 21.1)
        fill_low_rank(model.block.attn.lora.v, 22.1, 23.1)
    else:
        fill(getattr(model.block, kind), 20.1)


@pytest.mark.parametrize("kind", BLOCK_VECTORS)
def test_modules_in_a_block_of_timm(kind: str) -> None:
    model = OneBlock(layer_scale=False)
    near(model.token(), FROZEN)
    insert(model, Tuning(kind, size=2), classes=10)  # type: ignore[arg-type]
    model.double()
    near(model.token(), FROZEN)
    fill_inserted(model, kind)
    near(model.token(), BLOCK_VECTORS[kind])
    # A moving average of the weights copies the model, and the hooks must follow the copy.
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    near(copied.token(), BLOCK_VECTORS[kind])


def test_adaptformer_is_added_outside_of_layer_scale() -> None:
    model = OneBlock(layer_scale=True)
    insert(model, Tuning("adaptformer", size=2), classes=10)
    fill_inserted(model, "adaptformer")
    expected = [0.796812125, 0.588579787, 0.237567613, -0.155403311, -0.491775455, -0.697255796, -0.733542252]
    near(model.token(), [*expected, -0.600589117])


def test_folded_lora_is_the_same_function() -> None:
    model = OneBlock(layer_scale=False)
    insert(model, Tuning("lora", size=2), classes=10)
    fill_inserted(model, "lora")
    fold_lora(model)
    near(model.token(), BLOCK_VECTORS["lora"])
    assert not [name for name, _ in model.named_parameters() if "lora" in name]


EVA = {"embed_dim": 64, "depth": 2, "num_heads": 2}
BIASES_OF_THEIR_OWN = {
    "beit": ("beit_base_patch16_224", {**EVA, "img_size": 32}),
    "eva": ("eva_giant_patch14_224", {**EVA, "img_size": 28}),
    "eva02": ("eva02_tiny_patch14_224", {**EVA, "img_size": 28}),
    "dinov3 with biases": ("vit_small_patch16_dinov3_qkvb", {**EVA, "img_size": 32}),
}


@pytest.mark.parametrize("family", BIASES_OF_THEIR_OWN)
def test_lora_is_refused_where_queries_and_values_have_biases_of_their_own(family: str) -> None:
    """Such layers take qkv's matrix and never call it, so that LoRA would train and change nothing; adapters go."""
    name, sizes = BIASES_OF_THEIR_OWN[family]
    model = timm.create_model(name, num_classes=5, **sizes).eval()
    with pytest.raises(ValueError, match="no fused qkv layer to add it to; choose adaptformer, adapter"):
        insert(model, Tuning("lora"), 5)
    x = torch.randn(1, 3, sizes["img_size"], sizes["img_size"])
    before = model(x)
    insert(model, Tuning("adaptformer"), 5)
    assert torch.equal(model.eval()(x), before)
    with torch.no_grad():
        for block in model.blocks:
            block.adaptformer.up.weight.normal_()
    assert not torch.allclose(model(x), before)


def test_lora_under_rotary_positions_is_that_of_its_matrix() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_dinov3", num_classes=5, img_size=32, init_values=1.0, **EVA)
    model.double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    before = model(x)
    insert(model, Tuning("lora", size=4), 5)
    model.double().eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.lora.q.up.normal_()
            block.attn.lora.v.up.normal_()
    tuned = model(x)
    fold_lora(model)
    assert not model.blocks[0].attn.qkv._forward_hooks
    assert not torch.allclose(tuned, before)
    torch.testing.assert_close(model(x), tuned)


def test_class_means_and_text_vectors() -> None:
    features = wave("sin", (6, 4), (0.9, 0.4), 0.2)
    means, known = class_means(features, torch.tensor([0, 2, 1, 0, 2, 0]), 4)
    near(means[0], [-0.635119385, -0.586427266, -0.445151176, -0.233595503])
    assert known.tolist() == [True, True, True, False]
    head = ScaledCosine(4, 4).double()
    random_row = head.weight[3].clone()
    set_class_vectors(head, means, known)
    near(head.weight[0], [-0.635119385, -0.586427266, -0.445151176, -0.233595503])
    assert torch.equal(head.weight[3], random_row)
    text = wave("sin", (3, 5), (0.9, 0.4), 0.2)
    vectors = text_vectors(text, wave("cos", (5, 4), (0.7, 0.3), 0.1), wave("sin", (6, 4), (0.5, 0.8), 0.3))
    near(vectors[0], [-0.570662737, -0.425337864, -0.175875448, 0.116647412, 0.380610917, 0.551387595])


def test_automatic_sizes() -> None:
    shapes = [(10, 12), (100, 12), (365, 12), (1000, 12), (8142, 12), (1000, 24)]
    assert [automatic_size(*shape, 2) for shape in shapes] == [1, 4, 8, 32, 256, 16]
    assert [automatic_size(*shape, 4) for shape in shapes] == [1, 2, 4, 16, 128, 8]


def counted(name: str, tuning: Tuning, classes: int) -> int:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=classes)
        insert(model, tuning, classes)
    sizes = dict(model.named_parameters())
    return sum(sizes[tuned].numel() for tuned in tuned_names(model, tuning))


def test_published_parameter_counts() -> None:
    vit = "vit_base_patch16_224"
    for classes, expected in ((100, 101_436), (365, 175_212), (1000, 617_868), (8142, 4_749_324)):
        assert counted(vit, Tuning("adaptformer"), classes) == expected
    assert counted(vit, Tuning("bias"), 10) == 101_376
    assert counted(vit, Tuning("norm"), 10) == 36_864
    assert counted(vit, Tuning("full"), 10) == 85_054_464
    assert counted(vit, Tuning("last_k", last_k=3), 10) == 85_054_464 // 4
    assert counted("resnet50", Tuning("norm"), 10) == 52_992
    assert counted("resnet50", Tuning("bias"), 10) == 26_496


FAMILIES = {
    "plain": ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}),
    "clip": ("vit_base_patch32_clip_quickgelu_224", {"img_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 2}),
    "dinov2 with registers": (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 28, "depth": 2, "embed_dim": 64, "num_heads": 2},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "embed_dim": 24, "num_heads": (1, 2, 2, 4), "depths": (1, 1, 1, 1)},
    ),
    "convnext": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}),
    "resnet": ("resnet18", {}),
    "efficientnet": ("tf_efficientnet_lite0", {}),
}
HAS_BLOCKS = ("plain", "clip", "dinov2 with registers", "swin")


def small(family: str) -> nn.Module:
    name, extra = FAMILIES[family]
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **extra)


def pictures(family: str) -> Tensor:
    side = FAMILIES[family][1].get("img_size", 32)
    return wave("sin", (2, 3, side, side), (1.0, 2.0, 0.3, 0.7)).float()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["head", "bias", "norm", "last_k", "full", "adaptformer", "adapter", "lora"])
def test_every_kind_starts_as_the_identity_and_trains_what_it_says(family: str, kind: str) -> None:
    model = small(family)
    tuning = Tuning(kind, last_k=1 if kind == "last_k" else None)  # type: ignore[arg-type]
    before = model.eval()(pictures(family))
    if kind in ("adaptformer", "adapter", "lora") and family not in HAS_BLOCKS:
        with pytest.raises(ValueError, match="choose one of head, bias, norm, last_k, full"):
            insert(model, tuning, 5)
        return
    insert(model, tuning, 5)
    assert torch.equal(model.eval()(pictures(family)), before)
    tuned = tuned_names(model, tuning)
    assert bool(tuned) == (kind != "head")
    around = ("patch_embed", "cls_token", "pos_embed", "norm.", "stem", "conv1")
    assert not any(name.startswith(around) for name in tuned)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tuned)
    set_modes(model)
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name not in tuned}
    output = model(pictures(family))
    if tuned:
        F.cross_entropy(output, torch.tensor([0, 1])).backward()
        with torch.no_grad():
            for name in tuned:
                parameter = model.get_parameter(name)
                assert parameter.grad is not None, name
                parameter -= 0.1 * parameter.grad
        assert not torch.equal(model.eval()(pictures(family)), before)
    after = model.state_dict()
    moved = [name for name, value in frozen.items() if not torch.equal(after[name], value)]
    # Tuned batch norm follows its statistics.
    assert all("running" in name or "num_batches" in name for name in moved) and (not moved or kind != "bias")


def test_no_gradient_flows_below_the_first_tuned_block() -> None:
    model = small("plain")
    tuning = Tuning("adaptformer", last_k=1)
    insert(model, tuning, 5)
    tuned = tuned_names(model, tuning)
    assert all(name.startswith("blocks.1.") for name in tuned)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tuned)
    needed: list[bool] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: needed.append(output.requires_grad))
    model(pictures("plain"))
    assert needed == [False, True]
