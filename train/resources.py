"""Files included with this project, in a checkout or a wheel: recipes, the launcher's configuration."""

import difflib
from pathlib import Path

_DATA = Path(__file__).resolve().parents[1] / "longtail"
RECIPES_FOLDER = _DATA / "recipes"  # in a checkout a link to recipes/
ACCELERATE_CONFIG = _DATA / "accelerate_config.yaml"


def recipe_names() -> list[str]:
    """Every recipe as DATASET/METHOD, sorted."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in RECIPES_FOLDER.glob("*/*.yaml"))


def find_recipe(text: str) -> Path:
    """The file of a recipe: a path, or DATASET/METHOD of an included one.

    Raises:
        FileNotFoundError: it is neither; the message names similar recipes.
    """
    path = Path(text)
    if path.is_file():
        return path
    name = "/".join(path.with_suffix("").parts[-2:])
    if name in recipe_names() and (text.startswith("recipes/") or text.removesuffix(".yaml") == name):
        return RECIPES_FOLDER / f"{name}.yaml"
    similar = difflib.get_close_matches(name, recipe_names(), 3)
    hint = f"did you mean {', '.join(similar)}?" if similar else "`longtail recipes` lists the included ones"
    raise FileNotFoundError(f"recipe {text}: there is no such file or included recipe; {hint}")
