"""The source of data sets that come as pixel arrays: encoded as lossless PNG when a sample is fetched."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.source import JSON, Fetcher, SampleRef

_PNG_COMPRESSION = 6


class PixelSource:
    """A `Source` of images in memory, uint8 (N, height, width, 3); the location of a sample is its row."""

    def __init__(
        self,
        name: str,
        split: str,
        class_names: list[str],
        images: NDArray[np.uint8],
        samples: Sequence[SampleRef],
        options: dict[str, JSON],
        inputs: dict[str, dict[str, JSON]],
    ) -> None:
        self.name, self.split, self.class_names, self.samples = name, split, class_names, samples
        self.options, self.inputs = options, inputs
        self.left_out: dict[str, str] = {}
        self._images = images

    def estimated_bytes(self) -> int | None:
        return None  # PNG may take more or less than the pixels

    def open(self) -> Fetcher:
        return _PixelFetcher(self._images)

    def close(self) -> None:
        pass


class _PixelFetcher:
    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images

    def fetch(self, ref: SampleRef) -> bytes:
        assert isinstance(ref.location, int)
        buffer = io.BytesIO()
        # A fixed level: the same pixels give the same bytes in every build.
        Image.fromarray(self._images[ref.location]).save(buffer, "PNG", compress_level=_PNG_COMPRESSION)
        return buffer.getvalue()

    def will_fetch(self, ref: SampleRef) -> None:
        pass

    def close(self) -> None:
        pass
