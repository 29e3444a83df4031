"""Checkpoints: complete, atomic, and refused if they do not match the run.

A checkpoint is one file of tensors and plain containers, read with `weights_only`, so loading one never executes code.
It is written under a temporary name and renamed once complete: a file with its final name is complete.
"""

import errno
import logging
import pickle
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from pipeline.plan import Position
from shards.files import OutsideError, atomic_file
from train.checkpoints.released import state_dict_of

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2  # version 1 had no class names
AVERAGED = "averaged"  # key of the moving average of the weights, if the run has one
_NAME = re.compile(r"epoch(\d{4,})-step(\d{6,})\.pt")
_TEMPORARY_SUFFIX = ".partial"


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` is never incomplete.

    Raises:
        OutsideError: the disk is full. Nothing of this checkpoint remains, and earlier ones are intact.
    """
    temporary = path.with_name(path.name + _TEMPORARY_SUFFIX)
    try:
        with atomic_file(path, temporary) as file:
            torch.save({"format_version": FORMAT_VERSION, **content}, file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutsideError(
            f"{path}: the disk is too full: about {_tensor_bytes(content):,} bytes needed, "
            f"{shutil.disk_usage(path.parent).free:,} free; make room and run the same command with --resume auto"
        ) from error


def checkpoint_file(path: Path) -> Path:
    """The checkpoint file for a path: for a run folder, its best weights.

    Raises:
        FileNotFoundError: there is no such file or folder, or the folder has no best checkpoint.
    """
    path = path.expanduser()
    if not path.is_dir():
        return path
    for best in (path / "checkpoints" / "best.pt", path / "best.pt"):
        if best.is_file():
            logger.info("%s is a folder; using its best checkpoint: %s", path, best)
            return best
    raise FileNotFoundError(
        f"{path}: a folder without checkpoints/best.pt, so not a run that has been evaluated; give a checkpoint file"
    )


def _tensor_bytes(content: Any) -> int:
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        content = content.values()
    elif not isinstance(content, list | tuple):
        return 0
    return sum(_tensor_bytes(part) for part in content)


class _Ignored:
    """Placeholder for any object other than tensors in a released file; keeps nothing."""

    def __new__(cls, *arguments: Any) -> "_Ignored":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read(path: Path) -> Any:
    """Read a file of tensors and plain containers from any source to the CPU.

    Nothing that the file names is imported or called, except what builds tensors and plain containers. Other objects,
    such as the settings in RIDE's files and numpy numbers in NCL's, become empty placeholders; subclasses of dict or
    list are refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or has other content.
    """
    try:
        # Files from before PyTorch 1.6 are not archives and cannot be searched for classes.
        foreign = get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        with safe_globals([(_Ignored, name) for name in foreign]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such checkpoint; the checkpoints of a run are in its checkpoints/ folder"
        ) from None
    except Exception as error:  # the type depends on where the file is damaged
        message = f"{path}: damaged, or not a checkpoint of tensors and plain containers: {error}"
        if isinstance(error, pickle.UnpicklingError):
            weights = f"torch.load({str(path)!r}, map_location='cpu', weights_only=False)['state_dict']"
            message += (
                "\nIf the file is intact and you trust its author, save only its weights; this runs code from the file "
                f"and needs the code that wrote it: torch.save({{'state_dict': {weights}}}, 'weights.pt')"
            )
        raise ValueError(message) from error


def load(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints to the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not one of ours.
    """
    content = read(path)
    _check_content(path, content)
    return content


def _check_content(path: Path, content: Any) -> None:
    """Refuse a damaged file, and one that is not of this format."""
    _check_sums(path)
    found = content.get("format_version") if isinstance(content, dict) else type(content).__name__
    if found == 1:
        raise ValueError(
            f"{path}: checkpoint format 1, from an earlier version of this program; format {FORMAT_VERSION} has class "
            "names, and options have other names. Use the version that wrote it (its commit is in the run's "
            "result.json), or train again"
        )
    if found != FORMAT_VERSION:
        raise ValueError(
            f"{path}: checkpoint format {found}, expected {FORMAT_VERSION}, the format of this version of the code"
        )


def _check_sums(path: Path) -> None:
    """Refuse a checkpoint with a flipped bit: torch reads tensors without verifying their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"{path}: damaged: the checksum of {damaged} does not match its content")


def counting_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The evaluated weights in the result of `load`: the moving average if there is one."""
    return content.get(AVERAGED, content["model"])


def load_weights(
    model: nn.Module,
    path: Path,
    wanted: Callable[[str], bool],
    required: Callable[[str], bool] = lambda name: False,
    backbone_sha256: str | None = None,
) -> None:
    """Load the wanted model weights of a checkpoint by name; names in only one of the two are logged.

    The checkpoint is one of ours or a released file, see train/checkpoints/released.py. `backbone_sha256` names the
    pretrained weights that the model has already.

    Raises:
        ValueError: a shared parameter differs in shape, nothing is shared, a required one is missing, or the checkpoint
            holds tensors tuned with other pretrained weights.
    """
    path = checkpoint_file(path)
    content = read(path)
    is_ours = isinstance(content, dict) and "format_version" in content
    if is_ours:
        _check_content(path, content)
        stored = content.get("fit", {}).get("weights_sha256")
        check_backbone(path, stored, backbone_sha256, "--model.weights, beside --model.init_from")
    found = counting_weights(content) if is_ours else state_dict_of(content)
    weights, own = {name: value for name, value in found.items() if wanted(name)}, model.state_dict()
    shared = {name: value for name, value in weights.items() if name in own}
    shapes = [
        f"{name} {tuple(value.shape)} in the checkpoint, {tuple(own[name].shape)} in the model"
        for name, value in shared.items()
        if value.shape != own[name].shape
    ]
    if shapes or not shared:
        raise ValueError(f"{path} does not fit the model: {'; '.join(shapes[:5]) or 'no parameter name is shared'}")
    absent = sorted(name for name in own if name not in weights and wanted(name) and required(name))
    if absent:
        raise ValueError(
            f"{path}: {', '.join(absent)} not in the checkpoint, but the method continues from them; give the "
            "checkpoint of a first stage that trained them"
        )
    for what, names in (
        ("not in the model", set(weights) - set(own)),
        ("not in the checkpoint", set(own) - set(weights)),
    ):
        if names:
            logger.warning("%s: %d tensors are %s: %s", path, len(names), what, ", ".join(sorted(names)))
    model.load_state_dict(shared, strict=False)


def check_backbone(path: Path, stored: str | None, given: str | None, how: str) -> None:
    """Refuse a checkpoint of tuned tensors with pretrained weights other than those it was tuned with.

    Args:
        stored, given: sha256 of the weights, in the checkpoint (None if it is complete) and at hand (None for none).
        how: the option that gives them.

    Raises:
        ValueError: the weights are missing, or different ones.
    """
    if stored is not None and stored != given:
        has = "none are given" if given is None else f"those given have {given[:12]}…"
        raise ValueError(
            f"{path} has only the tuned tensors and belongs to pretrained weights of sha256 {stored[:12]}…, but {has}; "
            f"give their file with {how}"
        )


def stored_part(state: Mapping[str, Tensor], stores: Callable[[str], bool] | None) -> dict[str, Tensor]:
    """The part of a state dict in a checkpoint: everything, or, if a file has the other tensors, what it `stores`."""
    return {name: value for name, value in state.items() if stores is None or stores(name)}


def load_stored_part(model: nn.Module, state: Mapping[str, Tensor], stores: Callable[[str], bool] | None) -> None:
    """Load the result of `stored_part`.

    Raises:
        RuntimeError: names or shapes are not the model's.
    """
    model.load_state_dict({**model.state_dict(), **state} if stores is not None else state)
    absent = stored_part(model.state_dict(), stores).keys() - state.keys()
    if absent:
        raise RuntimeError(f"the checkpoint lacks {', '.join(sorted(absent)[:5])}")


def check_fit(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run, naming both values of everything that differs."""
    differences = [
        f"{name}: {found.get(name)!r} in the checkpoint, {expected.get(name)!r} in this run"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise ValueError(
            f"{path} does not match this run:\n  {listed}\n"
            "Use the options it was made with, or start over in another --run_dir. To train a finished run for longer, "
            "start a new one from its weights: --model.init_from RUN_FOLDER --run_dir ANOTHER"
        )


class CheckpointFolder:
    """The checkpoints of one run: the last few by position, and the best."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    @property
    def best(self) -> Path:
        """The path of the best model."""
        return self.folder / "best.pt"

    def prepare(self) -> None:
        """Create the folder, and remove the temporary files of killed runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"*{_TEMPORARY_SUFFIX}"):
            leftover.unlink()

    def positions(self) -> list[tuple[Position, Path]]:
        """Complete checkpoints, oldest first."""
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("epoch*-step*.pt"))
        return sorted((Position(int(m[1]), int(m[2])), path) for m, path in matches if m)

    def save(self, position: Position, content: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a position, then delete the oldest beyond `keep`.

        Checkpoints of later positions are deleted too: the run went back before them, because they are damaged or an
        earlier one was requested, and their metrics are gone. If they counted, they would displace this one.
        """
        path = self.folder / f"epoch{position.epoch:04d}-step{position.step:06d}.pt"
        save(path, content)
        positions = self.positions()
        passed = [old for where, old in positions if where <= position]
        abandoned = [later for where, later in positions if where > position]
        for unwanted in (*passed[: -self.keep], *abandoned):
            unwanted.unlink()
        return path

    def load_latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest readable checkpoint, None if there is none; damaged ones are reported and skipped.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        positions = self.positions()
        for _, path in reversed(positions):
            try:
                return path, load(path)
            except ValueError as error:
                logger.warning("%s; trying the checkpoint before it", error)
        if positions:
            raise ValueError(
                f"{self.folder}: none of {len(positions)} checkpoints can be read; restore one of them, or start over "
                "in another --run_dir"
            )
        return None


def newest_of(run_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The newest state to resume from in a run folder or its checkpoints folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: all of them are damaged.
    """
    for folder in (run_dir / "checkpoints", run_dir):
        found = CheckpointFolder(folder, keep=1).load_latest()
        if found is not None:
            return found
    raise FileNotFoundError(f"{run_dir}: a folder without epoch….pt files, so there is nothing to resume from")
