"""`longtail.build`: shards from images, from Python."""

import argparse
import difflib
from pathlib import Path
from typing import Any, NoReturn

from shards.reader import ShardSet
from tools import build_shards
from tools.sources import SOURCES


class _Options(argparse.ArgumentParser):
    """The options of a build; errors raise exceptions."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def build(images: str | Path | None, out: str | Path, source: str = "imagefolder", **options: Any) -> ShardSet:
    """Build a shard set as `longtail build SOURCE` does, and open it.

    Calling it again continues an interrupted build; a finished one is opened as it is.

    Args:
        images: folder or archive with one folder per class; None for sources that need none, such as digits-lt.
        out: folder of the shard set. With holdout=0.1 the validation set is written next to it, to OUT-holdout.
        source: the layout of the originals; `longtail build --help` lists them.
        options: those of `longtail build SOURCE --help`, with "_" for "-": split_dir="train", on_bad="skip".

    Raises:
        ValueError, FileNotFoundError: options or originals are not as expected; the message says what to do.
    """
    if source not in SOURCES:
        raise ValueError(f"source {source!r} is unknown; expected one of {', '.join(SOURCES)}")
    parser = _Options(add_help=False, allow_abbrev=False)
    build_shards.add_arguments(source, parser)
    known = {action.dest: action for action in parser._actions}
    given = {**options, "out": out, **({} if images is None else {"images": images})}
    for name in given:
        if name not in known:
            similar = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"build: {name} is not an option of {source}" + f"; did you mean {similar[0]}?" * bool(similar)
            )
    # Goes through the parser, which has the options' types, choices and defaults.
    words: list[str] = []
    for name, value in given.items():
        flag = known[name].option_strings[-1]
        if isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words += [f"{flag}={value}"]
    namespace = parser.parse_args(words)
    namespace.source = source
    return ShardSet.open(build_shards.build(namespace)[0])
