"""README.md of an exported network, in the layout of the Hugging Face Hub: how to use it, results, data, licence."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from train.checkpoints.trained import Trained
from train.evaluation.metrics import MEANINGS

CARD = "README.md"
_SHOWN = {
    "Accuracy": "all",
    "Balanced accuracy": "balanced",
    "Many": "many",
    "Medium": "medium",
    "Few": "few",
    "Top-5": "top5",
    "F1 macro": "f1_macro",
    "AUROC": "auroc",
    "Calibration error (ECE)": "calibration_error",
}


def write_model_card(
    folder: Path,
    trained: Trained,
    title: str,
    licence: str | None,
    timm_alone: bool,
    files: Sequence[tuple[str, str, str]],
) -> None:
    """Write the card; results and data come from the checkpoint's run, if there is one.

    Args:
        licence: a Hub identifier, for example apache-2.0; None states that it is open.
        files: name, input and description of the files other than timm's two.
    """
    result, weights = run_result(trained.path)
    reported = "test" if "test" in result else "validation"
    numbers = result.get(reported, {}).get(weights, {})
    normalization = trained.preset.normalization
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "assets"), trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("README.md.j2").render(
        title=title,
        license=licence,
        description=trained.description[:1].upper() + trained.description[1:],
        size=trained.preset.evaluation.size,
        mean=", ".join(f"{value:.4g}" for value in normalization.mean),
        std=", ".join(f"{value:.4g}" for value in normalization.std),
        timm_alone=timm_alone,
        files=files,
        metrics=[(name, key, numbers[key]) for name, key in _SHOWN.items() if numbers.get(key) is not None],
        meanings=MEANINGS,
        weights=weights,
        group_rule=result.get("group_rule"),
        test_name=_name_of(result.get("data", {}).get(reported)),
        data=result.get("data", {}),
    )
    (folder / CARD).write_text(text, encoding="utf-8")


def _name_of(data: dict[str, Any] | None) -> str | None:
    return None if data is None else f"{data['name']} ({data['split']})"


def run_result(checkpoint: Path) -> tuple[dict[str, Any], str]:
    """result.json of a checkpoint's run, empty if there is none, and which of its weights these are.

    Only the latest checkpoint counts as "last".
    """
    folder = checkpoint.resolve().parent
    path = folder.parent / "result.json"
    if folder.name != "checkpoints" or not path.is_file():
        return {}, "last"
    if checkpoint.name == "best.pt":
        return json.loads(path.read_text(encoding="utf-8")), "best"
    if checkpoint.name != max(other.name for other in folder.glob("epoch*-step*.pt")):
        return {}, "last"  # the results belong to later weights
    return json.loads(path.read_text(encoding="utf-8")), "last"
