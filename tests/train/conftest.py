from pathlib import Path

import pytest

from tests.helpers.runs import make_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training and a test set; never written to."""
    return make_data(tmp_path_factory.mktemp("data"))
