"""How DALI decodes on this machine: settings that change speed and memory, and no picture by more than rounding."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DecodeSettings:
    """Of one DALI pipeline.

    Args:
        threads: on the CPU. A GPU's pipeline needs them for the entropy decoding of what the JPEG engine does not take.
        prefetch_batches: decoded ahead of the one in use. A longer queue only evens out uneven batches.
        regions: decode only the planned rectangle of each image, where a stream has a single view.
        hardware_share: of the images of a batch that a GPU's JPEG engine decodes, 0 to 1; a GPU without one ignores it.
        size_hint: width and height, in pixels, that the JPEG engine's memory is made for; (0, 0) lets it grow.
    """

    threads: int
    prefetch_batches: int
    regions: bool
    hardware_share: float
    size_hint: tuple[int, int] = (0, 0)


def decode_settings(device: torch.device, threads: int) -> DecodeSettings:
    """What every run uses on this device, with this process's share of the cores.

    The CPU's are measured: decoding regions takes 0.86 of the time of decoding all. The GPU's are not yet
    (`python -m tools.bench loader` does it). Until then they are DALI's own, and whole images: its region decoder
    is reported to end the process on an H100 (nvImageCodec 0.9.0, https://github.com/NVIDIA/nvImageCodec/issues/55).
    """
    on_cpu = device.type == "cpu"
    return DecodeSettings(threads, prefetch_batches=2, regions=on_cpu, hardware_share=0.0 if on_cpu else 0.65)
