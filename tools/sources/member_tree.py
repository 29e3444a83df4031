"""The tree that unpacking an archive would make: links resolved, the later of two equal names kept.

Only archives with links need it, as it holds all names in memory. It is walked as `Folder` walks a disk: links to
files and folders are followed, a folder that contains itself is entered once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

logger = logging.getLogger(__name__)

_MOST_LINKS = 40  # that one name may lead through, as on Linux


class Member(NamedTuple):
    """A file of a container: what its fetcher needs, and the encoded size in bytes.

    A location of an archive that is a text is the target of a link that leads nowhere; to fetch it is an error.
    """

    location: str | int | tuple[int, ...]
    size: int


class Link(NamedTuple):
    """A symbolic link: its target as written, relative to its own folder."""

    target: str


_Folder: TypeAlias = dict[str, "_Node"]
_Node: TypeAlias = "Member | Link | _Folder"


class MemberTree:
    """Files, folders and links by name, added in the order of the archive."""

    def __init__(self) -> None:
        self._root: _Folder = {}

    def add(self, name: str, entry: Member | Link | None) -> None:
        """Add a file, a link or (None) a folder; as when unpacking, a later file replaces an earlier one."""
        *parents, last = name.split("/")
        folder = self._root
        for part in parents:
            node = folder.get(part)
            if isinstance(node, Link):
                raise ValueError(f"{name!r} lies behind the link {part!r} -> {node.target!r}")
            if not isinstance(node, dict):
                node = folder[part] = {}
            folder = node
        if entry is not None:
            folder[last] = entry
        elif not isinstance(folder.get(last), dict):
            folder[last] = {}

    def add_hard_link(self, name: str, target: str) -> None:
        """A second name for what has been added as `target`."""
        found = self._at(target)
        self.add(name, Member(target, 0) if found is None or isinstance(found, dict) else found)

    def walk(self) -> Iterator[tuple[str, Member | None]]:
        """All files, and (None) folders, sorted by name; links are followed."""
        yield from self._walk("", self._root, ())

    def _walk(self, prefix: str, folder: _Folder, above: tuple[int, ...]) -> Iterator[tuple[str, Member | None]]:
        for name, node in sorted(folder.items()):
            path = f"{prefix}{name}"
            found = self._resolved(path, node, 0)
            if found is None:
                assert isinstance(node, Link)
                yield path, Member(node.target, 0)
            elif isinstance(found, Member):
                yield path, found
            elif id(found) in (id(folder), *above):
                logger.warning("%s: a link to a folder above it; not entered again", path)
            else:
                yield path, None
                yield from self._walk(f"{path}/", found, (*above, id(folder)))

    def _at(self, path: str) -> _Node | None:
        node: _Node = self._root
        for part in path.split("/"):
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node

    def _resolved(self, path: str, node: _Node, links: int) -> Member | _Folder | None:
        """What is found at `path`, where `node` is; None for a link that leads out of the archive or nowhere."""
        if not isinstance(node, Link):
            return node
        if links == _MOST_LINKS or node.target.startswith("/"):
            return None
        return self._follow([*path.split("/")[:-1], *node.target.split("/")], links + 1)

    def _follow(self, parts: list[str], links: int) -> Member | _Folder | None:
        trail: list[str] = []
        found: Member | _Folder | None = self._root
        for part in parts:
            if part in ("", "."):
                continue
            if part == "..":
                if not trail:
                    return None
                trail.pop()
                found = self._follow(trail, links) if links < _MOST_LINKS else None
                continue
            if not isinstance(found, dict) or part not in found:
                return None
            trail.append(part)
            found = self._resolved("/".join(trail), found[part], links)
        return found
