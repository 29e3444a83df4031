"""docs/architecture.md and CONTRIBUTING.md point at files that exist, and at the right ones."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WHERE = dict(re.findall(r"^\| ([^|]+?) \| `([^`]+)` \|$", PAGE.split("## Where to change what")[1], re.MULTILINE))
# What one would look for in the file that the table names.
EVIDENCE = {
    "change the crop of iNat18": r'"inat", CROP_224',
    "add a loss": r"class Classifier\(Objective\)",
    "add a mixing": r"class Paste\(",
    "see how a step resumes": r"def restore\(",
    "evaluate with another prior": r"prior",
    "add an archive format": r"tarfile|tar",
    "find what a published row was measured with": r"recipe: ",
}


@pytest.mark.parametrize("question", EVIDENCE)
def test_the_table_names_the_file_in_which_the_answer_is(question: str) -> None:
    assert re.search(EVIDENCE[question], (ROOT / WHERE[question]).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "docs/adding-a-method.md"])
def test_paths_on_the_pages_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = re.findall(r"`((?:shards|pipeline|train|tools|tests|docs|recipes)/[\w/.-]+)`", text)
    paths += [
        str((ROOT / page).parent.relative_to(ROOT) / target) for target in re.findall(r"\]\(([\w/.-]+\.md)\)", text)
    ]
    made_up = {"train/methods/objectives/focal.py", "recipes/digits-lt/focal.yaml", "recipes/DATASET/METHOD.yaml"}
    assert paths
    assert [path for path in paths if path not in made_up and not (ROOT / path).exists()] == []
