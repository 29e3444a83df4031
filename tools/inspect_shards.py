"""Show the contents of a shard set: python -m tools.inspect_shards DIR [--json] [--contact-sheet sheet.png]."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from shards.class_counts import CMO_RULE, imbalance_ratio, shot_groups
from shards.commandline import Parser, UsageError, home_path, run_command, tell
from shards.files import atomic_file
from shards.object_store import set_location
from shards.reader import ShardSet
from shards.source import JSON
from tools.near_duplicates import describe as describe_duplicates
from tools.near_duplicates import near_duplicates

_SHEET_CLASSES, _SHEET_COLUMNS = 12, 8
_TILE, _CAPTION = 112, 16  # pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a summary. Returns the exit status; errors are one line on standard error."""
    parser = Parser(prog="python -m tools.inspect_shards", description=__doc__)
    parser.add_argument("folder", type=set_location, metavar="DIR|URL", help="folder or URL of a shard set")
    parser.add_argument(
        "--json", action="store_true", help="print everything as JSON, including the counts of all classes"
    )
    parser.add_argument(
        "--contact-sheet", type=home_path, metavar="PNG", help="draw samples of classes, from largest to smallest"
    )
    against = "find near-duplicates of this set's images in another set, such as the test set (reads both sets)"
    parser.add_argument("--against", type=set_location, metavar="DIR|URL", help=against)
    namespace = parser.parse_args(arguments)
    return run_command("inspect_shards", partial(_inspect, namespace), (RuntimeError,))


def _inspect(namespace: argparse.Namespace) -> int:
    if namespace.contact_sheet is not None:
        _check_is_no_folder(namespace.contact_sheet)
    shards = ShardSet.open(namespace.folder)
    summary = summarise(shards)
    other = ShardSet.open(namespace.against) if namespace.against else None
    pairs = near_duplicates(shards, other) if other is not None else []
    if other is not None and namespace.json:
        summary["near_duplicates"] = [vars(pair) for pair in pairs]
    tell(json.dumps(summary, indent=1, ensure_ascii=False) if namespace.json else describe(summary))
    if other is not None and not namespace.json:
        tell(describe_duplicates(shards, other, pairs))
    if namespace.contact_sheet is not None:
        with atomic_file(namespace.contact_sheet) as file:
            contact_sheet(shards).save(file, "PNG")
    return 0


def _check_is_no_folder(picture: Path) -> None:
    """Check the picture's path before the set is read; missing folders are created."""
    if picture.is_dir():
        raise UsageError(f"--contact-sheet {picture} is a folder; give the name of a PNG file")
    picture.parent.mkdir(parents=True, exist_ok=True)


def summarise(shards: ShardSet) -> dict[str, JSON]:
    """Everything the tool shows, as JSON values. Groups follow CMO's rule, applied to this set's own counts."""
    counts, info = shards.samples_per_class, shards.info
    groups = shot_groups(counts, CMO_RULE)
    return {
        "name": info.name,
        "split": info.split,
        "samples": len(shards),
        "classes": shards.num_classes,
        "shards": len(info.shards),
        "bytes": sum(shard.bytes for shard in info.shards),
        "checksum": shards.checksum,
        "imbalance_ratio": imbalance_ratio(counts) if counts.min() > 0 else None,
        "empty_classes": int((counts == 0).sum()),
        "group_rule": CMO_RULE.describe(),
        "groups": {group: {"classes": len(ids), "samples": int(counts[ids].sum())} for group, ids in groups.items()},
        "sizes": {
            "width": _quantiles(shards.index["width"]),
            "height": _quantiles(shards.index["height"]),
            "image_bytes": _quantiles(shards.index["size"]),
        },
        "counts": info.counts,
        "options": info.options,
        # a list: names need not be unique (ImageNet has two "crane" and two "maillot")
        "samples_per_class": [
            {"class": name, "samples": count} for name, count in zip(info.class_names, counts.tolist(), strict=True)
        ],
    }


def describe(summary: dict[str, JSON]) -> str:
    """The summary as a screen of text."""
    ratio = summary["imbalance_ratio"]
    imbalance = f"{ratio:.4g}" if ratio else f"none, {summary['empty_classes']} classes are empty"
    by_size = sorted(((entry["samples"], entry["class"]) for entry in summary["samples_per_class"]), reverse=True)
    lines = [
        f"{summary['name']} {summary['split']}: {summary['samples']:,} images of {summary['classes']:,} classes, "
        f"{summary['shards']} shards, {summary['bytes'] / 2**20:,.1f} MB",
        f"imbalance ratio  {imbalance}",
    ]
    for group, size in summary["groups"].items():
        lines.append(f"{group:<15}  {size['classes']:,} classes, {size['samples']:,} images")
    lines.append(f"{'':<15}  ({summary['group_rule']})")
    for field, quantiles in summary["sizes"].items():
        lines.append(f"{field:<15}  " + ", ".join(f"{name} {value:,}" for name, value in quantiles.items()))
    lines.append("found            " + ", ".join(f"{count:,} {what}" for what, count in summary["counts"].items()))
    lines.append("largest          " + ", ".join(f"{name} {count:,}" for count, name in by_size[:5]))
    lines.append("smallest         " + ", ".join(f"{name} {count:,}" for count, name in by_size[-5:]))
    lines.append(f"checksum         {summary['checksum']}")
    return "\n".join(lines)


def contact_sheet(shards: ShardSet) -> Image.Image:
    """An image with one row per class, from the largest class to the smallest (12 at most, evenly spaced by rank)."""
    by_size = np.argsort(-shards.samples_per_class, kind="stable")
    ranks = np.unique(np.linspace(0, len(by_size) - 1, _SHEET_CLASSES).round().astype(int))
    sheet = Image.new("RGB", (_SHEET_COLUMNS * _TILE, len(ranks) * (_TILE + _CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for row, label in enumerate(by_size[ranks].tolist()):
        top = row * (_TILE + _CAPTION)
        count = int(shards.samples_per_class[label])
        caption = f"{label}: {shards.info.class_names[label]}, {count:,} image{'s' if count != 1 else ''}"
        if row == 0 and len(ranks) < len(by_size):
            caption += f"   ({len(ranks)} of {len(by_size):,} classes, evenly by rank)"
        draw.text((3, top + 1), caption, fill="black", font=font)
        start, end = shards.class_starts[label : label + 2]
        for column, sample in enumerate(shards.sample_ids_by_class[start:end][:_SHEET_COLUMNS].tolist()):
            sheet.paste(_tile(shards, sample), (column * _TILE, top + _CAPTION))
    return sheet


def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib's font, which covers Latin, Greek and Cyrillic names; Pillow's own has no umlauts."""
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 11)


def _tile(shards: ShardSet, sample: int) -> Image.Image:
    """The sample, as large as fits; small images are scaled by integer factors to keep their pixels visible."""
    shards.check_sample(sample)
    with Image.open(io.BytesIO(shards.encoded(sample).tobytes())) as image:
        picture = image.convert("RGB")
    picture.thumbnail((_TILE - 2, _TILE - 2))
    factor = (_TILE - 2) // max(picture.size)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _quantiles(values: np.ndarray) -> dict[str, int]:
    low, middle, high = np.quantile(values, (0, 0.5, 1), method="nearest").tolist()
    return {"least": int(low), "median": int(middle), "most": int(high)}


if __name__ == "__main__":
    sys.exit(main())
