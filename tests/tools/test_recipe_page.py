"""recipes/README.md shows today's recipes, published numbers and results."""

from collections import Counter

from tools.paper_tables import RECIPES_FOLDER
from tools.recipe_page import PAGE, page


def test_the_page_is_fresh() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run python -m tools.recipe_page"


def test_every_recipe_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for path in RECIPES_FOLDER.glob("*/*.yaml"):
        assert f"--recipe {path.parent.name}/{path.stem}`" in text


def test_the_description_ends_before_the_command() -> None:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.endswith("` |"):
            assert len(line.split(" | ")[1]) < 200, line


def test_no_note_stands_in_many_recipes() -> None:
    lines = Counter(
        line
        for path in RECIPES_FOLDER.glob("*/*.yaml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#") and not line.startswith(("# Hardware", "# Published", "# For differences"))
    )
    assert [line for line, count in lines.items() if count > 6] == []
