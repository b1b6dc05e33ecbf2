#!/bin/bash
# Packs vLLM for a GPU machine without a network, in three parts of at most 50 MB, for ways that carry no more at once:
#
#   tests/gpu/vllm_pack.sh [FOLDER, .gpu-vllm by default]     then FOLDER/1, 2 and 3 travel, one by one
#   tests/gpu/vllm_pack.sh code FOLDER                        wattflow alone, 2 MB, for engines that are there already
#
# There, torch 2.11, transformers, pyarrow and nvidia-ml-py must be in the Python (3.12); tests/gpu/vllm.sh unpacks the
# parts and measures. Left out of vLLM: kernels of other GPUs, FlashAttention 2, mixtures of experts and what serves HTTP.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
HERE=$ROOT/tests/gpu
platforms=()
for name in manylinux_2_31 manylinux_2_28 manylinux_2_17 manylinux2014 manylinux1; do platforms+=(--platform "${name}_x86_64"); done
fetch() { # FOLDER WHAT...
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest "$@"
}

work=${WORK:-$(mktemp -d)}
code() { # FOLDER: the checkout, and wheels of what the Python there lacks
  mkdir -p "$1"
  git -C "$ROOT" archive --format=tar.gz --output="$1/checkout.tgz" HEAD wattflow conf
  for name in fairscale antlr4-python3-runtime hydra-core omegaconf submitit; do
    version=$("$PYTHON" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$name")
    [ -n "$(find "$work/ours" -name "${name//-/_}-*" 2>/dev/null)" ] ||
      "$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$work/ours" "$name==$version"
  done
  rm -rf "$1/wheels"
  cp -r "$work/ours" "$1/wheels"
  cp "$HERE/vllm.sh" "$1/"
}
if [ "${1:-}" = code ]; then
  code "$(realpath -m "${2:?a folder}")"
  exit
fi
OUT=$(realpath -m "${1:-$ROOT/.gpu-vllm}")
mkdir -p "$work/site" "$OUT/1" "$OUT/2" "$OUT/3"
[ -d "$work/vllm" ] || fetch "$work/vllm" vllm==0.24.0
mapfile -t names <"$HERE/vllm_wheels.txt"
[ -d "$work/wheels" ] || fetch "$work/wheels" "${names[@]}"
[ -d "$work/site/vllm" ] || for wheel in "$work"/vllm/*.whl "$work"/wheels/*.whl; do "$PYTHON" -m zipfile -e "$wheel" "$work/site"; done
cd "$work/site"
rm -rf vllm/vllm-rs vllm/_rust_tool_parser* vllm/_moe_C* vllm/_qutlass* vllm/vllm_flash_attn/_vllm_fa2_C* \
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
tar -cf - --exclude="$big" . | xz -T0 -6 >"$OUT/1/site.tar.xz"
gzip -9 -c "$big" >"$work/big.gz"
head -c 45000000 "$work/big.gz" >"$OUT/2/big.gz"
tail -c +45000001 "$work/big.gz" >"$OUT/3/big.gz"
code "$OUT/3"
for part in 1 2; do cp "$HERE/vllm.sh" "$OUT/$part/"; done
du -sh "$OUT"/*
