"""Write docs/first_steps.ipynb from docs/api.md: python -m tools.notebook. A test runs it."""

import json
import re
import sys
from pathlib import Path

_DOCS = Path(__file__).parents[1] / "docs"


def notebook(page: str) -> dict[str, object]:
    """The page's text as Markdown cells, its Python blocks as code cells without output."""
    cells: list[dict[str, object]] = []
    for number, part in enumerate(re.split(r"```python\n(.*?)```\n", page, flags=re.DOTALL)):
        text = part.strip("\n")
        if not text:
            continue
        shared: dict[str, object] = {"id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        if number % 2:
            cells.append({"cell_type": "code", "execution_count": None, "outputs": [], **shared})
        else:
            cells.append({"cell_type": "markdown", **shared})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def main() -> int:
    """Write the notebook."""
    content = notebook((_DOCS / "api.md").read_text(encoding="utf-8"))
    (_DOCS / "first_steps.ipynb").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
