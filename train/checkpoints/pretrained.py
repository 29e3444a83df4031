"""Pretrained weights: finding the file, reading it, and checking that it matches the network."""

import hashlib
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue

from safetensors.torch import load_file
from torch import Tensor, nn

from train.checkpoints.files import read
from train.checkpoints.released import state_dict_of
from train.models.build import ModelOptions, classifier_name

logger = logging.getLogger(__name__)

_HUB_SECONDS = 3.0


@dataclass(frozen=True)
class Pretrained:
    """A file of pretrained weights.

    Attributes:
        path: its location.
        name: a timm name with its tag, or the file's name.
        sha256: the file's hash.
    """

    path: Path
    name: str
    sha256: str


def find_pretrained(options: ModelOptions) -> Pretrained | None:
    """The weights that the options request, or None; builds nothing and reads no data.

    Raises:
        FileNotFoundError: `model.weights` is not a file.
        ValueError: timm's weights are not in its cache and cannot be downloaded, or do not exist.
    """
    if options.weights is not None:
        path = Path(options.weights)  # text in a checkpoint
        if not path.is_file():
            raise FileNotFoundError(f"model.weights: {path} is not a file; give safetensors or .pth of {options.name}")
        return Pretrained(path, path.name, file_sha256(path))
    if not options.pretrained:
        return None
    path, name = _from_hub(options.name)
    logger.info("pretrained weights %s: %s", name, path)
    return Pretrained(path, name, file_sha256(path))


def _from_hub(name: str) -> tuple[Path, str]:
    # Imported here: a run from scratch needs neither.
    import timm
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise ValueError(f"model.pretrained: timm has no weights for {name}; omit it, or give --model.weights FILE")
    full_name, file = f"{config.architecture}.{config.tag}", "model.safetensors"
    cached = try_to_load_from_cache(config.hf_hub_id, file)
    if isinstance(cached, str):
        return Path(cached), full_name
    try:
        _check_reachable()
        return Path(hf_hub_download(config.hf_hub_id, file, etag_timeout=_HUB_SECONDS)), full_name
    except Exception as error:  # network errors have many classes
        raise ValueError(
            f"model.pretrained: the weights {full_name} are not in the local cache and the hub cannot be reached; "
            f"download {file} of {config.hf_hub_id} elsewhere and pass it with --model.weights FILE ({error})"
        ) from error


def _check_reachable() -> None:
    """Fail at once without a network: the client itself retries for a minute.

    In a thread of its own, as a time limit of a connection holds for each address of a name, and not for finding them.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set")
    answers: Queue[Exception | None] = Queue()
    threading.Thread(target=lambda: answers.put(_asked(constants.ENDPOINT)), daemon=True).start()
    try:
        failure = answers.get(timeout=_HUB_SECONDS)
    except Empty:
        failure = TimeoutError(f"no answer within {_HUB_SECONDS:g} s")
    if failure is not None:
        raise failure


def _asked(endpoint: str) -> Exception | None:
    """Why a server gives no answer, None where it does."""
    from urllib.request import Request, urlopen

    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=_HUB_SECONDS).close()
    except Exception as error:  # network errors have many classes
        return error
    return None


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_pretrained(model: nn.Module, pretrained: Pretrained, wanted: Callable[[str], bool]) -> None:
    """Load a backbone's weights, in place; into each timm network in the model, if there are several.

    A classifier of a different size keeps its random weights. timm's own conversion runs first: it resizes position
    embeddings and renames the tensors of other publishers.

    Args:
        wanted: whether a tensor of the network, by name, is loaded from the file; the others are unchanged.

    Raises:
        ValueError: the file is damaged, belongs to another network, or lacks wanted tensors.
    """
    networks = [(name, module) for name, module in model.named_modules() if hasattr(module, "pretrained_cfg")]
    if not networks:
        raise ValueError(f"a {type(model).__name__} cannot start from pretrained weights; omit model.pretrained")
    for prefix, network in networks:
        dotted = f"{prefix}." if prefix else ""
        _load(network, pretrained, lambda name, dotted=dotted: wanted(dotted + name))  # type: ignore[misc]


def _load(model: nn.Module, pretrained: Pretrained, wanted: Callable[[str], bool]) -> None:
    weights = _read(pretrained.path)
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        weights = convert(weights, model)
    own = model.state_dict()
    head = f"{classifier_name(model)}."
    usable = {
        name: value
        for name, value in weights.items()
        if name in own and wanted(name) and not (name.startswith(head) and value.shape != own[name].shape)
    }
    absent = [
        name
        for name in own
        if wanted(name) and name not in usable and not name.startswith(head) and "num_batches_tracked" not in name
    ]
    other = [name for name, value in usable.items() if value.shape != own[name].shape]
    if absent or other:
        listed = ", ".join(
            [f"{name} is missing" for name in absent[:3]] + [f"{n} has another shape" for n in other[:3]]
        )
        raise ValueError(
            f"{pretrained.path} does not match the backbone {type(model).__name__}: {len(absent)} tensors missing, "
            f"{len(other)} of another shape ({listed}); give the weights of model.name, with timm's names"
        )
    model.load_state_dict(usable, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # the library's own exception class is not specific
            raise ValueError(f"{path}: damaged, or not a safetensors file: {error}") from error
    content = read(path)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):  # as in DeiT's, DINO's and ours
        content = content["model"]
    try:
        return state_dict_of(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
