#!/bin/bash
# One GPU: what a token costs by engine, precision and batch, of dummy weights, 128 tokens in and 256 out, greedy. Each
# part is one command of at most DEADLINE_S seconds (540), its most important sweep first; a sweep has one start of an
# engine, and its repeats are blocks whose points are shuffled.
#
#   PARTS=FOLDER tests/gpu/engines.sh unpack 1    after part 1 of tests/gpu/vllm_pack.sh has come, then 2, then 3
#   OUT=results tests/gpu/engines.sh vllm         Llama-3.1-8B in bf16, then fp8: six batches, three blocks
#   OUT=results tests/gpu/engines.sh others       the same shapes by fast, transformers and paper (64 tokens out: it is slow)
#   OUT=results tests/gpu/engines.sh models       Qwen3-32B and the mixture Qwen3-30B-A3B by vLLM, then part `vllm` once more
#
# As root in a checkout with the folder of pack.sh. OUT then has engines-PART.json, which docs/engines.md is made of, and
# the sweeps as they lie on disk. DRY=1: a tiny model on the CPU over a fake driver; `vllm` and `models` want a Python
# with vLLM for that too.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SITE=${SITE:-/tmp/wattflow-vllm}

if [ "${1:-}" = unpack ]; then
  mkdir -p "$SITE/site"
  cp "${PARTS:?the folder of vllm_pack.sh}/$2/part" "$SITE/part-$2"
  if [ "$2" = 3 ]; then
    cat "$SITE"/part-[123] | tar -C "$SITE" -xf -
    tar -C "$SITE/site" -xJf "$SITE/site.tar.xz"
    gzip -dc "$SITE/big.gz" >"$SITE/site/vllm/_C_stable_libtorch.abi3.so"
    rm "$SITE"/{part-*,site.tar.xz,big.gz}
  fi
  exit
fi

PART=${1:?vllm, others or models}
# shellcheck source=tests/gpu/machine.sh
. "$HERE/machine.sh"
fp8=fp8 bf16=bf16 long=256 short=64
batches=1,8,16,32,64,256 prompts=3,32,64,128,192,256 once=1,8,16,32,64,256
if [ "$DRY" = 1 ]; then
  fp8=fp32 bf16=fp32 long=4 short=4
  batches=1,2 prompts=1,2 once=1,2
fi

# Prompts of 127 random letters, which with the first token are 128.
prompts() {
  "$PYTHON" - >"$WORK/prompts.jsonl" <<'END'
import json
import random

letters = random.Random(1)
for _ in range(512):
    print(json.dumps({"prompt": "".join(letters.choices("abcdefghijklmnopqrstuvwxyz ", k=126)) + "."}))
END
}

# One sweep, unless there is no time for a start; what was measured by the deadline is kept.
sweep() { # NAME, MODEL, BATCHES, PROMPTS OF EACH, REPEATS, OVERRIDES...
  local name=$1 model batch=$3 count=$4 repeats=$5
  model=$(model_words "$2")
  shift 5
  if [ "$SECONDS" -gt $((DEADLINE_S - 45)) ]; then
    say "$name: no time left"
    return
  fi
  local axes="batch_size=$batch n_prompts=$count sweep.zip=[[batch_size,n_prompts]]" each
  each=$(tr -cd , <<<"$batch" | wc -c)
  # one process and one load for all points: blocks are counted by points_per_task, points by load_shared_by
  local shared="sweep.block=board sweep.repeats=$repeats cluster.points_per_task=$repeats
    sweep.load_shared_by=$((repeats * (each + 1)))"
  # shellcheck disable=SC2086  # several words
  record submit sweep="$name" cluster=local cluster.gpu_model=h200 $model $axes $shared dataset=prompts \
    dataset.path=prompts.jsonl dataset.shuffle=false max_seq_len=384 temperature=0 power.idle_s=0.5 "$@"
  follow "engines-$PART" "$WORK/sweeps/$name" "$DEADLINE_S" || true
}

vllm() { # NAME, MODEL, PRECISION, BATCHES, PROMPTS, REPEATS
  sweep "$1" "$2" "$4" "$5" "$6" engine=vllm precision="$3" max_gen_len=$long engine.vllm.max_num_seqs="${4##*,}" \
    engine.vllm.enable_prefix_caching=false
}

install_wattflow
[ "$DRY" != 1 ] || pretend 1
[ ! -d "$SITE/site" ] || PYTHONPATH=$PYTHONPATH:$SITE/site
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_USE_DEEP_GEMM=0 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo TP_SOCKET_IFNAME=lo
trap 'bring_home "engines-$PART"' EXIT
cd "$WORK"
prompts
case $PART in
  vllm)
    vllm vllm-bf16 llama-3.1-8b $bf16 $batches $prompts 3
    vllm vllm-fp8 llama-3.1-8b $fp8 $batches $prompts 3
    ;;
  others)
    sweep fast-bf16 llama-3.1-8b $batches $prompts 3 engine=fast precision=$bf16 max_gen_len=$long
    sweep transformers llama-3.1-8b $once $once 1 engine=transformers precision=$bf16 max_gen_len=$long
    sweep paper llama-3.1-8b $once $once 1 engine=paper precision=$bf16 max_gen_len=$short
    sweep transformers-again llama-3.1-8b $once $once 1 engine=transformers precision=$bf16 max_gen_len=$long
    ;;
  models)
    few=1,64,256
    [ "$DRY" != 1 ] || few=$batches
    vllm qwen3-32b qwen3-32b $bf16 $few $few 2
    vllm qwen3-30b-a3b qwen3-30b-a3b $bf16 $few $few 2
    vllm vllm-bf16-again llama-3.1-8b $bf16 $batches $prompts 1
    ;;
  *) echo "engines.sh: $PART is none of vllm, others, models" >&2 && exit 2 ;;
esac
bring_home "engines-$PART"
trap - EXIT
say "done; the numbers:"
"$PYTHON" "$HERE/measured.py" "engines-$PART" "$WORK" "$PACKED/commit" | "$PYTHON" "$HERE/summary.py"
