"""Pictures keep their labels: long names, other scripts, formula signs, one size, one epoch, thousands of classes."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from shards.class_counts import CMO_RULE, shot_groups
from tests.helpers.run_folders import class_names
from train.evaluation import pictures
from train.evaluation.labels import LONGEST_LABEL, font_families, label


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, as they were drawn."""
    figures: list[Figure] = []
    save = pictures._save

    def keep(figure: Figure, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a missing glyph is a warning
            save(figure, path)
        figures.append(figure)

    monkeypatch.setattr(pictures, "_save", keep)
    return figures


def texts_inside(figure: Figure) -> list[str]:
    """Texts of a figure, all of which have to lie within it."""
    canvas = figure.bbox
    found = []
    for axis in figure.axes:
        labels = [*axis.texts, axis.title, axis.xaxis.label, axis.yaxis.label]
        for side, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            ticks = zip(side.get_ticklocs(), side.get_ticklabels(), strict=True)
            labels += [text for place, text in ticks if min(limits) <= place <= max(limits)]
        for text in labels:
            if text.get_text() and text.get_visible():
                box = text.get_window_extent()
                assert box.x0 >= canvas.x0 - 1, text
                assert box.x1 <= canvas.x1 + 1, text
                assert box.y0 >= canvas.y0 - 1, text
                assert box.y1 <= canvas.y1 + 1, text
                found.append(text.get_text())
    return found


@pytest.mark.parametrize("classes", [1, 2, 12, 30, 120, pytest.param(8142, marks=pytest.mark.slow)])
def test_confusion_of_any_number_of_classes(classes: int, drawn: list[Figure], tmp_path: Path) -> None:
    counts = np.maximum(1, (500 * 0.99 ** np.arange(classes)).astype(int))
    matrix = np.random.default_rng(0).integers(2, size=(classes, classes))
    groups, names = shot_groups(counts, CMO_RULE), class_names(classes)
    pictures.confusion(matrix, names, counts, groups, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    texts = texts_inside(drawn[0])
    if classes <= 30:
        assert {label(name, number) for number, name in enumerate(names)} <= set(texts)


@pytest.mark.parametrize("counts", [[7], [20] * 12, [500, 100, 20, 3, 1], list(range(1, 2000))])
def test_accuracy_against_class_size(counts: list[int], drawn: list[Figure], tmp_path: Path) -> None:
    sizes = np.array(counts)
    recall = np.random.default_rng(0).random(len(sizes))
    recall[-1] = np.nan if len(sizes) > 1 else 0.5
    groups = shot_groups(sizes, CMO_RULE)
    pictures.accuracy_by_class_size(sizes, recall, groups, class_names(len(sizes)), tmp_path / "sizes.png")
    (axis,) = drawn[0].axes
    low, high = axis.get_xlim()
    assert low < sizes.min()
    assert high > sizes.max()
    ticks = [text.get_text() for text in axis.get_xticklabels()]
    assert ticks
    assert all("10^" not in text for text in ticks)
    assert all(sizes.min() <= int(text) <= sizes.max() for text in ticks)
    texts_inside(drawn[0])


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_have_ticks_at_whole_epochs(epochs: int, drawn: list[Figure], tmp_path: Path) -> None:
    numbers = {"all": 50.0, "balanced": 40.0, "many": 60.0, "medium": None, "few": 10.0, "loss": 1.5}
    records = [
        {"kind": "epoch", "epoch": epoch, "lr": 0.0 if epochs == 1 else 0.1, "train": {"loss": 2.0}, "test": numbers}
        for epoch in range(epochs)
    ]
    pictures.curves(records, tmp_path / "curves.png")
    for axis in drawn[0].axes[:2]:
        shown = [tick for tick in axis.get_xticks() if axis.get_xlim()[0] <= tick <= axis.get_xlim()[1]]
        assert all(tick == int(tick) for tick in shown)
    (legend,) = drawn[0].legends
    last = drawn[0].axes[1].get_window_extent()
    assert legend.get_window_extent().x0 >= last.x1  # never over the end of a curve


def test_names_are_cut_and_never_boxes() -> None:
    assert label("Gebäude", 3) == "Gebäude"
    assert label("Ωμέγα щука", 3) == "Ωμέγα щука"
    assert label("two\nlines  and\ttabs", 3) == "two lines and tabs"
    assert label("a $5 bill and $6", 3) == r"a \$5 bill and \$6"
    long = label("x" * 300, 3)
    assert len(long) == LONGEST_LABEL
    assert long.endswith("…")
    assert label("", 3) == label("\U000f0000", 3) == "class 3"  # no font has a private letter
    assert label("柴犬", 3) in ("柴犬", "class 3")
    assert (label("柴犬", 3) == "柴犬") == any("CJK" in name or "Quan" in name for name in font_families())
