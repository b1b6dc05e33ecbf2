#!/bin/bash
# Packs vLLM for a GPU machine without a network, in three parts of 53 MB, for ways that carry no more at once:
#
#   tests/gpu/vllm_pack.sh [FOLDER, .gpu-vllm by default]     then FOLDER/1, 2 and 3 travel, one by one
#
# There, torch 2.11, transformers, pyarrow and nvidia-ml-py must be in the Python (3.12); tests/gpu/engines.sh unpacks the
# parts and measures. Left out of vLLM: kernels of other GPUs, FlashAttention 2 and what serves HTTP.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
platforms=()
for name in manylinux_2_31 manylinux_2_28 manylinux_2_17 manylinux2014 manylinux1; do platforms+=(--platform "${name}_x86_64"); done
fetch() { # FOLDER WHAT...
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest "$@"
}

work=${WORK:-$(mktemp -d)}
OUT=$(realpath -m "${1:-$ROOT/.gpu-vllm}")
mkdir -p "$work/site"
[ -d "$work/vllm" ] || fetch "$work/vllm" vllm==0.24.0
mapfile -t names <"$ROOT/tests/gpu/vllm_wheels.txt"
[ -d "$work/wheels" ] || fetch "$work/wheels" "${names[@]}"
[ -d "$work/site/vllm" ] || for wheel in "$work"/vllm/*.whl "$work"/wheels/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$work/site"; done
cd "$work/site"
rm -rf vllm/vllm-rs vllm/_rust_tool_parser* vllm/_qutlass* vllm/vllm_flash_attn/_vllm_fa2_C* \
  vllm/third_party/deep_gemm vllm/third_party/fmha_sm100 xgrammar
mkdir -p xgrammar
cat >xgrammar/__init__.py <<'EOF'
"""Stands in for xgrammar, which is large: structured output is not used."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
EOF
big=vllm/_C_stable_libtorch.abi3.so
tar -cf - --exclude="$big" . | xz -T0 -6 >"$work/site.tar.xz"
gzip -9 -c "$big" >"$work/big.gz" # which xz takes minutes for, to save 5 %
rm -rf "$OUT"
mkdir -p "$OUT"/{1,2,3}
tar -C "$work" -cf - site.tar.xz big.gz | split --bytes=53000000 --numeric-suffixes=1 --suffix-length=1 - "$work/part-"
[ ! -e "$work/part-4" ] || { echo "vllm_pack.sh: more than three parts of 53 MB" >&2; exit 1; }
for part in 1 2 3; do mv "$work/part-$part" "$OUT/$part/part"; done
du -sh "$OUT"/*
