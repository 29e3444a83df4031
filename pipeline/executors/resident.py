"""Small images stay decoded on the device: repeatedly decoding tiny files would starve it."""

import io
import logging
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image

from pipeline.augmentation.augment import augment_views
from pipeline.executors.bad_samples import BadSamples
from pipeline.executors.crop_resize import crop_resize_flip
from pipeline.executors.executor import FinishedBatch
from pipeline.executors.reference import DECODE_ERRORS
from pipeline.plan import StreamPlan
from pipeline.transfer import to_device
from shards.reader import CorruptSampleError, ShardSet

logger = logging.getLogger(__name__)

LARGEST_SIDE = 64
LARGEST_BYTES = 2 * 2**30
"""Size limit of decoded pixels: CIFAR has 0.15 GB; a million images of 32 pixels have 3 GB and go through DALI."""


@dataclass(frozen=True)
class _Decoded:
    """images: uint8 (N, height, width, 3); faults: sample id → why its image is missing (black)."""

    images: torch.Tensor
    faults: dict[int, str]


# A run's streams and the evaluations after every epoch share one decoded copy per data set and device.
_decoded_sets: WeakKeyDictionary[ShardSet, dict[torch.device, _Decoded]] = WeakKeyDictionary()


def fits_resident(dataset: ShardSet) -> bool:
    """Whether all images have one size of at most 64 x 64 pixels, and take at most 2 GiB decoded."""
    if len(dataset) * 3 > LARGEST_BYTES:
        return False
    width, height = int(dataset.index["width"][0]), int(dataset.index["height"][0])
    return (
        max(width, height) <= LARGEST_SIDE
        and len(dataset) * width * height * 3 <= LARGEST_BYTES
        and bool((dataset.index["width"] == width).all())
        and bool((dataset.index["height"] == height).all())
    )


class ResidentExecutor:
    """Gathers planned samples from the decoded set, and crops, resizes and flips them on the device."""

    def __init__(self, dataset: ShardSet, device: torch.device, decode_threads: int, bad_samples: BadSamples) -> None:
        """Decodes the whole set, unless an executor on this device already has. ValueError for unsuitable sets."""
        if not fits_resident(dataset):
            raise ValueError(
                f"{dataset.path}: the resident executor needs images of one size, "
                f"at most {LARGEST_SIDE} pixels per side and {LARGEST_BYTES >> 30} GiB decoded; use the executor 'dali'"
            )
        by_device = _decoded_sets.setdefault(dataset, {})
        if device not in by_device:
            decoded = _decode_all(dataset, decode_threads)
            by_device[device] = _Decoded(decoded.images.to(device), decoded.faults)
        for sample, reason in sorted(by_device[device].faults.items()):
            bad_samples.add(sample, reason)
        self._images = by_device[device].images
        self._bad_samples = bad_samples

    def run(self, requests: Iterator[StreamPlan]) -> Generator[FinishedBatch]:
        """See `Executor.run`."""
        for request in requests:
            request = self._bad_samples.replaced(request)
            ids = to_device(torch.from_numpy(request.sample_ids), self._images.device)
            images = self._images[ids]
            views = [crop_resize_flip(images, view) for view in request.views]
            yield request, augment_views(views, request.views)

    def close(self) -> None:
        """Nothing to stop; the decoded images live as long as the data set."""


def _decode_all(dataset: ShardSet, threads: int) -> _Decoded:
    started = time.perf_counter()
    first = dataset.index[0]
    images = np.zeros((len(dataset), int(first["height"]), int(first["width"]), 3), dtype=np.uint8)
    faults: dict[int, str] = {}

    def decode(sample: int) -> None:
        try:
            dataset.check_sample(sample)
            with Image.open(io.BytesIO(dataset.encoded(sample).data)) as image:
                images[sample] = np.asarray(image.convert("RGB"))
        except CorruptSampleError as error:
            faults[sample] = str(error)
        except DECODE_ERRORS as error:
            faults[sample] = f"sample {sample} ({dataset.source_of(sample)}) cannot be decoded: {error}"

    dataset.will_read_all()
    tenth = max(len(dataset) // 10, 10_000)
    with ThreadPoolExecutor(threads) as pool:
        for done, _ in enumerate(pool.map(decode, range(len(dataset))), start=1):
            if done % tenth == 0:
                logger.info("decoded %d of %d images", done, len(dataset))
    logger.info(
        "decoded %d images of %s once, %.0f MB, in %.1f s",
        len(dataset),
        dataset.path,
        images.nbytes / 1e6,
        time.perf_counter() - started,
    )
    return _Decoded(torch.from_numpy(images), faults)
