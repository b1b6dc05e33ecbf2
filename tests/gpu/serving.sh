#!/bin/bash
# One GPU: joules and latency of requests that come by a clock. Llama-3.1-8B's shapes by vLLM, dummy weights, lengths of
# Azure's conversations, Poisson arrivals at six rates from nearly idle to more than is served; windows of 60 s and more.
# Each part is one command of at most DEADLINE_S seconds (540) with one start of the engine, its most telling rate first.
#
#   PARTS=FOLDER tests/gpu/engines.sh unpack 1    after part 1 of tests/gpu/vllm_pack.sh has come, then 2, then 3
#   OUT=results tests/gpu/serving.sh bf16         4, 16, 1, 28, 8 and 0.25 requests a second
#   OUT=results tests/gpu/serving.sh fp8          the same
#   OUT=results tests/gpu/serving.sh more         8 a second without chunked prefill, then bf16 at 16 and 4 once more
#
# As root in a checkout with the folder of pack.sh, whose `data` has azure/AzureLLMInferenceTrace_conv.csv, or TRACE. OUT
# then has serving-PART.json and the sweeps as they lie on disk, both replaced after each rate. DRY=1: a tiny model on the
# CPU over a fake driver, which wants a Python with vLLM.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SITE=${SITE:-/tmp/wattflow-vllm}
PART=${1:?bf16, fp8 or more}
# shellcheck source=tests/gpu/machine.sh
. "$HERE/machine.sh"
TRACE=$(realpath -m "${TRACE:-$PACKED/data/azure/AzureLLMInferenceTrace_conv.csv}")
[ -f "$TRACE" ] || { echo "serving.sh: $TRACE: no trace there; set TRACE" >&2; exit 2; }

bf16=bf16 fp8=fp8
# with the requests of 70 s each; the seeds of the shuffle that have the rates in the order above
rates=0.25,1,4,8,16,28 counts=18,70,280,560,1120,1960 order=31
few=4,16 few_counts=280,1120 few_order=1
fits="max_gen_len=1024 max_seq_len=8192 batch_size=256 dataset.on_bad=skip power.idle_s=2 workload.ramp_s=8"
if [ "$DRY" = 1 ]; then
  bf16=fp32 fp8=fp32
  rates=2,4 counts=8,16 order=0 few=4 few_counts=8 few_order=0
  fits="max_gen_len=8 max_seq_len=128 batch_size=8 dataset.on_bad=truncate power.idle_s=0.3 workload.ramp_s=0.5"
fi

# One sweep of some rates by one start of the engine.
sweep() { # NAME, PRECISION, RATES, REQUESTS OF EACH, SEED OF THE ORDER, OVERRIDES...
  local name=$1 precision=$2 rate=$3 count=$4 seed=$5 model
  model=$(model_words llama-3.1-8b)
  shift 5
  if [ "$SECONDS" -gt $((DEADLINE_S - 180)) ] && [ "$DRY" != 1 ]; then
    say "$name: no time left for a start and a window"
    return
  fi
  # shellcheck disable=SC2086  # several words
  record submit sweep="$name" cluster=local cluster.gpu_model=h200 engine=vllm $model precision="$precision" \
    workload.mode=open workload.trace="$TRACE" workload.rate_per_s="$rate" n_prompts="$count" \
    "sweep.zip=[[workload.rate_per_s,n_prompts]]" sweep.seed="$seed" sweep.repeats=1 sweep.block=board \
    sweep.load_shared_by=8 cluster.points_per_task=8 workload.slo.ttft_s=1 workload.slo.itl_s=0.1 temperature=0 \
    engine.vllm.enable_prefix_caching=false $fits "$@"
  follow "serving-$PART" "$WORK/sweeps/$name" "$DEADLINE_S" || true
}

install_wattflow
[ "$DRY" != 1 ] || pretend 1
[ ! -d "$SITE/site" ] || PYTHONPATH=$PYTHONPATH:$SITE/site
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_USE_DEEP_GEMM=0 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo TP_SOCKET_IFNAME=lo
trap 'bring_home "serving-$PART"' EXIT
cd "$WORK"
case $PART in
  bf16) sweep serving-bf16 $bf16 $rates $counts $order ;;
  fp8) sweep serving-fp8 $fp8 $rates $counts $order ;;
  more)
    whole="engine.vllm.enable_chunked_prefill=false engine.vllm.max_num_batched_tokens=8192"
    # shellcheck disable=SC2086  # several words
    sweep serving-whole-prefill $bf16 "${few%%,*}" "${few_counts%%,*}" 0 $whole
    sweep serving-bf16-again $bf16 $few $few_counts $few_order
    ;;
  *) echo "serving.sh: $PART is none of bf16, fp8, more" >&2 && exit 2 ;;
esac
bring_home "serving-$PART"
trap - EXIT
say "done; the numbers:"
"$PYTHON" "$HERE/measured.py" "serving-$PART" "$WORK" "$PACKED/commit" | "$PYTHON" "$HERE/summary.py" || true
