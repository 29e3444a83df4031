"""The interface of a data set reader: a `Source` (see `shards.source`) and the subcommand that creates it."""

from __future__ import annotations

import argparse
from typing import Protocol

from shards.source import JSON, Fetcher, SampleRef, Source

__all__ = ["JSON", "Fetcher", "SampleRef", "Source", "SourceCommand"]


class SourceCommand(Protocol):
    """A subcommand of `tools.build_shards`, registered under its name in `tools.sources.SOURCES`.

    help: one line for `--help`.
    """

    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of this source (--images, --list, …). `tools.build_shards` adds its own to the same parser:
        --out, --seed, --allow-partial and the options for writing.
        """
        ...

    def from_args(self, namespace: argparse.Namespace) -> dict[str, Source]:
        """The sources to build, by suffix of the --out path: "" is --out itself, "/val" a folder in it, "-holdout" the
        validation set next to it. May read `out`, `seed` and `allow_partial`.
        Raises ValueError or FileNotFoundError before any expensive work.
        """
        ...
