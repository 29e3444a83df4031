"""The input of the network: paste, mix, normalise; and the GPU kernel, in Triton's interpreter and on a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.views.presets import IMAGENET_STATISTICS
from train.inputs.input_builder import InputBuilder

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
# Height, width and boxes of a batch (all of `boxes_of` where none is named): odd sizes, several tiles, a batch of one.
SHAPES = [(1, 1, ["full"]), (5, 7, None), (33, 21, ["inside"]), (65, 32, None), (7, 224, ["inside", "one pixel"])]
IMAGES_COMPARED = 2 * (1 + 6 + 1 + 6 + 2)  # in float32 and in bfloat16


def random_images(generator: torch.Generator, batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)


def boxes_of(height: int, width: int) -> dict[str, list[int]]:
    """Boxes that touch nothing, everything, an edge, or a vertical line inside a vector of 16 values."""
    return {
        "empty at the corner": [0, 0, 0, 0],
        "empty inside": [height // 2, width // 2, height // 2, width],
        "empty, full height": [0, width // 2, height, width // 2],
        "full": [0, 0, height, width],
        "inside": [height // 4, width // 4, height - height // 4, width - width // 5],
        "one pixel": [height - 1, width - 1, height, width],
    }


def normalised_by_hand(image: np.ndarray) -> np.ndarray:
    """(3, height, width) in double precision, from the definition."""
    mean, std = np.array(IMAGENET_STATISTICS.mean), np.array(IMAGENET_STATISTICS.std)
    return ((image / 255.0 - mean) / std).transpose(2, 0, 1)


def test_paste_takes_each_pixel_from_the_right_batch_and_normalises_it() -> None:
    generator = torch.Generator().manual_seed(0)
    background, foreground = random_images(generator, 6, 12, 19), random_images(generator, 6, 12, 19)
    boxes = torch.tensor(list(boxes_of(12, 19).values()), dtype=torch.int32)
    result = InputBuilder.create(IMAGENET_STATISTICS, CPU).paste(background, foreground, boxes)
    for i, (top, left, bottom, right) in enumerate(boxes.tolist()):
        pasted = background[i].numpy().copy()
        pasted[top:bottom, left:right] = foreground[i, top:bottom, left:right].numpy()
        np.testing.assert_allclose(result[i].numpy(), normalised_by_hand(pasted), rtol=0, atol=2e-6)


def test_plain_normalises_and_is_channels_last() -> None:
    images = random_images(torch.Generator().manual_seed(1), 2, 9, 8)
    result = InputBuilder.create(IMAGENET_STATISTICS, CPU).plain(images)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(result[1].numpy(), normalised_by_hand(images[1].numpy()), rtol=0, atol=2e-6)


def test_mixup_blends_by_lam() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = random_images(generator, 2, 4, 4), random_images(generator, 2, 4, 4)
    result = InputBuilder.create(IMAGENET_STATISTICS, CPU).mixup(first, second, torch.tensor([0.25, 1.0]))
    blend = 0.25 * first[0].numpy().astype(float) + 0.75 * second[0].numpy()
    np.testing.assert_allclose(result[0].numpy(), normalised_by_hand(blend), rtol=0, atol=3e-6)
    np.testing.assert_allclose(result[1].numpy(), normalised_by_hand(first[1].numpy()), rtol=0, atol=3e-6)


def test_inside_autocast_the_input_has_the_type_of_the_first_layer() -> None:
    images = random_images(torch.Generator().manual_seed(3), 1, 4, 4)
    input_builder = InputBuilder.create(IMAGENET_STATISTICS, CPU)
    outside = input_builder.plain(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = input_builder.plain(images)
        with torch.autocast("cpu", enabled=False):
            assert input_builder.plain(images).dtype == torch.float32
    assert inside.dtype == torch.bfloat16
    assert torch.equal(inside, outside.bfloat16())


def check_kernel(device: str) -> int:
    """The kernel against the torch reference for all shapes, boxes and types; returns the number of images compared."""
    from train.inputs.paste_kernel import paste_and_normalise

    input_builder = InputBuilder.create(IMAGENET_STATISTICS, torch.device(device))
    generator = torch.Generator().manual_seed(4)
    compared = 0
    for height, width, box_names in SHAPES:
        every = boxes_of(height, width)
        boxes = torch.tensor([every[name] for name in box_names or every], dtype=torch.int32, device=device)
        background = random_images(generator, len(boxes), height, width).to(device)
        foreground = random_images(generator, len(boxes), height, width).to(device)
        expected = input_builder.paste_reference(background, foreground, boxes)
        for dtype in (torch.float32, torch.bfloat16):
            found = paste_and_normalise(background, foreground, boxes, input_builder.mean, input_builder.scale, dtype)
            what = f"{tuple(background.shape)}, {dtype}"
            assert found.dtype == dtype, what
            assert found.is_contiguous(memory_format=torch.channels_last), what
            if dtype == torch.float32:
                assert torch.equal(found, expected), what
            else:
                steps = found.view(torch.int16).int() - expected.bfloat16().view(torch.int16).int()
                assert steps.abs().max() <= 1, what  # one unit in the last place: signs never differ
            compared += len(boxes)
    return compared


def test_kernel_equals_the_reference_in_tritons_interpreter() -> None:
    pytest.importorskip("triton", reason="torch came without Triton")
    # Triton reads the variable when it is imported, so another process.
    code = "from tests.train.test_assemble import check_kernel; print('compared', check_kernel('cpu'))"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["compared", str(IMAGES_COMPARED)]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("background", torch.zeros((2, 4, 4, 3)), "background: torch.float32"),
        ("foreground", torch.zeros((2, 4, 5, 3), dtype=torch.uint8), "foreground: torch.uint8"),
        ("foreground", torch.zeros((2, 3, 4, 4), dtype=torch.uint8).permute(0, 2, 3, 1), "contiguous uint8"),
        ("boxes", torch.zeros((2, 4), dtype=torch.int64), "boxes: torch.int64"),
        ("boxes", torch.zeros((1, 4), dtype=torch.int32), "boxes: torch.int32"),
    ],
)
def test_kernel_refuses_what_it_would_misread(argument: str, value: Any, message: str) -> None:
    pytest.importorskip("triton", reason="torch came without Triton")
    from train.inputs.paste_kernel import paste_and_normalise

    images = torch.zeros((2, 4, 4, 3), dtype=torch.uint8)
    arguments = {"background": images, "foreground": images, "boxes": torch.zeros((2, 4), dtype=torch.int32)}
    constants = {"mean": torch.zeros(3), "scale": torch.ones(3), "dtype": torch.float32}
    with pytest.raises(ValueError, match=message):
        paste_and_normalise(**{**arguments, argument: value}, **constants)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernel_equals_the_reference_on_a_gpu() -> None:
    assert check_kernel("cuda") == IMAGES_COMPARED
