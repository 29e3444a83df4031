"""Running a source subcommand as tools.build_shards does, and reading everything it offers."""

import argparse
from pathlib import Path

from shards.source import Source
from tools.sources import SOURCES


def sources_of(name: str, *arguments: object, out: Path | None = None) -> dict[str, Source]:
    """The sources that `python -m tools.build_shards NAME ARGUMENTS… --out OUT` would build."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    SOURCES[name].add_arguments(parser)
    parser.add_argument("--out", type=Path, default=out or Path("unused"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allow-partial", action="store_true")
    return SOURCES[name].from_args(parser.parse_args([str(argument) for argument in arguments]))


def the_source(name: str, *arguments: object, out: Path | None = None) -> Source:
    """The only source of the command."""
    sources = sources_of(name, *arguments, out=out)
    assert list(sources) == [""]
    return sources[""]


def contents(source: Source) -> list[tuple[str, int, bytes]]:
    """Name, label and bytes of every sample, in the source's order."""
    samples = source.samples  # as the builder does: known before anything is opened
    fetcher = source.open()
    found = [(ref.name, ref.label, fetcher.fetch(ref)) for ref in samples]
    fetcher.close()
    return found
