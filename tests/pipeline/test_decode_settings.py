"""Settings reach DALI. The graphs for a GPU are made without one: DALI checks the names and types of all arguments."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.executors.dali_graphs import decoder_arguments, view_graph
from pipeline.executors.decode_settings import DecodeSettings, decode_settings
from pipeline.views.presets import CROP_224
from tests.helpers.executors import assert_same_pictures, execute, plan_batches
from tests.helpers.shard_sets import photos

GPU = DecodeSettings(threads=3, prefetch_batches=5, regions=False, hardware_share=0.3125, size_hint=(54321, 45678))


def test_the_cpu_decodes_regions_and_a_gpu_whole_images() -> None:
    on_cpu, on_gpu = (decode_settings(torch.device(name), 6) for name in ("cpu", "cuda"))
    assert (on_cpu.threads, on_gpu.threads) == (6, 6)
    assert on_cpu.regions
    assert not on_gpu.regions
    assert 0 < on_gpu.hardware_share < 1


@pytest.mark.parametrize("regions", [False, True])
def test_the_settings_are_arguments_of_the_gpus_decoder(regions: bool) -> None:
    graph = serialized(decoder_arguments(GPU, on_cpu=False), regions)
    assert (b"ImageSlice" in graph) == regions
    assert (b"mixed" in graph) and (b"jpeg_fancy_upsampling" in graph)
    for value in (54321, 45678):  # protobuf: seven bits a byte, the lowest first, all but the last with the high bit
        assert bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14)) in graph
    assert struct.pack("<f", 0.3125) in graph
    assert struct.pack("<f", 0.3125) not in serialized(
        decoder_arguments(replace(GPU, hardware_share=0.5), False), regions
    )


def test_the_cpus_decoder_is_not_told_of_the_jpeg_engine() -> None:
    graph = serialized(decoder_arguments(GPU, on_cpu=True), regions=False)
    assert b"mixed" not in graph
    assert b"hw_decoder_load" not in graph


def serialized(decoder: Any, regions: bool) -> bytes:
    options = {"batch_size": 2, "num_threads": 1, "device_id": None}
    return view_graph(source=lambda: None, views=(CROP_224,), regions=regions, decoder=decoder, **options).serialize()


def test_the_gpus_arguments_change_no_picture_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the device: an argument that the operators do not take, or of a wrong type, would be refused."""
    dataset = photos(tmp_path / "photos", (3, 2))
    views = (CROP_224,)
    requests = plan_batches(dataset, views, [range(5)])
    expected = execute("dali-views", dataset, views, requests)
    arguments = {**decoder_arguments(replace(GPU, size_hint=(640, 480)), on_cpu=False), "device": "cpu"}
    monkeypatch.setattr("pipeline.executors.dali.decoder_arguments", lambda settings, on_cpu: arguments)
    for executor in ("dali-views", "dali-view-regions"):
        assert_same_pictures(execute(executor, dataset, views, requests), expected)
