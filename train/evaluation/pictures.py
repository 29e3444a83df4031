"""A run's figures: training curves, accuracy against class size, confusion, pasted training images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from pipeline.executors.pillow_reference import reference_view
from pipeline.plan import Plan, StreamPlan
from train.evaluation.class_blocks import blocks_by_size, summed
from train.evaluation.labels import label, labels, use_fonts
from train.inputs.input_builder import box_mask

matplotlib.use("agg")
use_fonts()

_GROUP_COLORS = {"many": "tab:blue", "medium": "tab:orange", "few": "tab:red", "all": "black"}
_LABELLED_CONFUSION_CLASSES = 30
_NAMED_OUTLIERS = 12


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)


def curves(records: list[dict[str, Any]], path: Path) -> None:
    """Losses, learning rate and group accuracies over epochs, from metrics.jsonl."""
    epochs = [r for r in records if r["kind"] == "epoch"]
    split = "validation" if any("validation" in r for r in epochs) else "test"
    evaluated = [r for r in epochs if split in r]
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss_axis, accuracy_axis = figure.subplots(1, 2)
    _loss_curves(loss_axis, epochs, evaluated, split)
    for group, color in {**_GROUP_COLORS, "balanced": "tab:purple"}.items():
        points = [(r["epoch"] + 1, r[split][group]) for r in evaluated if r[split].get(group) is not None]
        if points:
            accuracy_axis.plot(*zip(*points, strict=True), marker=".", color=color, label=group)
    title = f"Accuracy on the {split} set ('all' over images, others over classes)"
    accuracy_axis.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 100))
    accuracy_axis.set_title(title, fontsize=10)
    # Outside the axes: inside it would cover the end of a curve, the most interesting part.
    figure.legend(*accuracy_axis.get_legend_handles_labels(), loc="outside right center")
    accuracy_axis.grid(alpha=0.3)
    for axis in (loss_axis, accuracy_axis):
        _whole_epochs(axis, [r["epoch"] + 1 for r in epochs])
    _save(figure, path)


def _loss_curves(axis: Axes, epochs: list[dict[str, Any]], evaluated: list[dict[str, Any]], split: str) -> None:
    axis.plot([r["epoch"] + 1 for r in epochs], [r["train"]["loss"] for r in epochs], "k.-", label="training loss")
    losses = [(r["epoch"] + 1, r[split]["loss"]) for r in evaluated if r[split].get("loss") is not None]
    if losses:
        axis.plot(*zip(*losses, strict=True), ".--", color="tab:brown", label=f"{split} loss (plain cross entropy)")
    axis.set(xlabel="epoch", ylabel="loss", title="Loss and learning rate")
    axis.legend(loc="upper right", fontsize=8)
    lr_axis = axis.twinx()
    lr_axis.step([r["epoch"] + 1 for r in epochs], [r["lr"] for r in epochs], where="mid", color="tab:green", alpha=0.6)
    if any(r["lr"] > 0 for r in epochs):
        lr_axis.set_yscale("log")
    lr_axis.set_ylabel("learning rate", color="tab:green")


def _whole_epochs(axis: Axes, epochs: list[int]) -> None:
    """Ticks at whole epochs, even if there is only one."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(epochs) == 1:
        axis.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axis.set_xticks(epochs)


def accuracy_by_class_size(
    samples_per_class: np.ndarray,
    recall: np.ndarray,
    groups: dict[str, np.ndarray],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """One dot per class: test recall against training samples, coloured by group, with the groups' means.

    The worst-recognised classes are named.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, members in groups.items():
        if len(members) == 0:
            continue
        sizes, percents = samples_per_class[members], 100 * recall[members]
        axis.scatter(sizes, percents, s=18, color=_GROUP_COLORS[name], label=f"{name} ({len(members)} classes)")
        if not np.isnan(percents).all():
            axis.hlines(np.nanmean(percents), sizes.min(), sizes.max(), color=_GROUP_COLORS[name], alpha=0.5)
    _name_worst(axis, samples_per_class, recall, class_names)
    axis.set(xscale="log", ylim=(-4, 104), xlabel="training samples of the class", ylabel="test recall (%)")
    _plain_sizes(axis, samples_per_class)
    axis.set_title("Accuracy against class size (lines: mean of the group)")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    _save(figure, path)


def _name_worst(axis: Axes, sizes: np.ndarray, recall: np.ndarray, class_names: Sequence[str]) -> None:
    """Names next to the dots of the worst classes, if these do not overlap."""
    taken: list[tuple[float, float]] = []
    known = np.flatnonzero(~np.isnan(recall))
    for number in known[np.argsort(recall[known], kind="stable")][:_NAMED_OUTLIERS]:
        place = (float(np.log10(sizes[number])), 100 * float(recall[number]))
        if all(abs(place[0] - x) > 0.35 or abs(place[1] - y) > 4 for x, y in taken):
            text = label(class_names[number], int(number), longest=20)
            at_right = sizes[number] > sizes.max() / 3 and len(set(sizes)) > 1
            axis.annotate(
                text,
                (float(sizes[number]), place[1]),
                xytext=(-4 if at_right else 4, 3),
                textcoords="offset points",
                ha="right" if at_right else "left",
                fontsize=7,
            )
            taken.append(place)


def _plain_sizes(axis: Axes, sizes: np.ndarray) -> None:
    """Sample counts as plain numbers on the logarithmic axis; a single size in the middle of its decade."""
    smallest, largest = float(sizes.min()), float(sizes.max())
    margin = 3.0 if smallest == largest else (largest / smallest) ** 0.05
    axis.set_xlim(smallest / margin, largest * margin)
    ticks = [t * 10**power for power in range(7) for t in (1, 2, 5) if smallest <= t * 10**power <= largest]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if str(tick).startswith("1")]
    axis.set_xticks(ticks if smallest != largest and len(ticks) > 1 else sorted({smallest, largest}))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.minorticks_off()


def confusion(
    matrix: np.ndarray,
    class_names: list[str],
    samples_per_class: np.ndarray,
    groups: dict[str, np.ndarray],
    path: Path,
) -> None:
    """Share of each true class (row) that was predicted as each class (column), largest class first.

    Lines separate the groups. If there are many classes, a cell represents a block of classes of similar size.
    """
    blocks = blocks_by_size(samples_per_class, groups)
    cells = summed(matrix, blocks)
    shares = 100 * cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    single = len(blocks.members) == len(class_names)
    side = min(4 + 0.25 * len(blocks.members), 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)  # inches: a square axis is placed roughly
    axis = figure.subplots()
    image = axis.imshow(shares, vmin=0, vmax=100, cmap="Blues")
    if single and len(class_names) <= _LABELLED_CONFUSION_CLASSES:
        shown = [labels(class_names)[int(members[0])] for members in blocks.members]
        axis.set_xticks(range(len(shown)), shown, rotation=90)
        axis.set_yticks(range(len(shown)), shown)
    if len(blocks.members) <= 12:
        for row, column in np.ndindex(*shares.shape):
            color = "white" if shares[row, column] > 60 else "black"
            axis.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=color, fontsize=8)
    for border in blocks.borders:
        axis.axhline(border - 0.5, color="tab:red", linewidth=0.8)
        axis.axvline(border - 0.5, color="tab:red", linewidth=0.8)
    order = "largest class first" if single else f"{len(blocks.members)} blocks of classes, largest first"
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(f"Confusion (% of the true class)\n{order}; red: group borders", fontsize=8)
    figure.colorbar(image, shrink=0.8)
    _save(figure, path)


def pasted_sheet(plan: Plan, path: Path, columns: int = 8) -> None:
    """Background, foreground and pasted image of a few planned training samples, with their λ, box and classes.

    Drawn from the plan through the reference executor: the figure shows what the network saw.
    """
    planned = _mixing_steps(plan, steps=columns)
    if not planned:
        return
    names = labels(plan.datasets["train"].class_names, longest=18)
    figure = Figure(figsize=(1.7 * len(planned), 6.2), layout="constrained")
    axes = figure.subplots(3, len(planned), squeeze=False)
    for column, (epoch, step) in enumerate(planned):
        whole = plan.step(epoch, step)
        assert whole.mix is not None, "_mixing_steps returns steps that paste"
        row = column % len(whole.mix)
        background = _picture(plan, whole.streams["original"], row)
        foreground = _picture(plan, whole.streams["foreground"], row)
        boxes = torch.from_numpy(whole.mix.boxes[row : row + 1])
        mask = box_mask(boxes, *background.shape[:2])[0]
        pasted = torch.where(mask[..., None], foreground, background)
        background_name, foreground_name = (
            names[int(whole.streams[stream].labels[row])] for stream in ("original", "foreground")
        )
        percent = 100 * whole.mix.lam[row]
        mixed = f"{percent:.0f} % {background_name}\n{100 - percent:.0f} % {foreground_name}"
        for axis, image, title in zip(
            axes[:, column],
            (background, foreground, pasted),
            (
                background_name,
                foreground_name,
                mixed,
            ),
            strict=True,
        ):
            axis.imshow(image.numpy())
            axis.set_title(title, fontsize=7)
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, row_name in zip(
        axes[:, 0], ("original stream", "weighted stream", "pasted, with its labels"), strict=True
    ):
        axis.set_ylabel(row_name, fontsize=9)
    _save(figure, path)


def _mixing_steps(plan: Plan, steps: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for epoch in range(plan.epochs):
        found += [(epoch, int(step)) for step in plan.paste_steps(epoch)]
        if len(found) >= steps:
            break
    return found[:steps]


def _picture(plan: Plan, stream: StreamPlan, row: int) -> torch.Tensor:
    """uint8 (height, width, 3): the first view of one sample of a stream, as planned."""
    encoded = plan.datasets["train"].encoded(int(stream.sample_ids[row]))
    return torch.from_numpy(reference_view(encoded, stream.views[0], row).copy())
