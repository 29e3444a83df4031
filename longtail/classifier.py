"""`longtail.Classifier`: a trained network that classifies images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from shards.images import as_rgb
from tools.predict import find_images, shown
from train.checkpoints.trained import Trained, load_trained
from train.evaluation.test_prior import with_test_prior
from train.launch import device_of

Picture = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class Prediction:
    """The best classes for one image.

    Attributes:
        image: its path, or None if it was given as pixels.
        names: the best classes, best first.
        classes: their numbers.
        probabilities: their probabilities, from the softmax over all classes.
    """

    image: Path | None
    names: tuple[str, ...]
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def name(self) -> str:
        """The best class."""
        return self.names[0]

    @property
    def probability(self) -> float:
        """The probability of the best class."""
        return self.probabilities[0]


class Classifier:
    """A network with its preset and class names; made by `Classifier.load`.

    Attributes:
        class_names: names of its outputs, in order; numbers for a released checkpoint, which stores no names.
    """

    def __init__(self, trained: Trained, crops: Literal[1, 5] = 1):
        self._trained = trained
        self._views = trained.views(crops)
        self.class_names = list(trained.class_names or map(str, range(trained.classes)))

    @classmethod
    def load(
        cls,
        run_or_file: str | Path,
        device: str = "auto",
        preset: str | None = None,
        *,
        crops: Literal[1, 5] = 1,
        test_prior: str | Sequence[float] = "uniform",
        weights: str | Path | None = None,
    ) -> "Classifier":
        """Read a run's best weights, or a checkpoint file (from a run or as released by a paper's authors).

        Args:
            run_or_file: a run folder or a checkpoint.
            device: "auto" (a GPU if there is one), "cpu" or "cuda".
            preset: how images are prepared for the network; by default as in the run.
            crops: 5 averages the logits of five crops of each image, for presets that follow the backbone.
            test_prior: class distribution in deployment: "uniform", "train" (that of training), a list of counts or
                shares in the order of the classes, or a JSON file with one.
            weights: new location of a tuned checkpoint's pretrained weights.

        Raises:
            FileNotFoundError, ValueError: the file does not exist or is damaged, or its network is unknown.
        """
        moved = None if weights is None else Path(weights)
        trained = load_trained(Path(run_or_file), device_of(device), preset, moved)
        return cls(with_test_prior(trained, test_prior, trained.samples_per_class), crops)

    def predict(self, pictures: Picture | Sequence[Picture], top: int = 5, batch_size: int = 64) -> list[Prediction]:
        """The `top` best classes for each image.

        Args:
            pictures: a path, a folder (searched for images), a PIL image, uint8 (height, width, 3) or
                (batch, height, width, 3) of any size in RGB, or a sequence of these.

        Raises:
            FileNotFoundError, ValueError: a path does not exist, or a file is not an image.
        """
        found: list[Prediction] = []
        sources = list(_flat(pictures))
        for start in range(0, len(sources), batch_size):
            part = sources[start : start + batch_size]
            probabilities = self.probabilities(part)
            order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
            for source, row, classes in zip(part, probabilities, order, strict=True):
                found.append(
                    Prediction(
                        source if isinstance(source, Path) else None,
                        tuple(self.class_names[c] for c in classes),
                        tuple(map(int, classes)),
                        tuple(float(row[c]) for c in classes),
                    )
                )
        return found

    @torch.inference_mode()
    def probabilities(self, pictures: Picture | Sequence[Picture]) -> np.ndarray:
        """float32 (images, classes), the network's softmax; `pictures` as in `predict`, in one batch."""
        seen = [[shown(pixels, view) for view in self._views] for pixels in map(_pixels, _flat(pictures))]
        device = self._trained.method.context.device
        logits = [
            self._trained.logits(torch.from_numpy(np.stack(pixels)).to(device)) for pixels in zip(*seen, strict=True)
        ]
        return torch.stack(logits).mean(dim=0).softmax(dim=1).cpu().numpy()

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:3]) + (" …" if len(self.class_names) > 3 else "")
        return f"Classifier({str(self._trained.path)!r}: {self._trained.description} ({names}))"


def _pixels(picture: Path | Image.Image | np.ndarray) -> np.ndarray:
    """uint8 (height, width, 3), as a shard set would hold it."""
    if isinstance(picture, Path):
        return as_rgb(picture.read_bytes())
    return picture if isinstance(picture, np.ndarray) else np.asarray(picture.convert("RGB"))


def _flat(pictures: Picture | Sequence[Picture]) -> Iterator[Path | Image.Image | np.ndarray]:
    """One image after another."""
    if isinstance(pictures, str | Path):
        yield from find_images([Path(pictures)])
    elif isinstance(pictures, Image.Image):
        yield pictures
    elif isinstance(pictures, np.ndarray):
        if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or pictures.shape[-1] != 3:
            raise ValueError(
                f"found an array {pictures.dtype} {pictures.shape}, expected uint8 (height, width, 3) or "
                "(batch, height, width, 3)"
            )
        yield from pictures if pictures.ndim == 4 else pictures[None]
    else:
        for picture in pictures:
            yield from _flat(picture)
