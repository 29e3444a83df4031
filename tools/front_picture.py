"""Draw the README's picture from the committed results: python -m tools.front_picture

Accuracy against class size: cross entropy compared with balanced losses, for the runs in docs/results.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from shards.commandline import Parser

_ROOT = Path(__file__).parents[1]
RESULTS = _ROOT / "benchmarks" / "results"
GROUPS = {"many": "more than 100\nimages", "medium": "20 to 100", "few": "fewer than 20"}
PANELS = {
    "Handwritten digits, 134 … 2 images per class\n(20 epochs, three seeds)": {
        "cross entropy": "digits-lt-ce-seed*.json",
        "balanced softmax + CMO": "digits-lt-bs-cmo-seed*.json",
    },
    "CIFAR-10-LT from JPEGs, 5,000 … 50 images per class\n(15 epochs instead of 200, one seed)": {
        "cross entropy": "cifar10-lt-ce-15-epochs.json",
        "balanced softmax": "cifar10-lt-bs-15-epochs.json",
        "balanced softmax + CMO": "cifar10-lt-bs-cmo-15-epochs.json",
    },
}
_COLOURS = {"cross entropy": "#9aa5b1", "balanced softmax": "#2a9d8f", "balanced softmax + CMO": "#e76f51"}


def accuracies(pattern: str) -> dict[str, list[float]]:
    """Test accuracy in percent after the last epoch by group, per matching run; empty groups are omitted."""
    files = sorted(RESULTS.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{RESULTS / pattern}: no such results")
    runs = [json.loads(file.read_text(encoding="utf-8"))["test"]["last"] for file in files]
    return {group: [run[group] for run in runs] for group in GROUPS if runs[0].get(group) is not None}


def draw(out: Path) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(9.5, 3.4), sharey=True, layout="constrained")
    for panel, (title, runs) in zip(axes, PANELS.items(), strict=True):
        width = 0.8 / len(runs)
        for number, (name, pattern) in enumerate(runs.items()):
            values = accuracies(pattern)
            places = [list(GROUPS).index(group) + (number - (len(runs) - 1) / 2) * width for group in values]
            heights = [mean(v) for v in values.values()]
            spread = [stdev(v) if len(v) > 1 else 0.0 for v in values.values()]
            bars = panel.bar(
                places, heights, width * 0.92, yerr=spread, label=name, color=_COLOURS[name], ecolor="#444"
            )
            panel.bar_label(bars, fmt="%.0f", fontsize=8, padding=1)
        shown = [group for group in GROUPS if group in values]
        panel.set_xticks(range(len(shown)), [GROUPS[group] for group in shown])
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("training images of a class")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("test accuracy (%)")
    axes[0].set_ylim(0, 112)
    axes[1].legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(out, dpi=130)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write docs/accuracy_by_class_size.png, or the file given."""
    parser: argparse.ArgumentParser = Parser(prog="python -m tools.front_picture", description=__doc__)
    parser.add_argument("--out", type=Path, default=_ROOT / "docs" / "accuracy_by_class_size.png", metavar="PNG")
    draw(parser.parse_args(arguments).out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
