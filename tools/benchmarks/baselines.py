"""The alternative loaders that a user would write, each as its documentation recommends.

Every loader is an endless iterator of (images, labels), on the CPU unless it takes a device. Also for evaluation, where
only the views differ: the order does not affect the cost of an image.
"""

import gc
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler
from torchvision import io, transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from pipeline.views.presets import IMAGENET_STATISTICS
from shards.reader import ShardSet

Batches = Iterator[tuple[Tensor, Tensor]]

_JITTER = (0.4, 0.4, 0.4)
_ENDLESS = 10**8  # samples; more than any benchmark reads
_FFCV_EPOCHS = 20  # FFCV permutes all its indices at once, so they have to fit into memory


class Recipe(Enum):
    """The processing of an image; all results have 224 x 224 pixels."""

    JITTERED = "random crop, flip, colour jitter"
    CROPPED = "random crop, flip"
    EVALUATED = "shorter side to 256, centre"


def before_forking() -> None:
    """Collect garbage: workers abort that collect a DALI pipeline of their parent's, which has CUDA handles."""
    gc.collect()


def pil_transform(recipe: Recipe) -> Any:
    """The official transform: PIL to normalised float32 (3, 224, 224)."""
    steps: list[Any] = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    if recipe is Recipe.EVALUATED:
        steps = [transforms.Resize(256), transforms.CenterCrop(224)]
    if recipe is Recipe.JITTERED:
        steps.append(transforms.ColorJitter(*_JITTER))
    normalize = transforms.Normalize(IMAGENET_STATISTICS.mean, IMAGENET_STATISTICS.std)
    return transforms.Compose([*steps, transforms.ToTensor(), normalize])


def pil(folder: Path, batch_size: int, workers: int, recipe: Recipe, weighted: bool = False) -> Batches:
    """torch's DataLoader, PIL, torchvision's v1 transforms, as in the official CMO code.

    weighted: draw samples with the weight 1 / n_class, as its second loader does.
    """
    dataset = ImageFolder(str(folder), pil_transform(recipe))
    if weighted:
        labels = torch.tensor(dataset.targets)
        weights = 1.0 / torch.bincount(labels)[labels]
        sampler: Any = WeightedRandomSampler(weights.tolist(), 10**6)
    else:
        sampler = RandomSampler(dataset, replacement=True, num_samples=_ENDLESS)
    before_forking()
    return iter(DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers))


def tensors(folder: Path, batch_size: int, workers: int, recipe: Recipe) -> Batches:
    """torch's DataLoader, torchvision's JPEG decoder and transforms v2 on uint8 tensors; left uint8, as ours are."""
    steps: list[Any] = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()]
    if recipe is Recipe.EVALUATED:
        steps = [v2.Resize(256, antialias=True), v2.CenterCrop(224)]
    if recipe is Recipe.JITTERED:
        steps.append(v2.ColorJitter(*_JITTER))
    dataset = ImageFolder(str(folder), v2.Compose(steps), loader=_decoded_tensor)
    sampler = RandomSampler(dataset, replacement=True, num_samples=_ENDLESS)
    before_forking()
    return iter(DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers))


def _decoded_tensor(path: str) -> Tensor:
    return io.decode_jpeg(io.read_file(path), mode=io.ImageReadMode.RGB)


def webdataset(shards: ShardSet, batch_size: int, workers: int, recipe: Recipe) -> Batches:
    """webdataset's WebDataset and WebLoader with the official transform; shuffles in a buffer of 1000."""
    import webdataset as wds

    tars = [str(shards.folder / shard.file) for shard in shards.info.shards]
    dataset = (
        wds.WebDataset(tars, shardshuffle=len(tars), seed=0)
        .repeat()
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(pil_transform(recipe), int)
        .batched(batch_size)
    )
    before_forking()
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))


def dali_webdataset(
    shards: ShardSet, batch_size: int, workers: int, recipe: Recipe, device: torch.device, regions: bool = True
) -> Batches:
    """DALI's own reader, its random crop decoder and its colour operator; shuffles in a buffer of 1000.

    regions: False decodes whole images and crops afterwards, in case the region decoder does not work.
    """
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

    tars = [shards.folder / shard.file for shard in shards.info.shards]
    on_cpu = device.type == "cpu"

    @pipeline_def(batch_size=batch_size, num_threads=workers, device_id=None if on_cpu else 0, seed=1)
    def graph() -> Any:
        members: Any = fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=1000,
        )
        encoded, label = members
        decoder = {"device": "cpu" if on_cpu else "mixed", "output_type": types.RGB}
        if recipe is Recipe.EVALUATED:
            image = fn.resize(fn.decoders.image(encoded, **decoder), resize_shorter=256, antialias=True)
            return fn.crop(image, crop=[224, 224]), fn.pad(label, fill_value=32)
        if regions:
            image = fn.decoders.image_random_crop(encoded, random_area=[0.08, 1.0], **decoder)
            image = fn.resize(image, size=[224, 224], antialias=True)
        else:
            image = fn.decoders.image(encoded, **decoder)
            image = fn.random_resized_crop(image, size=[224, 224], random_area=[0.08, 1.0], antialias=True)
        if recipe is Recipe.JITTERED:
            low, high = 1 - _JITTER[0], 1 + _JITTER[0]
            names = ("brightness", "contrast", "saturation")
            image = fn.color_twist(image, **{name: fn.random.uniform(range=[low, high]) for name in names})
        # Labels arrive as text, one length per sample.
        return fn.flip(image, horizontal=fn.random.coin_flip()), fn.pad(label, fill_value=32)

    pipeline: Any = graph()
    pipeline.build()
    while True:
        images, labels = pipeline.run()
        yield to_torch_tensor(images.as_tensor(), copy=False), to_torch_tensor(labels.as_tensor(), copy=False)


def spdl(folder: Path, batch_size: int, workers: int, recipe: Recipe) -> Batches:
    """SPDL: FFmpeg decodes, crops, resizes and flips in threads of one process; colour jitter by transforms v2.

    The threads decode whole images, as its decoder offers no regions.
    """
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    dataset = ImageFolder(str(folder))
    rng = np.random.default_rng(0)
    jittered = v2.ColorJitter(*_JITTER)

    def samples() -> Iterator[tuple[str, int, str]]:
        while True:
            for index in rng.permutation(len(dataset.samples)).tolist():
                evaluated = recipe is Recipe.EVALUATED
                yield (*dataset.samples[index], _EVALUATION_FILTER if evaluated else _random_crop_filter(rng))

    def load(sample: tuple[str, int, str]) -> tuple[Tensor, int]:
        path, label, description = sample
        image = spdl.io.to_torch(spdl.io.load_image(path, filter_desc=description)).permute(2, 0, 1)
        return (jittered(image) if recipe is Recipe.JITTERED else image), label

    def collate(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        return torch.stack([image for image, _ in batch]), torch.tensor([label for _, label in batch])

    builder = PipelineBuilder().add_source(samples()).pipe(load, concurrency=workers).aggregate(batch_size)
    pipeline = builder.pipe(collate).add_sink(2).build(num_threads=workers)
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


_EVALUATION_FILTER = "scale=256:256:force_original_aspect_ratio=increase:flags=bilinear,crop=224:224,format=rgb24"


def _random_crop_filter(rng: np.random.Generator) -> str:
    """FFmpeg's filter for a random resized crop to 224 pixels and a random flip."""
    area, ratio = rng.uniform(0.08, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    left, top = rng.random(2)
    width, height = (f"sqrt(iw*ih*{area:.4f}{sign}{ratio:.4f})" for sign in "*/")
    crop = f"crop='min(iw,{width})':'min(ih,{height})':'(iw-ow)*{left:.4f}':'(ih-oh)*{top:.4f}'"
    return f"{crop},scale=224:224:flags=bilinear{',hflip' if rng.random() < 0.5 else ''},format=rgb24"


def write_ffcv(folder: Path, file: Path, workers: int, mode: str) -> None:
    """The class folders in FFCV's own format. Its writer takes pixels, not files: every image is re-encoded.

    mode: "jpg", or "raw" for pixels, which take six times the space and no decoding.
    """
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    # Quality 95, as for the generated images: about as many bytes to decode as for the other loaders.
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=95), "label": IntField()}
    DatasetWriter(str(file), fields, num_workers=workers).from_indexed_dataset(ImageFolder(str(folder)))


def ffcv_loader(file: Path, batch_size: int, workers: int, recipe: Recipe) -> Any:
    """FFCV's loader with its decoder for a crop, for `ffcv`; compiles for 20 to 40 seconds before its first batch.

    Its jitter applies brightness, contrast and saturation in this order; the others randomise the order.
    """
    from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.reader import Reader
    from ffcv.transforms import RandomBrightness, RandomContrast, RandomHorizontalFlip, RandomSaturation, ToTensor

    steps: list[Any] = [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip()]
    if recipe is Recipe.EVALUATED:
        steps = [CenterCropRGBImageDecoder((224, 224), ratio=224 / 256)]
    if recipe is Recipe.JITTERED:
        operations = (RandomBrightness, RandomContrast, RandomSaturation)
        steps += [operation(strength, 1.0) for operation, strength in zip(operations, _JITTER, strict=True)]
    return Loader(
        str(file),
        batch_size,
        num_workers=workers,
        order=OrderOption.RANDOM,
        indices=np.tile(np.arange(int(Reader(str(file)).num_samples), dtype=np.uint64), _FFCV_EPOCHS),
        pipelines={"image": [*steps, ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )


def ffcv(loader: Any) -> Batches:
    """Batches of an `ffcv_loader`: uint8 (B, 224, 224, 3), left so, as ours are."""
    batches = iter(loader)
    try:
        yield from batches
    finally:
        # Its thread keeps itself alive and would run during the next measurement.
        batches.close()
        batches.join()
