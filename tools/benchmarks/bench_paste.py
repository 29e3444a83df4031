"""Pasting and normalising a batch: the fused pass against separate operations, and on a GPU against a plain copy."""

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

from pipeline.mix_rule import cut_box
from pipeline.views.presets import IMAGENET_STATISTICS
from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import Target, Variant, compare, rate_of
from train.inputs.input_builder import InputBuilder

NAIVE = "float, normalise both, copy the box"
REFERENCE = "torch reference"
KERNEL = "fused kernel"
COPY = "copy of as many bytes"
# Several times the L2 cache of an H200 (50 MB), so nothing is cached.
_ROTATED_BYTES = 600_000_000


def run(bench: Bench) -> Report:
    """Rates refer to the minimum traffic: each pixel read once as uint8 and written once in the input's dtype."""
    on_gpu = bench.device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    batch_size = 256 if on_gpu else 16
    shape = (batch_size, 224, 224, 3)
    moved = batch_size * 224 * 224 * 3 * (1 + dtype.itemsize)
    settings = {"batch_size": batch_size, "type": str(dtype), "rounds": bench.scale.rounds}
    report = Report("paste", {"images": "random", "size": "224 x 224"}, settings, saved_to=bench.saved_to)

    buffers = [_inputs(shape, bench.device) for _ in range(-(-_ROTATED_BYTES // moved) if on_gpu else 2)]
    input_builder = InputBuilder.create(IMAGENET_STATISTICS, bench.device)

    def variant(paste: Callable[..., object]) -> Variant:
        upcoming = cycle(buffers)

        def action() -> object:
            with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=on_gpu):
                return paste(*next(upcoming))

        return lambda: rate_of(action, 200 if on_gpu else 3, moved / 1e9, bench.device, warm_up=2)

    variants = {
        NAIVE: variant(lambda a, b, boxes: naive(a, b, boxes, input_builder, dtype)),
        REFERENCE: variant(input_builder.paste_reference),
    }
    if on_gpu:
        copied = [torch.empty(moved // 2, dtype=torch.uint8, device=bench.device) for _ in range(2 * len(buffers))]
        upcoming = cycle(zip(copied[::2], copied[1::2], strict=True))

        def copy() -> None:
            source, destination = next(upcoming)
            destination.copy_(source)

        variants[KERNEL] = variant(input_builder.paste)
        variants[COPY] = lambda: rate_of(copy, 200, moved / 1e9, bench.device, warm_up=2)
    table = compare("assembling a pasted batch", "GB/s", variants, bench.scale.rounds)
    report.add(table)
    if on_gpu:
        report.targets = [
            Target("kernel / copy of the same bytes", table.ratio(KERNEL, COPY), 0.9),
            Target("kernel / separate operations", table.ratio(KERNEL, NAIVE), 8.0),
        ]
    return report


def _inputs(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    background, foreground = (torch.randint(0, 256, shape, dtype=torch.uint8, device=device) for _ in range(2))
    box = cut_box(shape[1], shape[2], 0.5, 100, 120, "floor")
    return background, foreground, torch.tensor([box] * shape[0], dtype=torch.int32, device=device)


def naive(
    background: Tensor, foreground: Tensor, boxes: Tensor, input_builder: InputBuilder, dtype: torch.dtype
) -> Tensor:
    """Separate operations on float32 NCHW, as in training code that gets its images from `ToTensor`."""

    def normalised(images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).contiguous().float().div(255)
        mean, std = input_builder.mean / 255, 1 / (255 * input_builder.scale)
        return (pixels - mean[:, None, None]) / std[:, None, None]

    result, pasted = normalised(background), normalised(foreground)
    top, left, bottom, right = boxes[0].tolist()
    result[:, :, top:bottom, left:right] = pasted[:, :, top:bottom, left:right]
    return result.to(dtype)
