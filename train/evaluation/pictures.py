"""The pictures of a run: training curves, accuracy against class size, confusion, pasted training images."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.executors.pillow_reference import reference_view
from pipeline.plan import Plan, StreamPlan
from train.inputs.input_builder import box_mask

matplotlib.use("agg")

MAX_CONFUSION_CLASSES = 200
_GROUP_COLORS = {"many": "tab:blue", "medium": "tab:orange", "few": "tab:red", "all": "black"}
_LABELLED_CONFUSION_CLASSES = 30


def as_text(name: str) -> str:
    """A class name as matplotlib draws it letter by letter: two dollar signs would be a formula."""
    return name.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)


def curves(records: list[dict[str, Any]], path: Path) -> None:
    """Training loss, learning rate, and accuracy of the groups over epochs, from metrics.jsonl."""
    epochs = [r for r in records if r["kind"] == "epoch"]
    split = "validation" if any("validation" in r for r in epochs) else "test"
    evaluated = [r for r in epochs if split in r]
    figure = Figure(figsize=(11, 4), layout="constrained")
    loss_axis, accuracy_axis = figure.subplots(1, 2)
    loss_axis.plot([r["epoch"] + 1 for r in epochs], [r["train"]["loss"] for r in epochs], marker=".", color="black")
    loss_axis.set(xlabel="epoch", ylabel="training loss", title="Loss and learning rate")
    lr_axis = loss_axis.twinx()
    lr_axis.step([r["epoch"] + 1 for r in epochs], [r["lr"] for r in epochs], where="mid", color="tab:green", alpha=0.6)
    lr_axis.set_yscale("log")
    lr_axis.set_ylabel("learning rate", color="tab:green")
    for group, color in _GROUP_COLORS.items():
        points = [(r["epoch"] + 1, r[split][group]) for r in evaluated if r[split][group] is not None]
        if points:
            accuracy_axis.plot(*zip(*points, strict=True), marker=".", color=color, label=group)
    accuracy_axis.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 100), title=f"Accuracy on the {split} set")
    accuracy_axis.legend(loc="lower right")
    accuracy_axis.grid(alpha=0.3)
    for axis in (loss_axis, accuracy_axis):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _save(figure, path)


def accuracy_by_class_size(
    samples_per_class: np.ndarray, recall: np.ndarray, groups: dict[str, np.ndarray], path: Path
) -> None:
    """A dot a class: test recall against the number of training samples, coloured by group, with the groups' means."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, members in groups.items():
        if len(members) == 0:
            continue
        sizes, percents = samples_per_class[members], 100 * recall[members]
        axis.scatter(sizes, percents, s=18, color=_GROUP_COLORS[name], label=f"{name} ({len(members)} classes)")
        if not np.isnan(percents).all():
            axis.hlines(np.nanmean(percents), sizes.min(), sizes.max(), color=_GROUP_COLORS[name], alpha=0.5)
    axis.set(xscale="log", ylim=(-2, 102), xlabel="training samples of the class", ylabel="test recall (%)")
    axis.set_title("Accuracy against class size (lines: mean of the group)")
    axis.legend()
    axis.grid(alpha=0.3)
    _save(figure, path)


def confusion(matrix: np.ndarray, class_names: list[str], path: Path) -> None:
    """Share of each true class (row) that was predicted as each class (column); at most 200 classes."""
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    classes = len(class_names)
    side = min(4 + 0.25 * classes, 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, vmin=0, vmax=100, cmap="Blues")
    if classes <= _LABELLED_CONFUSION_CLASSES:
        names = [as_text(name) for name in class_names]
        axis.set_xticks(range(classes), names, rotation=90)
        axis.set_yticks(range(classes), names)
    if classes <= 12:
        for row, column in np.ndindex(classes, classes):
            color = "white" if shares[row, column] > 60 else "black"
            axis.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=color, fontsize=8)
    axis.set(xlabel="predicted", ylabel="true", title="Confusion (% of the true class)")
    figure.colorbar(image, shrink=0.8)
    _save(figure, path)


def pasted_sheet(plan: Plan, path: Path, columns: int = 8) -> None:
    """Background, foreground and pasted image of a few planned training samples, with their λ, box and classes.

    Drawn from the plan through the reference executor: what the picture shows is what the network saw.
    """
    planned = _mixing_steps(plan, steps=columns)
    if not planned:
        return
    names = [as_text(name) for name in plan.datasets["train"].class_names]
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
        lam = whole.mix.lam[row]
        for axis, image, title in zip(
            axes[:, column],
            (background, foreground, pasted),
            (background_name, foreground_name, f"{lam:.2f} {background_name}\n{1 - lam:.2f} {foreground_name}"),
            strict=True,
        ):
            axis.imshow(image.numpy())
            axis.set_title(title, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, label in zip(axes[:, 0], ("original stream", "weighted stream", "pasted, with its labels"), strict=True):
        axis.set_ylabel(label, fontsize=9)
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
