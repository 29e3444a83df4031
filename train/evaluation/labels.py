"""Class names in figures: shortened to fit, and in a font that has their characters."""

from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager, rcParams

LONGEST_LABEL = 28
# Matplotlib's own font covers Latin, Greek and Cyrillic; these cover other scripts, if installed.
_FURTHER_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "IPAGothic",
    "Noto Sans Devanagari",
    "Noto Sans Arabic",
    "Noto Sans Thai",
)


@cache
def font_families() -> tuple[str, ...]:
    """Fonts to search for characters, in order: those of the list above that this machine has."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in _FURTHER_FONTS if name in installed))


@cache
def _letters() -> frozenset[int]:
    paths = [font_manager.findfont(name, fallback_to_default=False) for name in font_families()]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


def use_fonts() -> None:
    """Let Matplotlib search all of them."""
    rcParams["font.family"] = list(font_families())


def label(name: str, number: int, longest: int = LONGEST_LABEL) -> str:
    """A class name for a figure: on one line, shortened with an ellipsis, with "$" escaped.

    A name that no installed font can draw becomes "class NUMBER", which is more useful than boxes.
    """
    shown = " ".join(name.split())
    if not shown or any(ord(letter) not in _letters() for letter in shown):
        return f"class {number}"
    cut = shown if len(shown) <= longest else shown[: longest - 1].rstrip() + "…"
    return cut.replace("$", r"\$")


def labels(names: Sequence[str], longest: int = LONGEST_LABEL) -> list[str]:
    """`label` for every class."""
    return [label(name, number, longest) for number, name in enumerate(names)]
