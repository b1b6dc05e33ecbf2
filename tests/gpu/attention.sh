#!/bin/bash
# The fast engine's attention, packed prefills, fp8 and copy ceiling on one GPU, then whole batches of this checkout
# against an older one's, in turn. Some 4 minutes on an H200.
#
#   tests/gpu/attention.sh pack FOLDER [COMMIT]            here: this checkout, the older one, four wheels; 3 MB
#   PARTS=FOLDER OUT=results tests/gpu/attention.sh measure [ATTENTION_S BATCHES_S]
#   PARTS=FOLDER OUT=results VLLM=SITE tests/gpu/attention.sh beside [ATTENTION_S ALL_S]   with vLLM in SITE, which starts
#                                                          meanwhile (tests/gpu/engines.sh unpacks it), then both in turns
#   DRY=1 PARTS=FOLDER OUT=results tests/gpu/attention.sh measure      (here, without a GPU)
#
# Python >= 3.11 with torch, pyarrow, numpy, nvidia-ml-py and safetensors must be there.
set -euo pipefail
PARTS=$(realpath -m "${PARTS:-.}")
WORK=${WORK:-/tmp/wattflow-attention}
PYTHON=${PYTHON:-python3}

pack() { # FOLDER [COMMIT]
  local root out older=${2:-5fb5009} wanted=()
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
  out=$(realpath -m "$1")
  mkdir -p "$out"
  git -C "$root" archive --format=tar.gz --output="$out/checkout.tgz" HEAD wattflow conf tests/benchmarks
  git -C "$root" archive --format=tar.gz --output="$out/older.tgz" "$older" wattflow conf
  for name in fairscale antlr4-python3-runtime hydra-core omegaconf submitit; do
    wanted+=("$name==$("$root/.venv/bin/python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$name")")
  done
  [ -d "$out/wheels" ] || python3 -m pip wheel --quiet --no-deps --wheel-dir "$out/wheels" "${wanted[@]}"
  cp "${BASH_SOURCE[0]}" "$out/"
  du -sh "$out"
}

unpack() {
  mkdir -p "$WORK/now" "$WORK/older"
  tar -C "$WORK/now" -xzf "$PARTS/checkout.tgz"
  tar -C "$WORK/older" -xzf "$PARTS/older.tgz"
  [ "${DRY:-0}" = 1 ] || "$PYTHON" -m pip install --quiet --no-index --no-deps --no-cache-dir \
    --root-user-action=ignore --upgrade --target "$WORK/site" "$PARTS"/wheels/*.whl
}

prepare() {
  OUT=$(realpath -m "${OUT:?a folder for the results}")
  export OUT PYTHONUNBUFFERED=1 PYTHONPATH=$WORK/now:$WORK/site BEFORE=$WORK/older
  mkdir -p "$OUT"
  unpack
  cd "$WORK/now"
}

beside() { # [ATTENTION_S ALL_S]
  prepare
  export VLLM_PYTHONPATH=$WORK/now:$WORK/site:${VLLM:-} HOLD=$OUT/go
  export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_USE_DEEP_GEMM=0 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo TP_SOCKET_IFNAME=lo
  ARMS=${ARMS:-fast vllm fast-fp8 vllm-fp8} BATCHES=${BATCHES:-64 256 1} WINDOW_S=${WINDOW_S:-4} REPEATS=${REPEATS:-2} \
    DEADLINE_S=${2:-250} timeout $((${2:-250} + 30)) "$PYTHON" tests/benchmarks/engine_vllm.py >"$OUT/turns.txt" 2>&1 &
  DEADLINE_S=${1:-110} timeout $((${1:-110} + 20)) "$PYTHON" tests/benchmarks/engine_attention.py || true
  touch "$HOLD"
  wait
  cat "$OUT/turns.txt"
  ls -l "$OUT"
}

measure() { # [ATTENTION_S BATCHES_S]
  prepare
  DEADLINE_S=${1:-150} timeout $((${1:-150} + 30)) "$PYTHON" tests/benchmarks/engine_attention.py || true
  ARMS="before fast fast-fp8" BATCHES=${BATCHES:-64 256} WINDOW_S=${WINDOW_S:-5} REPEATS=${REPEATS:-2} \
    DEADLINE_S=${2:-110} timeout $((${2:-110} + 30)) "$PYTHON" tests/benchmarks/engine_vllm.py || true
  ls -l "$OUT"
}

"$@"
