#!/bin/bash
# Sweeps on one GPU, all of dummy weights: Llama-3.1-8B's shapes by engine=vllm and engine=fast, static and offline, bf16
# and fp8; and the same shapes by engine=transformers and engine=paper, with OPT-6.7B and BLOOM-7B by transformers.
#
#   PARTS=FOLDER tests/gpu/vllm.sh unpack 1      after part 1 of tests/gpu/vllm_pack.sh has come, then 2, then 3
#   OUT=results tests/gpu/vllm.sh measure        vLLM and fast, one after another until DEADLINE_S; packed after each
#   PARTS=FOLDER tests/gpu/vllm.sh unpack code   after `vllm_pack.sh code FOLDER`, which is enough for the next line
#   OUT=results tests/gpu/vllm.sh others         transformers and paper, until DEADLINE_S, likewise
#
# polars is not wanted there: `wattflow run` then ends with its ImportError once the point is done, and what is brought
# home is collected here, `wattflow collect sweeps/NAME`. A start of vLLM takes some 85 s. EXTRA has overrides for all
# points, such as engine.device=cpu and smaller shapes for a try without a GPU.
set -euo pipefail
WORK=${WORK:-/tmp/wattflow-vllm}
PYTHON=${PYTHON:-python3}
DEADLINE_S=${DEADLINE_S:-400}
mkdir -p "$WORK/site"

code() { # FOLDER
  mkdir -p "$WORK/code"
  tar -C "$WORK/code" -xzf "$1/checkout.tgz"
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-cache-dir --root-user-action=ignore --upgrade \
    --target "$WORK/ours" "$1"/wheels/*.whl
}

unpack() { # PART
  case $1 in
    1) tar -C "$WORK/site" -xJf "$PARTS/1/site.tar.xz" ;;
    2) cp "$PARTS/2/big.gz" "$WORK/" ;;
    3)
      cat "$WORK/big.gz" "$PARTS/3/big.gz" | gzip -dc >"$WORK/site/vllm/_C_stable_libtorch.abi3.so"
      code "$PARTS/3"
      ;;
    code) code "$PARTS" ;;
  esac
}

one() { # NAME WORDS...
  local name=$1
  shift
  if [ "$SECONDS" -gt "$DEADLINE_S" ]; then echo "$name: no time left"; return; fi
  echo "$SECONDS s: wattflow run $* ${EXTRA:-} sweep=$name"
  # shellcheck disable=SC2086
  timeout 240 "$PYTHON" -m wattflow.cli run "$@" ${EXTRA:-} sweep="$name" >"$OUT/$name.log" 2>&1 || tail -n 5 "$OUT/$name.log"
  tail -n 3 sweeps/"$name"/points/*/attempt-1/logs/*.log 2>/dev/null | tail -n 20 || true
  tar -czf "$OUT/sweeps.tgz" sweeps
}

prepare() {
  export PYTHONPATH=$WORK/code:$WORK/ours:$WORK/site PYTHONUNBUFFERED=1
  export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_USE_DEEP_GEMM=0 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo TP_SOCKET_IFNAME=lo
  OUT=$(realpath -m "${OUT:?a folder for the results}")
  mkdir -p "$OUT" "$WORK/run"
  cd "$WORK/run"
}

measure() {
  prepare
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

others() { # two batches of 128 tokens each after one that warms up
  prepare
  local common="precision=bf16 max_gen_len=128 max_seq_len=512 temperature=0 power.idle_s=3 dataset.cycle=true
    dataset.template=plain dataset.on_bad=truncate"
  local large="batch_size=64 n_prompts=128" small="batch_size=8 n_prompts=16"
  local llama="model=llama-3.1-8b" tf="engine=transformers"
  # shellcheck disable=SC2086
  {
    one tf-8b-64 $llama $tf $large $common
    one paper-8b-64 $llama engine=paper $large $common
    one tf-opt-64 model=opt-6.7b $tf $large $common
    one tf-bloom-64 model=bloom-7b1 $tf $large $common
    one tf-8b-8 $llama $tf $small $common
    one paper-8b-8 $llama engine=paper $small $common
    one tf-opt-8 model=opt-6.7b $tf $small $common
    one tf-bloom-8 model=bloom-7b1 $tf $small $common
    one tf-8b-64-compiled $llama $tf engine.transformers.compile=true $large $common
  }
  echo "$SECONDS s: done"
}

"$@"
