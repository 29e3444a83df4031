"""Evaluated images per second: from shards, every image once, against a DataLoader with PIL and the same network."""

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pipeline.views.presets import IMAGENET_STATISTICS
from tools.benchmarks.baselines import before_forking
from tools.benchmarks.figures import Report
from tools.benchmarks.material import Bench
from tools.benchmarks.measuring import compare, rate_of
from tools.benchmarks.rig import make_run

OFFICIAL = "DataLoader, PIL, transforms v1"
OURS = "this project"


def run(bench: Bench) -> Report:
    """A whole evaluation each, including the start of workers and pipelines: a run evaluates after every epoch."""
    on_gpu = bench.device.type == "cuda"
    model, batch_size = ("resnet50", 256) if on_gpu else ("test_resnet", bench.scale.batch_size)
    report = Report(
        "evaluate",
        bench.describe(),
        {**bench.settings(), "model": model, "batch_size": batch_size},
        saved_to=bench.saved_to,
    )
    ours = make_run(bench, model, "imagenet", batch_size, mixed_precision="bf16" if on_gpu else "no")
    images = len(bench.shards)
    network = ours.trainer.bare_model

    def rate(evaluate: object) -> float:
        assert callable(evaluate)
        return rate_of(evaluate, 1, images, bench.device, warm_up=0)

    variants = {
        OFFICIAL: lambda: rate(lambda: _official(bench, network, batch_size)),
        OURS: lambda: rate(lambda: ours.evaluator.selection_scores()),
    }
    report.add(compare("evaluated images", "images/s", variants, bench.scale.rounds))
    return report


@torch.inference_mode()
def _official(bench: Bench, network: nn.Module, batch_size: int) -> float:
    """Accuracy, with the usual evaluation loop."""
    normalize = transforms.Normalize(IMAGENET_STATISTICS.mean, IMAGENET_STATISTICS.std)
    transform = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), normalize]
    )
    dataset = ImageFolder(str(bench.folder), transform)
    network.eval()
    correct = torch.zeros((), device=bench.device)
    before_forking()
    for images, labels in DataLoader(
        dataset, batch_size, num_workers=bench.cores, pin_memory=bench.device.type == "cuda"
    ):
        logits = network(images.to(bench.device, non_blocking=True))
        correct += (logits.argmax(dim=1) == labels.to(bench.device, non_blocking=True)).sum()
    return float(correct) / len(dataset)
