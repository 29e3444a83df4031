"""The compiled operations do what the eager ones do, to the last grey level, and are compiled a few times only."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch

from pipeline.augmentation import compiled
from pipeline.augmentation.augment import augment
from pipeline.views.operations import Kind, PlannedOperation, single_argument

SLOW = pytest.mark.slow
# The kinds of the images of a batch, in turn, and the range of their argument: one case for each compiled function,
# and brightness alone, for which the eager code has a function of its own.
CASES: dict[str, tuple[tuple[Kind, ...], float, float]] = {
    "brightness": ((Kind.BRIGHTNESS,), 0.1, 1.9),
    "enhance": ((Kind.COLOR, Kind.CONTRAST, Kind.BRIGHTNESS), 0.1, 1.9),
    "hue": ((Kind.HUE,), -0.5, 0.5),
    "blur": ((Kind.BLUR,), 1.1, 1.99),
}


def batch(case: str, count: int, height: int, width: int) -> tuple[torch.Tensor, PlannedOperation]:
    kinds, low, high = CASES[case]
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    images[0, :, : width // 2] = images[0, :, : width // 2, :1]  # grey
    operation = single_argument(np.resize(np.array(kinds), count), rng.uniform(low, high, count))
    return torch.from_numpy(images), operation


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has the CPU compile up to the graph and run that eagerly, and counts the graphs."""
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(str(graph))
        return graph.forward

    monkeypatch.setattr(compiled, "COMPILED_DEVICES", {"cpu"})
    monkeypatch.setattr(compiled, "_compiled", cache(partial(torch.compile, dynamic=False, backend=backend)))
    return graphs


def allowed_share(case: str) -> float:
    """Of values that may differ: before torch 2.15 compiled code rounds some angles of the hue (2.11: 7 in 10,000)."""
    return 1e-3 if case == "hue" and torch.__version__ < "2.15" else 0.0


def check_compiled_equals_eager(case: str, shapes: list[tuple[int, int, int]], patch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    batches = [batch(case, *shape) for shape in shapes]
    eager = [augment(images, (operation,)) for images, operation in batches]
    patch.setattr(compiled, "COMPILED_DEVICES", {"cpu"})
    for (images, operation), expected in zip(batches, eager, strict=True):
        assert not torch.equal(expected, images)
        differs = (augment(images, (operation,)) != expected).float().mean()
        assert differs <= allowed_share(case), tuple(images.shape)


@pytest.mark.parametrize("case", CASES)
def test_compiled_equals_eager(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiled_equals_eager(case, [(5, 40, 33), (2, 40, 33), (7, 40, 33)], monkeypatch)


@pytest.mark.parametrize("case", ["brightness", "enhance", *(pytest.param(c, marks=SLOW) for c in ("hue", "blur"))])
def test_compiled_equals_eager_for_one_image_and_other_sizes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiled_equals_eager(case, [(1, 20, 24), (3, 64, 16)], monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_batches_of_any_size_share_one_compilation(case: str, compilations: list[str]) -> None:
    torch._dynamo.reset()
    for count in (3, 2, 9, 4, 31, 16, 5):
        images, operation = batch(case, count, 16, 16)
        augment(images, (operation,))
    assert len(compilations) == 1
    for count in (1, 1):
        images, operation = batch("brightness" if case == "enhance" else case, count, 16, 16)
        augment(images, (operation,))
    for count in (6, 12):
        images, operation = batch(case, count, 16, 24)
        augment(images, (operation,))
    assert len(compilations) == 3
    assert not torch._dynamo.utils.counters["graph_break"]


def test_nothing_is_compiled_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_compiled", None)
    for case in CASES:
        images, operation = batch(case, 2, 8, 8)
        augment(images, (operation,))


def test_without_a_compiler_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    @compiled.compiled_on_gpu
    def never_compiled(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.cos() + 41.25

    monkeypatch.setattr(compiled, "COMPILED_DEVICES", {"cpu"})
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(RuntimeError, match=r"never_compiled was not compiled for cpu: .*TORCH_COMPILE_DISABLE=1"):
        never_compiled(torch.ones(3, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_gpu_equals_cpu(case: str) -> None:
    for shape in ((5, 224, 224), (64, 224, 224), (1, 224, 224), (3, 97, 80)):
        images, operation = batch(case, *shape)
        found = augment(images.cuda(), (operation,)).cpu()
        levels = (found.int() - augment(images, (operation,)).int()).abs()
        # A hue is a whole number from 0 to 255: rounded otherwise, it moves a channel by up to 6 levels.
        rounded_otherwise = allowed_share(case)
        assert levels.max() <= (6 if rounded_otherwise else 1), shape
        assert (levels > 0).float().mean() <= max(rounded_otherwise, 1e-4), shape
