"""How DALI decodes on this machine: settings that affect speed and memory, and images only by rounding."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of one DALI pipeline.

    Args:
        threads: CPU threads. A GPU pipeline needs them for entropy decoding that the JPEG engine does not do.
        prefetch_batches: batches decoded ahead of the current one. A longer queue only evens out uneven batches.
        regions: decode only the planned rectangle of each image, if a stream has a single view.
        hardware_share: share of a batch that a GPU's JPEG engine decodes, 0 to 1; ignored by GPUs without one.
        size_hint: width and height in pixels for which the JPEG engine allocates memory; (0, 0) lets it grow.
    """

    threads: int
    prefetch_batches: int
    regions: bool
    hardware_share: float
    size_hint: tuple[int, int] = (0, 0)


def decode_settings(device: torch.device, threads: int) -> DecodeSettings:
    """The settings that every run uses on this device, with this process's share of the cores.

    The CPU settings are measured: decoding regions takes 0.86 of the time of decoding whole images. The GPU settings
    are not compared yet (`python -m tools.bench loader` does that). Until then they are DALI's own, with whole images:
    its region decoder is reported to crash the process on an H100 (nvImageCodec 0.9.0,
    https://github.com/NVIDIA/nvImageCodec/issues/55); on an H200 it worked (0.9.0.20).
    """
    on_cpu = device.type == "cpu"
    return DecodeSettings(threads, prefetch_batches=2, regions=on_cpu, hardware_share=0.0 if on_cpu else 0.65)
