"""The benchmark of DALI's settings, which is for a GPU, on the CPU."""

import signal
import sys
from dataclasses import replace

import pytest
import torch

from pipeline.executors.decode_settings import DecodeSettings
from tools.benchmarks import baselines, decoding
from tools.benchmarks.material import Bench, Scale

SMALLEST = Scale(images=40, copied_images=0, cached_images=0, checked_images=0, rounds=1, batch_size=6, batches=1)
DERIVED = DecodeSettings(threads=6, prefetch_batches=2, regions=False, hardware_share=0.65)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), None, SMALLEST, torch.device("cpu"), cores=1)


def test_variants_differ_from_the_derived_settings_in_one_respect(smallest: Bench) -> None:
    width, height = (sorted(smallest.shards.index[side].tolist())[35] for side in ("width", "height"))
    found = decoding.variants(DERIVED, smallest.shards, regions=True)
    hint = found.pop(next(name for name in found if name.startswith("size hint"))).size_hint
    assert hint == pytest.approx((width, height), abs=40)
    assert found == {
        "as derived from the machine": DERIVED,
        "regions": replace(DERIVED, regions=True),
        "JPEG engine 0": replace(DERIVED, hardware_share=0.0),
        "JPEG engine 0.9": replace(DERIVED, hardware_share=0.9),
        "4 threads": replace(DERIVED, threads=4),
        "3 batches ahead": replace(DERIVED, prefetch_batches=3),
    }


def test_regions_are_tried_only_where_they_work(smallest: Bench) -> None:
    assert "regions" not in decoding.variants(DERIVED, smallest.shards, regions=False)


def test_each_variant_is_a_row_and_has_its_memory(smallest: Bench) -> None:
    table, mebibytes = decoding.compare_settings(smallest, regions=True)
    names = [row.name for row in table.rows]
    assert table.base == names[0] == decoding.DERIVED
    assert {"whole images", "3 batches ahead"} < set(names)
    assert list(mebibytes) == names
    assert set(mebibytes.values()) == {0.0}  # on a CPU


def test_the_probe_of_region_decoding_survives_a_crash(smallest: Bench) -> None:
    assert decoding.region_decoding_failure(smallest) is None
    assert decoding.failure_in_child(signal.raise_signal, signal.SIGKILL) == "ended by SIGKILL"
    assert decoding.failure_in_child(sys.exit, 4) == "exit status 4"


@pytest.mark.parametrize(("recipe", "regions"), [("CROPPED", False), ("CROPPED", True), ("EVALUATED", False)])
def test_dalis_reader_crops_with_and_without_its_region_decoder(smallest: Bench, recipe: str, regions: bool) -> None:
    chosen = baselines.Recipe[recipe]
    batches = baselines.dali_webdataset(smallest.shards, 6, 1, chosen, torch.device("cpu"), regions)
    for _ in range(2):
        images, labels = next(batches)
        assert images.shape == (6, 224, 224, 3)
        assert images.dtype == torch.uint8
        assert len(labels) == 6
        assert images.float().std() > 20
