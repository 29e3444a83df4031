#!/usr/bin/env bash
# All that only a GPU can tell, in pieces; see tools/benchmarks/gpu_day.py.
# Paths are from the repository's root. PYTHON is the interpreter: by default that of .venv, or else python3.
#   benchmarks/gpu/run.sh --out OUT [--pack OUT.tar.gz] [--images FOLDER_OF_JPEGS] [--cifar10 cifar10-jpeg.zip] \
#     [--only PIECE ...] [--toy]
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ -z "${PYTHON:-}" ]; then PYTHON=.venv/bin/python; [ -x "$PYTHON" ] || PYTHON=python3; fi
exec "$PYTHON" -m tools.benchmarks.gpu_day "$@"
