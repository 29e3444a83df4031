"""docs/reliability.md names a test for each promise; here, that the tests exist."""

import re

from tests.helpers.runs import ROOT


def test_every_promise_names_a_test_that_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text().partition("## Figures")[0]
    rows = [
        line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| started"))
    ]
    promises = [row for row in rows if not re.match(r"\| `(python|accelerate)", row)]
    assert len(promises) > 15
    for row in promises:
        named = re.findall(r"`(\w+/test_\w+\.py)(?:::(test_\w+))?`", row)
        assert named, row
        for file, function in named:
            source = (ROOT / "tests" / file).read_text()
            assert not function or f"def {function}(" in source, f"{file}::{function}"
