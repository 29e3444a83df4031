"""Captured steps: replaying one trains like running it, whatever changes between the steps.

There is no CUDA graph without a GPU. `RecordedCapture` has its semantics on the CPU: it writes down the operations of a
step with the tensors that they took, and a replay runs the same operations on the same memory. So whatever a step gets
from the host while it is captured is frozen, as it would be in a CUDA graph.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.helpers.runs import options
from tests.helpers.short_runs import make_run
from tests.helpers.steps import context, make_method, micro_step, random_images
from tests.train.test_host_sync import CASES, run_of
from train.loop.step_graphs import WARM_UP_STEPS, StepGraphs, make_capture
from train.methods.base import MicroStep
from train.run import Run

STEPS = 7  # of epochs of 4, the last of which is short: three full ones come first, the fourth is captured
CAPTURED = [name for name, changes in CASES.items() if not str(changes["method.name"]).startswith("metasaug")]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for function, args, kwargs, recorded in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tree_flatten(recorded)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.detach().copy_(new)


class RecordedCapture:
    """Capturing runs the step, as it cannot be written down otherwise; the caller's replay then comes one too late.

    Hence everything that the step changes is put back to where it was.
    """

    def __init__(self, state: Callable[[], list[Tensor]]) -> None:
        self._state = state
        self.captured = 0

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor:
        return run()

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        before = [tensor.clone() for tensor in self._state()]
        recorder = _Recorder()
        with recorder:
            result = run()
        with torch.no_grad():
            for tensor, value in zip(self._state(), before, strict=True):
                tensor.copy_(value)
        self.captured += 1

        def replay() -> None:
            with torch.no_grad():
                recorder.replay()

        return replay, result


def state_of(run: Run) -> list[Tensor]:
    """Everything that a step changes: weights, buffers, momenta, what the method keeps."""
    trainer = run.trainer
    momenta = [state["momentum_buffer"] for state in trainer.parts.optimizer.state.values()]
    return [*trainer.bare_model.state_dict().values(), *momenta, *run.method.objective.state_dict().values()]


def trained(run: Run, steps: int) -> list[Tensor]:
    """The state after some steps, whose learning rates differ from epoch to epoch."""
    if run.accelerator.device.type == "cpu":
        # As on a GPU: the rate of captured steps is a tensor on the device, and the fused optimizer reads it there.
        for group in run.trainer.parts.optimizer.param_groups:
            group |= {"lr": torch.tensor(float(group["lr"])), "fused": True, "foreach": False}
    with run.make_loader() as loader:
        for loaded in islice(loader, steps):
            run.trainer._set_lr(loaded.whole.epoch)
            run.trainer.train_step(loaded)
    return [tensor.clone() for tensor in state_of(run)]


@pytest.mark.parametrize("case", CAPTURED)
def test_replayed_steps_train_like_steps_that_are_run(case: str, data: Path, tmp_path: Path) -> None:
    straight, run = (run_of(case, data, tmp_path, tmp_path, "cpu") for _ in range(2))
    capture = RecordedCapture(lambda: state_of(run))
    run.trainer._take_step = StepGraphs(run.trainer._device_step, capture)
    expected, found = trained(straight, STEPS), trained(run, STEPS)
    assert capture.captured >= 1
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(straight.trainer._epoch_meter.totals(), run.trainer._epoch_meter.totals())


def test_a_value_of_the_host_would_be_frozen() -> None:
    """The recording shows what it is meant to show."""
    weights = torch.zeros(2)
    numbers = iter(range(100))

    def take_step(steps: Any) -> Tensor:
        weights.add_(next(numbers))
        return weights.sum()

    graphs = StepGraphs(take_step, RecordedCapture(lambda: [weights]))
    step = MicroStep({}, {"any": torch.zeros(1)}, 1)
    for _ in range(WARM_UP_STEPS + 3):
        graphs([step])
    # 0 + 1 + 2 by hand, then 3 captured, and 3 again where 4 and 5 were due
    assert weights.tolist() == [3 + 3 * 3] * 2


def test_each_kind_of_step_is_captured_after_its_own_warm_up_and_gives_its_own_result() -> None:
    method = make_method("cmo", context((4, 2, 1)))

    def step(batch: int, value: int) -> MicroStep:
        images = tuple(torch.full_like(view, value) for view in random_images(batch))
        return micro_step(0, {"original": (images, [0] * batch)}).of(method)

    def take_step(steps: Any) -> Tensor:
        return steps[0].batches["original"].images[0].double().mean()[None]

    capture = RecordedCapture(list)
    graphs = StepGraphs(take_step, capture)
    for number in range(2 * WARM_UP_STEPS + 4):
        batch = (6, 4)[number % 2]
        assert graphs([step(batch, number)]).item() == number
        assert capture.captured == max(0, min(2, number - 2 * WARM_UP_STEPS + 1))


@pytest.mark.parametrize(
    ("device", "processes", "name", "message"),
    [
        ("cpu", 1, "cmo", "needs a GPU, but this run is on the cpu"),
        ("cuda", 2, "cmo", "a single process, but this run has 2; use compile"),
        ("cuda", 1, "metasaug", "the number of classes in a batch.* varies; use compile"),
    ],
)
def test_what_cannot_be_captured_is_refused_with_a_reason(device: str, processes: int, name: str, message: str) -> None:
    method = make_method(name, context((4, 2, 1)))
    with pytest.raises(ValueError, match=message):
        make_capture(torch.device(device), processes, method)


def test_a_run_without_a_gpu_refuses_graphs(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cuda_graphs needs a GPU"):
        make_run(options(data, tmp_path / "run", cuda_graphs="true"))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CAPTURED)
def test_replayed_steps_train_alike_on_a_gpu(case: str, data: Path, tmp_path: Path) -> None:
    runs = [
        run_of(case, data, tmp_path, tmp_path, "cuda", cuda_graphs=graphs, deterministic="true")
        for graphs in ("true", "false")
    ]
    captured, straight = (trained(run, STEPS) for run in runs)
    for one, other in zip(captured, straight, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
