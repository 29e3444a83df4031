"""The tree that unpacking an archive would create: links resolved, the later of two equal names kept.

Only archives with links need it, because it holds all names in memory. It is walked as `Folder` walks a disk: links to
files and folders are followed, and a folder that contains itself is entered once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

logger = logging.getLogger(__name__)

DEEPEST_FOLDER = 200  # nesting depth that is walked
_MOST_LINKS = 40  # links that one name may pass through, as on Linux


class Member(NamedTuple):
    """A file of a container: what its fetcher needs, and the encoded size in bytes.

    If an archive member's location is a text, it is the target of a link that leads nowhere; fetching it is an error.
    """

    location: str | int | tuple[int, ...]
    size: int


class Link(NamedTuple):
    """A symbolic link: its target as written, relative to its own folder."""

    target: str


_Folder: TypeAlias = dict[str, "_Node"]
_Node: TypeAlias = "Member | Link | _Folder"
_Path: TypeAlias = tuple[str, ...]


class TreeError(ValueError):
    """An archive whose tree cannot be followed, with the reason."""


class MemberTree:
    """Files, folders and links by name, added in archive order."""

    def __init__(self) -> None:
        self._root: _Folder = {}

    def add(self, name: str, entry: Member | Link | None) -> None:
        """Add a file, a link or (None) a folder; as when unpacking, a later file replaces an earlier one."""
        *parents, last = name.split("/")
        folder = self._root
        for part in parents:
            node = folder.get(part)
            if isinstance(node, Link):
                raise TreeError(f"{name!r} is below the link {part!r} -> {node.target!r}")
            if not isinstance(node, dict):
                node = folder[part] = {}
            folder = node
        if entry is not None:
            folder[last] = entry
        elif not isinstance(folder.get(last), dict):
            folder[last] = {}

    def add_hard_link(self, name: str, target: str) -> None:
        """A second name for the entry added as `target`."""
        found = self._at(target.split("/"))
        self.add(name, Member(target, 0) if found is None or isinstance(found, dict) else found)

    def walk(self) -> Iterator[tuple[str, Member | None]]:
        """All files, and (None) folders, sorted by name; links are followed. Raises ValueError for too deep folders."""
        yield from self._walk("", (), self._root, ())

    def _walk(
        self, prefix: str, real: _Path, folder: _Folder, above: tuple[int, ...]
    ) -> Iterator[tuple[str, Member | None]]:
        """prefix: the name under which the folder is reached; real: its location without links."""
        if len(above) > DEEPEST_FOLDER:
            raise TreeError(f"more than {DEEPEST_FOLDER} nested folders: {prefix[:200]}…")
        for name, node in sorted(folder.items()):
            path = f"{prefix}{name}"
            step = self._resolved((*real, name), node, [_MOST_LINKS])
            if step is None:
                assert isinstance(node, Link)
                yield path, Member(node.target, 0)
                continue
            place, found = step
            if isinstance(found, Member):
                yield path, found
            elif id(found) in (id(folder), *above):
                logger.warning("%s: a link to one of its parent folders; not entered again", path)
            else:
                yield path, None
                yield from self._walk(f"{path}/", place, found, (*above, id(folder)))

    def _at(self, path: Sequence[str]) -> _Node | None:
        node: _Node = self._root
        for part in path:
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node

    def _resolved(self, path: _Path, node: _Node, links_left: list[int]) -> tuple[_Path, Member | _Folder] | None:
        """The node at `path`, which contains or is `node`, and its location without links.

        None for a link that leads out of the archive, nowhere, or through too many others. links_left: a single
        counter, decremented for every link on the way.
        """
        if not isinstance(node, Link):
            return path, node
        links_left[0] -= 1
        if links_left[0] < 0 or node.target.startswith("/"):
            return None
        real, found = path[:-1], self._at(path[:-1])
        for part in node.target.split("/"):
            if part in ("", "."):
                continue
            if part == "..":
                if not real:
                    return None
                real = real[:-1]
                found = self._at(real)
                continue
            if not isinstance(found, dict) or part not in found:
                return None
            step = self._resolved((*real, part), found[part], links_left)
            if step is None:
                return None
            real, found = step
        assert found is not None
        assert not isinstance(found, Link)
        return real, found
