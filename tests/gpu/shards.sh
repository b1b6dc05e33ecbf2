#!/bin/bash
# Energy against shards on one host with any number of GPUs, through a portable Slurm there: LLaMA-7B, 13B and 65B in
# `fast` (batch 1 and 64), 7B in `paper` (batch 64), Llama-3.1-70B in vLLM's fp8 where the wheels of vllm_pack.sh are
# unpacked; two repeats, some 58 points on 8 GPUs, and the same 7B over nodes of one and of two GPUs.
#
#   OUT=results tests/gpu/shards.sh                (as root, in a checkout with the folder of pack.sh)
#   DRY=1 OUT=/tmp/results tests/gpu/shards.sh     (here, without a GPU: tiny shapes on the CPU over a fake NVML)
#
# PARTS="fast paper vllm nodes" names what is run, in this order; where a command may take ten minutes alone, each part
# has a call of its own. HOST_GPUS is how many GPUs to use, all by default; a model is cut into 1, 2, 4 ... shards up to
# that number, LEAST and MOST bound them. So predictions can be frozen before the runs that test them, on a machine with
# polars, from what a first call with MOST=2 has brought home; a second one has LEAST=4:
#
#   wattflow predict --from sweeps/fast-llama-7b-64 --fabric 8,350 --freeze shards-7b.json \
#     shards=4,8 model=llama-7b engine=fast batch_size=64 ...         (the words of `send` below)
#   wattflow predict --check shards-7b.json sweeps/fast-llama-7b-64   (after the second call)
set -euo pipefail
DEADLINE_S=${DEADLINE_S:-540}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/machine.sh
. "$HERE/machine.sh"

if [ "$DRY" = 1 ]; then HOST_GPUS=${HOST_GPUS:-2}; else HOST_GPUS=${HOST_GPUS:-$(nvidia-smi -L | wc -l)}; fi
VLLM_SITE=${VLLM_SITE:-/tmp/wattflow-vllm/site}
export CLUSTER_DIR=$WORK/cluster PREFIX=$WORK/slurm ACCOUNTING=none REALGPU=$HOST_GPUS CPUS=8

# The numbers of shards up to the host's GPUs, from the first and within LEAST and MOST: 1 on a host of four gives 1,2,4.
shards_from() { # FIRST
  local shards=$1 all=''
  while [ "$shards" -le "$HOST_GPUS" ] && [ "$shards" -le "${MOST:-$HOST_GPUS}" ]; do
    [ "$shards" -lt "${LEAST:-1}" ] || all+=${all:+,}$shards
    shards=$((shards * 2))
  done
  echo "$all"
}

profile() { # GPUS OF A NODE
  cat <<END
name: nodes-of-$1
launcher: slurm
partition: gpu
gpus_per_node: $1
gpu_model: h200
gpu_memory_gib: 139
cpus_per_rank: 2
mem_gb_per_node: 12
time_min: 9
points_per_task: 4 # the batches and repeats of a shape share one load
accounting: false # this Slurm has no sacct
setup:
  - export NCCL_SOCKET_IFNAME=lo GLOO_SOCKET_IFNAME=lo # the nodes are one host
END
}

# Has Slurm show the host as nodes of so many GPUs.
nodes_of() { # GPUS OF A NODE
  take_down_slurm
  export NODES=$((HOST_GPUS / $1)) GPUS=$1
  bring_up_slurm
  mkdir -p conf/cluster
  profile "$1" >"conf/cluster/nodes-of-$1.yaml"
}

words() { # MODEL
  if [ "$DRY" = 1 ]; then
    # shellcheck disable=SC2046  # several words
    echo $(model_words "$1") n_prompts=4 max_gen_len=8 power.idle_s=0.2 sweep.repeats=1
  else
    echo "model=$1 n_prompts=192 max_gen_len=256 power.idle_s=2 sweep.repeats=2 max_seq_len=1024"
  fi
  echo "dataset=gsm8k dataset.path=data/gsm8k_test.jsonl model.tokenizer_path=data/llama2_tokenizer.model dataset.cycle=true"
}

send() { # SWEEP, GPUS OF A NODE, MODEL, WORDS...
  local sweep=$1 node=$2 model=$3
  shift 3
  if [ "$SECONDS" -ge "$DEADLINE_S" ]; then
    say "$sweep: no time is left"
    return
  fi
  # shellcheck disable=SC2046  # several words
  record submit cluster="nodes-of-$node" sweep="$sweep" $(words "$model") "$@"
  follow shards "$WORK/sweeps/$sweep" "$DEADLINE_S"
}

fast_part() {
  local model first
  for model in llama-7b llama-13b llama-65b; do
    first=1
    [ $model != llama-65b ] || first=2 # 131 GB of weights
    [ -n "$(shards_from $first)" ] || continue
    send "fast-$model-64" "$NODE" $model engine=fast batch_size=64 shards="$(shards_from $first)"
    # one prompt after another takes as long as 64 at once: four of them
    send "fast-$model-1" "$NODE" $model engine=fast batch_size=1 n_prompts=4 shards="$(shards_from $first)"
  done
}

paper_part() {
  [ -n "$(shards_from 1)" ] || return 0
  send paper-llama-7b "$NODE" llama-7b engine=paper batch_size=64 shards="$(shards_from 1)"
}

vllm_part() {
  if [ ! -d "$VLLM_SITE" ]; then
    say "no vLLM in $VLLM_SITE: its part is left out"
    return
  fi
  [ -n "$(shards_from 1)" ] || return 0
  export PYTHONPATH=$WORK/code:$WORK/site:$VLLM_SITE VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_USE_DEEP_GEMM=0
  send vllm-llama-3.1-70b "$NODE" llama-3.1-70b engine=vllm engine.vllm.quantization=fp8 \
    engine.vllm.enable_prefix_caching=false model.tokenizer=sentencepiece \
    batch_size=64 shards="$(shards_from 1)"
}

nodes_part() { # the same work over the network between nodes: 2 shards on nodes of one GPU, 4 on nodes of two
  local gpus
  for gpus in 1 2; do
    [ $((2 * gpus)) -le "$HOST_GPUS" ] || continue
    nodes_of $gpus
    send "between-nodes-of-$gpus" $gpus llama-7b engine=fast batch_size=64 shards=$((2 * gpus))
  done
}

install_wattflow
[ "$DRY" != 1 ] || pretend "$HOST_GPUS"
trap 'bring_home shards; take_down_slurm' EXIT
cd "$WORK"
NODE=$((HOST_GPUS < 4 ? HOST_GPUS : 4))
nodes_of $NODE
for part in ${PARTS:-fast paper vllm nodes}; do
  "${part}_part" || say "part $part was not run to its end"
done
