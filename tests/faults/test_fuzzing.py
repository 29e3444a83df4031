"""Mutated valid files are read or refused with a documented error: never another one, a hang, or a wrong result."""

import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.fuzz import TARGETS, Target, check

SLOW_PARSERS = {"recipe": 25}  # examples; building the command line takes a tenth of a second


@cache
def target(name: str) -> Target:
    return TARGETS[name]()


@st.composite
def mutations(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid` after one to three of: bytes replaced, taken out, put in or repeated, or the end cut off."""
    data = valid
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 40)))
        fresh = draw(st.binary(max_size=8) | st.sampled_from([data[start:end] * 2, b"\xff" * 4, b"-1", b"0", b"[" * 9]))
        data = data[:start] + fresh + draw(st.sampled_from([data[end:], data[start + len(fresh) :], b""]))
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_are_read(name: str, tmp_path: Path) -> None:
    target(name).read(target(name).valid, tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_are_read_or_refused(name: str) -> None:
    @settings(max_examples=SLOW_PARSERS.get(name, 150), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(mutations(target(name).valid))
    def run(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            check(target(name), data, Path(scratch))

    run()
