"""Whole training steps as CUDA graphs: captured once per kind of step, replayed for all steps of that kind.

A small network's kernels are shorter than their launches: with ResNet-32 at batch 128 the device waits for the host.
A graph launches a whole step at once, from the paste to the optimizer. It reads and writes the same memory each time,
so a step's images, labels and values are copied to where the graph expects them. A loss gets only tensors
(`train.methods.base.MicroStep`), so steps whose tensors have the same names and shapes are of the same kind.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from train.methods.base import MicroStep
from train.methods.method import Method

# Steps of each kind that run one operation after the other before one is captured: they allocate momenta, choose
# convolution algorithms and compile kernels, which must not happen while capturing.
WARM_UP_STEPS = 3

TakeStep = Callable[[Sequence[MicroStep]], Tensor]


class Capture(Protocol):
    """Runs functions on a device, or captures what they launch there."""

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor:
        """Run a function that may be captured later."""

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """A replay of the function, not run yet, and the tensor to which it will write its result."""


class CudaCapture:
    """CUDA graphs of one device; they share a memory pool, since only one runs at a time."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Callable[[], Tensor]) -> Tensor:
        """Runs on the capture stream, so libraries have their workspaces and autograd its state."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = run()
        current.wait_stream(self._stream)
        return result

    def capture(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See `Capture.capture`."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads, such as DALI's, keep allocating and waiting meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = run()
        return graph.replay, result


def make_capture(device: torch.device, processes: int, method: Method) -> CudaCapture:
    """The capture for the option `cuda_graphs`.

    Raises:
        ValueError: the steps of such a run cannot be captured.
    """
    if device.type != "cuda":
        raise ValueError(f"cuda_graphs needs a GPU, but this run is on the {device.type}; set it to false")
    if processes > 1:
        raise ValueError(
            f"cuda_graphs captures steps of a single process, but this run has {processes}; use compile instead"
        )
    if method.objective.not_captured_because is not None:
        raise ValueError(
            f"cuda_graphs cannot capture a step of this method: {method.objective.not_captured_because}; use compile"
        )
    return CudaCapture(device)


class StepGraphs:
    """Takes steps: the first of each kind eagerly, later ones by replaying a captured step.

    Args:
        take_step: maps this rank's micro-batches to a tensor of numbers; its effects (weights, momenta, buffers) are
            on the device, and it keeps no state on the host.
    """

    def __init__(self, take_step: TakeStep, capture: Capture):
        self._take_step, self._capture = take_step, capture
        self._taken: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}

    def __call__(self, steps: Sequence[MicroStep]) -> Tensor:
        """Take a step. The result is overwritten by the next one of its kind."""
        kind = _kind(steps)
        self._taken[kind] += 1
        if self._taken[kind] <= WARM_UP_STEPS:
            return self._capture.warm_up(lambda: self._take_step(steps))
        if kind not in self._graphs:
            self._graphs[kind] = _Graph(self._take_step, steps, self._capture)
        return self._graphs[kind].replay(steps)


class _Graph:
    """A captured step and the memory that it reads."""

    def __init__(self, take_step: TakeStep, steps: Sequence[MicroStep], capture: Capture):
        own = [_with_tensors(step, [tensor.clone() for tensor in _tensors(step)]) for step in steps]
        self._inputs = [tensor for step in own for tensor in _tensors(step)]
        self._replay, self._result = capture.capture(lambda: take_step(own))

    def replay(self, steps: Sequence[MicroStep]) -> Tensor:
        torch._foreach_copy_(self._inputs, [tensor for step in steps for tensor in _tensors(step)])
        self._replay()
        return self._result


def _tensors(step: MicroStep) -> list[Tensor]:
    """All tensors of a micro-batch, ordered by name."""
    batches = [step.batches[name] for name in sorted(step.batches)]
    values = [step.values[name] for name in sorted(step.values)]
    return [tensor for batch in batches for tensor in (*batch.images, batch.labels, batch.weights)] + values


def _with_tensors(step: MicroStep, tensors: list[Tensor]) -> MicroStep:
    """The same micro-batch with other tensors, in the order of `_tensors`."""
    rest = iter(tensors)
    batches = {}
    for name in sorted(step.batches):
        images = tuple(next(rest) for _ in step.batches[name].images)
        batches[name] = replace(step.batches[name], images=images, labels=next(rest), weights=next(rest))
    return replace(step, batches=batches, values={name: next(rest) for name in sorted(step.values)})


def _kind(steps: Sequence[MicroStep]) -> Hashable:
    """A key that is equal for steps of the same graph."""
    return tuple(
        (
            step.global_batch_size,
            tuple((name, len(step.batches[name].images)) for name in sorted(step.batches)),
            tuple(sorted(step.values)),
            tuple((tensor.shape, tensor.dtype) for tensor in _tensors(step)),
        )
        for step in steps
    )
