"""Hosts on one machine: network namespaces joined by one cable; they see each other and nothing else."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

SUBNET = "10.213.7"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def two_hosts() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces, with the addresses SUBNET.1 and SUBNET.2; skips where they are not permitted."""
    names = tuple(f"longtail-{os.getpid()}-{letter}" for letter in "ab")
    ends = tuple(f"lt{os.getpid() % 10**8}{letter}" for letter in "ab")
    try:
        try:
            for name in names:
                _ip("netns", "add", name)
            _ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
            for number, (name, end) in enumerate(zip(names, ends, strict=True), start=1):
                _ip("-n", name, "addr", "add", f"{SUBNET}.{number}/24", "dev", end)
                for device in (end, "lo"):
                    _ip("-n", name, "link", "set", device, "up")
        except FileNotFoundError:
            pytest.skip("needs the command ip (iproute2) to make network namespaces")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield names[0], names[1]
    finally:
        for name in names:  # their interfaces go with them
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def interface(host: str) -> str:
    """The network interface of a host, by which gloo has to listen: it has no name that resolves."""
    return f"lt{os.getpid() % 10**8}{host[-1]}"


def on_host(host: str, command: list[str]) -> list[str]:
    """The command, run on a host."""
    return ["ip", "netns", "exec", host, *command]
