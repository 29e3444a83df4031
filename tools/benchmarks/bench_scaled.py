"""Would decoding large photographs at half scale pay off? Pillow's draft mode, whole and region decoding, one thread.

A crop of at least twice the output may be decoded at 1/2, 1/4 or 1/8 scale: the decoder then skips most of the inverse
transform. It cannot skip entropy decoding, which is most of the work.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from pipeline.plan import Plan, Stream
from pipeline.sampling import Shuffled
from pipeline.views.presets import CROP_224
from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import Table, Variant, compare, rate_of

WHOLE, SCALED, HALF = "whole image", "scaled where the crop allows it", "every image at half scale"


def run(bench: Bench) -> Report:
    """Images per second that one thread decodes; `crops_of_twice_the_output` is the share that could be scaled."""
    report = Report("scaled", bench.describe(), bench.settings(), saved_to=bench.saved_to)
    plan = Plan({"train": bench.shards}, (Stream("original", Shuffled(), (CROP_224,)),), None, 0, 64, 1)
    request = plan.stream_step("original", 0, 0)
    encoded = [bytes(bench.shards.encoded(sample)) for sample in request.sample_ids]
    factors = _factors(request.views[0].region, CROP_224.size)
    report.notes["crops_of_twice_the_output"] = round(float((factors > 1).mean()), 3)
    report.add(_compare(bench, encoded, factors))
    return report


def _factors(regions: np.ndarray, size: int) -> np.ndarray:
    """Each image's largest reduction, 1, 2, 4 or 8, that keeps its crop (top, left, height, width) above `size`."""
    room = regions[:, 2:].min(axis=1) // size
    return 2 ** np.clip(np.floor(np.log2(np.maximum(room, 1))), 0, 3).astype(np.int64)


def _compare(bench: Bench, encoded: list[bytes], factors: np.ndarray) -> Table:
    def rate(factor_of: Callable[[int], int]) -> Variant:
        def decode() -> None:
            for i, data in enumerate(encoded):
                _decode(data, factor_of(i))

        return lambda: rate_of(decode, bench.scale.batches, len(encoded), bench.device)

    variants = {WHOLE: rate(lambda i: 1), SCALED: rate(lambda i: int(factors[i])), HALF: rate(lambda i: 2)}
    return compare("Pillow, one thread", "images/s", variants, bench.scale.rounds)


def _decode(data: bytes, factor: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        if factor > 1:
            image.draft("RGB", (image.width // factor, image.height // factor))
        return np.asarray(image.convert("RGB"))
