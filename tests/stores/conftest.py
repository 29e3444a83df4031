"""One S3 server for all tests of this folder, reached through a proxy that each test may spoil."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import s3
from tests.helpers.fault_proxy import Behaviour, proxy


@dataclass
class Store:
    """url: of an empty prefix, new for each test. line: how the proxy in front of the server behaves."""

    url: str
    line: Behaviour


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    pytest.importorskip("obstore", reason="needs the extra 'store'")
    pytest.importorskip("moto", reason="needs moto's S3 server (the extra 'dev')")
    with s3.s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def store(server: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    line = Behaviour()
    with proxy(server, line) as endpoint, s3.exported(s3.environment(endpoint)):
        yield Store(f"s3://{s3.BUCKET}/{tmp_path.name}", line)
