"""An S3 server on the loopback address (moto's), for tests; they are skipped where it or obstore is not installed."""

import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "bucket"


def environment(endpoint: str) -> dict[str, str]:
    """What a user would export to reach this server."""
    return {
        "AWS_ACCESS_KEY_ID": "a-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server with one empty bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=30):
            pass
        yield endpoint
    finally:
        server.stop()


def upload(folder: Path, url: str) -> None:
    """All files of a folder, with the endpoint of the environment."""
    from shards.object_store import Bucket

    bucket = Bucket(url)
    for path in sorted(folder.iterdir()):
        bucket.write(path.name, path)


@contextmanager
def exported(variables: dict[str, str]) -> Iterator[None]:
    """These variables in the environment of this process and of those it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
