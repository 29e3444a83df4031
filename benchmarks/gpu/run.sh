#!/usr/bin/env bash
# Everything that needs a GPU, in parts; see tools/benchmarks/gpu_day.py.
#   benchmarks/gpu/run.sh --out OUT [--images FOLDER_OF_JPEGS] [--cifar10 cifar10-jpeg.zip] [--only PIECE ...] [--toy]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-.venv/bin/python}" -m tools.benchmarks.gpu_day "$@"
