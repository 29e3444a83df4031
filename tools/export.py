"""Export a trained network: python -m tools.export FILE|RUN --out DIR [--formats onnx torch-export]

The folder has timm's layout (model.safetensors, config.json), which the Hugging Face Hub also understands, and a model
card (README.md); model.onnx and model.pt2 on request. Every file is loaded again and compared with the network.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from shards.commandline import run_command, tell
from shards.reader import ShardSet
from tools.option_parsers import export_parser
from train.checkpoints.trained import Trained, load_trained
from train.exported import graphs
from train.exported.checking import CheckFailedError
from train.exported.hub import PushError, push
from train.exported.model_card import write_model_card
from train.exported.network import ExportedNetwork, exported_network
from train.exported.timm_folder import CONFIG, WEIGHTS, write_timm_folder

_INPUTS: dict[graphs.Inside, str] = {
    "nothing": "normalised float32 (batch, 3, {0}, {0})",
    "normalise": "uint8 (batch, {0}, {0}, 3); normalised inside",
    "resize": "uint8 (batch, height, width, 3) of any size; resized, cropped and normalised inside",
}


def classes_of(trained: Trained, dataset: Path | None) -> tuple[list[str], np.ndarray | None]:
    """Class names and training counts: from the checkpoint, else from a shard set, else numbers and no counts.

    Raises:
        ValueError: the shard set has another number of classes.
    """
    if dataset is not None:
        shard_set = ShardSet.open(dataset)
        if shard_set.num_classes != trained.classes:
            raise ValueError(f"{dataset} has {shard_set.num_classes} classes, the network {trained.classes}")
        return shard_set.class_names, shard_set.samples_per_class
    if trained.class_names is not None:
        return list(trained.class_names), trained.samples_per_class
    return [str(number) for number in range(trained.classes)], None


def export(
    trained: Trained,
    folder: Path,
    formats: Sequence[str],
    inside: graphs.Inside,
    classes: tuple[list[str], np.ndarray | None],
    title: str,
    licence: str | None,
) -> None:
    """Write the folder.

    Raises:
        CheckFailedError: a file's output differs from the network's.
        ModuleNotFoundError: ONNX is requested without the extra "export".
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = exported_network(trained)
    timm_alone = write_timm_folder(folder, trained, network, *classes)
    tell(f"{folder / WEIGHTS}, {CONFIG}: equal through timm{'' if timm_alone else ' (with train.exported.network)'}")
    files = _write_graphs(folder, trained, network, formats, inside)
    write_model_card(folder, trained, title, licence, timm_alone, files)


def _write_graphs(
    folder: Path, trained: Trained, network: ExportedNetwork, formats: Sequence[str], inside: graphs.Inside
) -> list[tuple[str, str, str]]:
    """Write the requested ONNX and torch.export files; returns name, input and description for the model card."""
    module, batches = graphs.with_preparation(network, trained.preset, inside)
    writers = {
        "onnx": (graphs.ONNX, graphs.write_onnx, "ONNX; input `images`, output `logits`"),
        "torch-export": (graphs.TORCH_EXPORT, graphs.write_torch_export, "`torch.export.load(…).module()`"),
    }
    files = []
    for name, (file, write, what) in writers.items():
        if name in formats:
            difference = write(folder / file, module, batches, inside)
            tell(f"{folder / file}: logits equal within {difference:.1e}")
            files.append((file, _INPUTS[inside].format(trained.preset.evaluation.size), what))
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Export, and push on request."""
    options = export_parser().parse_args(arguments)
    return run_command("export", lambda: _main(options), (CheckFailedError, ModuleNotFoundError, PushError))


def _main(options: Namespace) -> int:
    trained = load_trained(options.checkpoint, torch.device("cpu"), options.preset, options.weights)
    classes = classes_of(trained, options.class_names)
    title = options.title or (options.push or options.out.absolute().name).rpartition("/")[2]
    export(trained, options.out, options.formats, options.inside, classes, title, options.license)
    if options.push:
        tell(f"pushed to {push(options.out, options.push, options.private, os.environ.get('HF_ENDPOINT'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
