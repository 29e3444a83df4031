"""The cost of tuning kinds: python -m tools.benchmarks.bench_tuning [--network vit_small_patch16_224] [--out FILE]

Training steps on random images, forward, backward and optimizer, each kind in a separate process: images per second on
one core, and peak memory in addition to that of the process with the network loaded. Then only the classifier, on
cached features. Times are CPU times of the process, so other load on the machine is allowed.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, get_args

import timm
import torch
from torch import nn
from torch.nn import functional

from tools.markdown import markdown
from train.evaluation.run_report import hardware, versions
from train.features import pooled_features
from train.models.build import ModelOptions, build_model, classifier_name, replace_module
from train.models.heads import ScaledCosine
from train.models.tuning import Kind, Tuning, insert, set_modes, tuned_names
from train.run_folder import write_json

CLASSES = 100
KINDS: tuple[Kind, ...] = ("head", "lora", "adaptformer", "full")
CACHED = "head, cached features"


def prepared(network: str, kind: Kind) -> nn.Module:
    """The network as a run tunes it, with random weights, which cost the same."""
    model = build_model(ModelOptions(network), CLASSES, "linear", seed=0)
    tuning = Tuning(kind)
    insert(model, tuning, CLASSES)
    head = classifier_name(model)
    replace_module(model, head, ScaledCosine)
    tuned = tuned_names(model, tuning)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in tuned or name.startswith(f"{head}."))
    set_modes(model)
    return model


def _seconds_per_step(forward: Callable[[], torch.Tensor], model: nn.Module, batch: int, steps: int) -> float:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01, 0.9)
    labels, seconds = torch.arange(batch) % CLASSES, []
    for _ in range(steps + 1):  # the first one warms up
        started = time.process_time()
        functional.cross_entropy(forward(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - started)
    return median(seconds[1:])


def measure(network: str, kind: str, batch: int, steps: int) -> dict[str, float]:
    """Images per second of a core, peak memory in MB beyond the loaded network, and trained parameters of a kind."""
    torch.set_num_threads(1)
    model = prepared(network, "head" if kind == CACHED else kind)  # type: ignore[arg-type]
    side = timm.get_pretrained_cfg(network).input_size[-1]
    images = torch.rand(batch, 3, side, side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forward = lambda: model(images)  # noqa: E731
    if kind == CACHED:
        with torch.no_grad():
            features = pooled_features(model, images)
        head = model.get_submodule(classifier_name(model))
        forward, steps = lambda: head(features), 50 * steps
    seconds = _seconds_per_step(forward, model, batch, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"images_per_second": batch / seconds, "memory_mb": (peak - before) / 1024, "trained_parameters": trained}


def table(results: dict[str, dict[str, float]]) -> str:
    """Ratios to training the head through the whole network."""
    base = results["head"]
    rows = [
        [
            kind,
            f"{found['trained_parameters']:,.0f}",
            f"{found['images_per_second'] / base['images_per_second']:.2f}",
            f"{found['memory_mb']:.0f}",
        ]
        for kind, found in results.items()
    ]
    return markdown(["tuned", "trained parameters", "speed, head = 1", "memory beyond the network (MB)"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every kind, print the table, write the numbers."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.bench_tuning", description=__doc__)
    parser.add_argument("--network", default="vit_small_patch16_224", help="a timm model name (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--kind", choices=(*get_args(Kind), CACHED), help="measure only this kind, in this process")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all numbers as JSON")
    o = parser.parse_args(arguments)
    if o.kind is not None:
        print(json.dumps(measure(o.network, o.kind, o.batch_size, o.steps)))
        return 0
    own = ["--network", o.network, "--batch-size", str(o.batch_size), "--steps", str(o.steps)]
    results: dict[str, Any] = {}
    for kind in (*KINDS, CACHED):
        command = [sys.executable, "-m", "tools.benchmarks.bench_tuning", *own, "--kind", kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[kind] = json.loads(done.stdout.splitlines()[-1])
    print(table(results))
    if o.out is not None:
        content = {"network": o.network, "batch_size": o.batch_size, "results": results}
        content |= {"hardware": hardware(), "versions": versions()}
        write_json(o.out, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
