#!/bin/bash
# Llama-3.1-8B's shapes (dummy weights) on one GPU by engine=vllm and engine=fast: static and offline, bf16 and fp8.
#
#   PARTS=FOLDER tests/gpu/vllm.sh unpack 1      after part 1 of tests/gpu/vllm_pack.sh has come, then 2, then 3
#   OUT=results tests/gpu/vllm.sh measure        sweeps one after another until DEADLINE_S; packed into OUT after each
#
# polars is not wanted there: `wattflow run` then ends with its ImportError once the point is done, and what is brought
# home is collected here, `wattflow collect sweeps/NAME`. A start of vLLM takes some 85 s.
set -euo pipefail
WORK=${WORK:-/tmp/wattflow-vllm}
PYTHON=${PYTHON:-python3}
DEADLINE_S=${DEADLINE_S:-400}
mkdir -p "$WORK/site"

unpack() { # PART
  case $1 in
    1) tar -C "$WORK/site" -xJf "$PARTS/1/site.tar.xz" ;;
    2) cp "$PARTS/2/big.gz" "$WORK/" ;;
    3)
      cat "$WORK/big.gz" "$PARTS/3/big.gz" | gzip -dc >"$WORK/site/vllm/_C_stable_libtorch.abi3.so"
      mkdir -p "$WORK/code"
      tar -C "$WORK/code" -xzf "$PARTS/3/checkout.tgz"
      "$PYTHON" -m pip install --quiet --no-index --no-deps --no-cache-dir --root-user-action=ignore --upgrade \
        --target "$WORK/ours" "$PARTS"/3/wheels/*.whl
      ;;
  esac
}

one() { # NAME WORDS...
  local name=$1
  shift
  if [ "$SECONDS" -gt "$DEADLINE_S" ]; then echo "$name: no time left"; return; fi
  echo "$SECONDS s: wattflow run $* sweep=$name"
  timeout 240 "$PYTHON" -m wattflow.cli run "$@" sweep="$name" >"$OUT/$name.log" 2>&1 || tail -n 5 "$OUT/$name.log"
  tail -n 3 sweeps/"$name"/points/*/attempt-1/logs/*.log 2>/dev/null | tail -n 20 || true
  tar -czf "$OUT/sweeps.tgz" sweeps
}

measure() {
  export PYTHONPATH=$WORK/code:$WORK/ours:$WORK/site PYTHONUNBUFFERED=1
  export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_USE_DEEP_GEMM=0 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo TP_SOCKET_IFNAME=lo
  OUT=$(realpath -m "${OUT:?a folder for the results}")
  mkdir -p "$OUT" "$WORK/run"
  cd "$WORK/run"
  local common="model=llama-3.1-8b precision=bf16 batch_size=64 n_prompts=448 max_gen_len=256 max_seq_len=1024
    temperature=0 power.idle_s=3 dataset.cycle=true dataset.template=plain"
  local vllm="engine=vllm engine.vllm.enable_prefix_caching=false"
  # shellcheck disable=SC2086
  {
    one vllm-bf16 $common $vllm
    one vllm-fp8-offline $common $vllm engine.vllm.quantization=fp8 workload.mode=offline
    one fast-bf16 $common engine=fast
    one vllm-bf16-offline $common $vllm workload.mode=offline
  }
  echo "$SECONDS s: done"
}

"$@"
