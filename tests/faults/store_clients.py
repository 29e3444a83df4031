"""obstore, with our retries around it, against s3fs: many ranged reads of 1 to 100 kB, 64 at a time, 50 ms latency.

    pip install --target /tmp/s3fs s3fs     # apart: it wants another botocore than moto
    python -m tests.faults.store_clients --s3fs /tmp/s3fs

Prints seconds and CPU seconds of the client's process, each round in turn. The server is moto's, in another process:
how many answers it gives per second bounds both.
"""

import argparse
import os
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from shards.object_store import Bucket
from tests.faults.stores import LATENCY_SECONDS
from tests.helpers.fault_proxy import Behaviour, proxy
from tests.helpers.s3 import BUCKET, environment, exported, s3_server

_OBJECT_BYTES, _AT_A_TIME = 2**20, 64  # moto copies the whole object for each answer
_NAME = "object"
Ranges = list[tuple[int, int]]


def ranges_of(reads: int) -> Ranges:
    """First byte and last + 1 of each read; sizes are spread evenly in their logarithm."""
    rng = random.Random(0)
    sizes = [int(1000 * 100 ** rng.random()) for _ in range(reads)]
    starts = [rng.randrange(_OBJECT_BYTES - size) for size in sizes]
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def by_obstore(ranges: Ranges) -> list[bytes]:
    """As `RemoteShardSet` reads."""
    bucket = Bucket(f"s3://{BUCKET}")
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return list(pool.map(lambda each: bucket.read(_NAME, *each), ranges))


def by_s3fs(ranges: Ranges) -> list[bytes]:
    """As its documentation has it for many ranges."""
    import s3fs

    client = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "region_name": os.environ["AWS_REGION"]}
    pool = {"max_pool_connections": _AT_A_TIME}
    system = s3fs.S3FileSystem(client_kwargs=client, config_kwargs=pool, anon=False)
    starts, ends = zip(*ranges, strict=True)
    return system.cat_ranges([f"{BUCKET}/{_NAME}"] * len(ranges), list(starts), list(ends), batch_size=_AT_A_TIME)


CLIENTS: dict[str, Callable[[Ranges], list[bytes]]] = {"obstore": by_obstore, "s3fs": by_s3fs}


def child(name: str, reads: int) -> None:
    """Read in this process; prints seconds, CPU seconds, and a checksum of what came."""
    ranges = ranges_of(reads)
    CLIENTS[name](ranges[:_AT_A_TIME])  # imports, connections
    started, cpu = time.perf_counter(), time.process_time()
    answers = CLIENTS[name](ranges)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(seconds, cpu, zlib.crc32(b"".join(answers)))


def main() -> int:
    """Start the server, and each client in its own process; 1 where a client returned other bytes."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.store_clients", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("--s3fs", type=Path, help="folder with an installation of s3fs")
    parser.add_argument("--reads", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    data = random.Random(1).randbytes(_OBJECT_BYTES)
    expected = zlib.crc32(b"".join(data[start:stop] for start, stop in ranges_of(options.reads)))
    line = Behaviour(latency_seconds=LATENCY_SECONDS)
    found: dict[str, list[list[float]]] = {name: [] for name in CLIENTS if name != "s3fs" or options.s3fs}
    with s3_server() as server, proxy(server, line) as endpoint:
        with exported(environment(server)):
            Bucket(f"s3://{BUCKET}").write(_NAME, data)
        for _ in range(options.rounds):
            for name, each in found.items():
                each.append(_run(name, endpoint, options))
    for name, each in found.items():
        seconds, cpu, _ = (median(values) for values in zip(*each, strict=True))
        print(f"{name}: {options.reads / seconds:.0f} reads/s, {1e6 * cpu / options.reads:.0f} µs of CPU per read")
    return int(any(crc32 != expected for each in found.values() for _, _, crc32 in each))


def _run(name: str, endpoint: str, options: argparse.Namespace) -> list[float]:
    paths = [str(Path(__file__).parents[2]), *([str(options.s3fs)] if name == "s3fs" else [])]
    variables = {**os.environ, **environment(endpoint), "PYTHONPATH": os.pathsep.join(reversed(paths))}
    code = f"from tests.faults.store_clients import child; child({name!r}, {options.reads})"
    done = subprocess.run([sys.executable, "-c", code], env=variables, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


if __name__ == "__main__":
    sys.exit(main())
