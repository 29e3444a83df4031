"""Shards are read unchanged by the webdataset library and by DALI's own reader."""

from __future__ import annotations

import numpy as np
import pytest

from shards.build import BuildOptions, build_shard_set
from shards.reader import ShardSet
from tests.helpers.making import folder_source, picture, pictures


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    root = tmp_path_factory.mktemp("built")
    files = {**pictures(18), **{f"1/{i}.png": picture(i, file_format="PNG") for i in range(4)}}
    build_shard_set(folder_source(root / "original", files), root / "set", BuildOptions(samples_per_shard=8))
    return ShardSet.open(root / "set")


def tars(shards: ShardSet) -> list[str]:
    return [str(shards.path / shard.file) for shard in shards.info.shards]


def test_webdataset_reads_the_same_samples_in_the_same_order(shards: ShardSet) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(tars(shards), shardshuffle=False))
    assert [int(sample["__key__"]) for sample in samples] == list(range(len(shards)))
    for number, sample in enumerate(samples):
        image = sample.get("jpg", sample.get("png"))
        assert image == shards.encoded(number).tobytes()
        assert int(sample["cls"]) == shards.labels[number]


def test_dali_reads_the_same_samples_in_the_same_order(shards: ShardSet) -> None:
    dali = pytest.importorskip("nvidia.dali")

    @dali.pipeline_def(batch_size=len(shards), num_threads=1, device_id=None)
    def read() -> tuple:
        indices = [tar.replace(".tar", ".idx") for tar in tars(shards)]
        image, label = dali.fn.readers.webdataset(paths=tars(shards), index_paths=indices, ext=["jpg;png", "cls"])
        return image, label, dali.fn.decoders.image(image, adjust_orientation=False)

    pipeline = read()
    pipeline.build()
    images, labels, decoded = pipeline.run()
    for number in range(len(shards)):
        assert np.array_equal(np.array(images[number]), shards.encoded(number))
        assert int(np.array(labels[number]).tobytes()) == shards.labels[number]
        record = shards.index[number]
        assert decoded[number].shape() == [record["height"], record["width"], 3]
