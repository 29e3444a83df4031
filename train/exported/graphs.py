"""The network as a graph: ONNX and torch.export, with dynamic batch size, with or without image preparation."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.executors.crop_resize import cubic
from pipeline.views.presets import Preset
from pipeline.views.view import ResizeCenterCrop, View
from train.exported.checking import TOLERANCE, check_equal, random_images
from train.exported.network import ExportedNetwork

Inside = Literal["nothing", "normalise", "resize"]
ONNX, TORCH_EXPORT = "model.onnx", "model.pt2"
_OPSET = 18  # the first with antialiasing in Resize
# A different order of summation can round a pixel half-way between two grey levels the other way.
_TOLERANCE_RESIZED = 100 * TOLERANCE


class Prepared(nn.Module):
    """The network on uint8 images (batch, height, width, 3), normalised inside, and optionally resized.

    Resizing uses floats and rounds to whole grey levels; Pillow uses integers, so results occasionally differ by one
    level.

    Args:
        resize: accept images of any height and width, as in the preset's evaluation; otherwise only the preset's size.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, preset: Preset, resize: bool):
        super().__init__()
        self.network, self.view, self.resize = network, preset.evaluation, resize
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (preset.normalization.mean, preset.normalization.std)
        )
        self.register_buffer("mean", 255 * mean)
        self.register_buffer("scale", 1 / (255 * std))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float()
        if self.resize:
            pixels = self._resized(pixels)
        return self.network((pixels - self.mean) * self.scale)

    def _resized(self, pixels: Tensor) -> Tensor:
        """The evaluation view: see pipeline/views/view.py, whose rounding of sizes and offsets this repeats.

        Implemented as products with matrices of filter weights, because the sizes of a resized image are unknown in
        the graph. First columns, then rows, each rounded, as in Pillow.
        """
        rows, columns = torch.arange(pixels.shape[2]), torch.arange(pixels.shape[3])
        short = torch.minimum(rows[-1], columns[-1]) + 1
        across, down = (_filter_weights(axis, short, self.view) for axis in (columns, rows))
        return _rounded(down @ _rounded(pixels @ across.T))


def _filter_weights(axis: Tensor, short: Tensor, view: View) -> Tensor:
    """float32 (size, side): the weight of each pixel of a row in each pixel of the view, antialiased.

    Args:
        axis: int64 (side,), 0, 1, …: the pixels of a row or column. short: length of the shorter side, int64 ().
    """
    geometry = view.geometry
    size, side = geometry.size, axis[-1] + 1
    offset: Tensor | int = 0
    resized = torch.full((), size, dtype=torch.int64)
    if isinstance(geometry, ResizeCenterCrop):
        resized = geometry.resize * side // short
        spare = resized - size
        offset = spare // 2 + (spare % 2) * (spare // 2 % 2)  # half, rounded half to even
    scale = side.double() / resized.double()
    centers = (torch.arange(size) + offset + 0.5) * scale
    distances = (axis + 0.5 - centers[:, None]).abs() / scale.clamp(min=1.0)
    weights = cubic(distances) if view.resampling == "bicubic" else (1 - distances).clamp(min=0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _rounded(pixels: Tensor) -> Tensor:
    """Round to whole grey levels, halves up as in Pillow."""
    return (pixels + 0.5).floor().clamp(0, 255)


def with_preparation(network: ExportedNetwork, preset: Preset, inside: Inside) -> tuple[nn.Module, list[Tensor]]:
    """The module to export, and input batches: the first is used for exporting, all for comparing."""
    size, chance = preset.evaluation.size, torch.Generator().manual_seed(0)
    if inside == "nothing":
        return network, [random_images(size), random_images(size, batch=1)]
    shapes = [(3, size, size), (1, size, size)]
    if inside == "resize":
        shapes = [(3, size + 37, size + 101), (1, 2 * size + 5, size + 2), (2, size - 7, size - 7)]
    batches = [torch.randint(0, 256, (*shape, 3), generator=chance).to(torch.uint8) for shape in shapes]
    return Prepared(network, preset, resize=inside == "resize").eval(), batches


def write_onnx(path: Path, network: nn.Module, batches: Sequence[Tensor], inside: Inside) -> float:
    """Write ONNX with a dynamic batch size and compare with onnxruntime on all batches; returns the largest difference.

    Args:
        network, batches: from `with_preparation`.
        inside: with "resize" height and width are dynamic too.

    Raises:
        ModuleNotFoundError: the extra "export" is not installed.
        CheckFailedError: onnxruntime's output differs from torch's.
    """
    onnxruntime = _required("onnxruntime")
    _required("onnxscript")
    program = torch.onnx.export(
        network,
        (batches[0],),
        dynamo=True,
        opset_version=_OPSET,
        dynamic_shapes=_free(inside),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None, "torch.onnx.export returns a program with dynamo=True"
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])

    return _difference("onnxruntime", network, run, batches, inside)


def write_torch_export(path: Path, network: nn.Module, batches: Sequence[Tensor], inside: Inside) -> float:
    """Write a torch.export program likewise, load it again and compare."""
    program = torch.export.export(network, (batches[0],), dynamic_shapes=_free(inside))
    # Inlines the contexts that keep a head in float32; torch 2.15 could not save those of Causal Norm.
    program = program.run_decompositions({})
    torch.export.save(program, path)
    return _difference("torch.export", network, torch.export.load(path).module(), batches, inside)


def _difference(
    what: str, network: nn.Module, exported: Callable[[Tensor], Tensor], batches: Sequence[Tensor], inside: Inside
) -> float:
    tolerance = _TOLERANCE_RESIZED if inside == "resize" else TOLERANCE
    return max(check_equal(what, network, exported, batch, tolerance) for batch in batches)


def _free(inside: Inside) -> tuple[dict[int, Any]]:
    sides = ("height", "width") if inside == "resize" else ()
    free = {0: torch.export.Dim("batch", min=1)}
    return (free | {axis: torch.export.Dim(side, min=8) for axis, side in enumerate(sides, start=1)},)


def _required(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"ONNX needs {name}: pip install 'longtail[export]'") from error
