#!/bin/bash
# Two GPUs of one host, in 8 to 9 minutes on 2x H200:
#
# 1. The whole system with no part simulated: a portable Slurm with two nodes of one GPU each; LLaMA-7B on one node and,
#    over the network, on two; one point whose prompts vanish before it starts, which fails, is told, mended and resumed.
# 2. LLaMA-13B on one GPU and on two of this machine, without Slurm.
#
#   OUT=results tests/gpu/h200x2.sh               (as root, in a checkout with the folder of pack.sh)
#   DRY=1 OUT=/tmp/results tests/gpu/h200x2.sh    (here, without a GPU)
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/machine.sh
. "$HERE/machine.sh"

prompts=256 length=128 few=64 short=64 # the second pair is Slurm's
if [ "$DRY" = 1 ]; then prompts=4 length=8 few=4 short=8; fi

export CLUSTER_DIR=$WORK/cluster PREFIX=$WORK/slurm ACCOUNTING=none NODES=2 GPUS=1 REALGPU=2 CPUS=8

words() { # MODEL, PROMPTS, LENGTH
  # shellcheck disable=SC2046  # several words
  echo $(model_words "$1") model.tokenizer_path=data/llama2_tokenizer.model dataset=gsm8k \
    n_prompts="$2" batch_size=64 max_gen_len="$3" sweep.repeats=1
}

# What a site writes once, in ./conf/cluster/.
profile() {
  cat <<END
name: twonodes
launcher: slurm
partition: gpu
gpus_per_node: 1
gpu_model: h200
gpu_memory_gib: 139
cpus_per_rank: 4
mem_gb_per_node: 8
time_min: 8
accounting: false # this Slurm has no sacct
setup:
  - export NCCL_SOCKET_IFNAME=lo GLOO_SOCKET_IFNAME=lo # two nodes of one host
END
}

show_slurm() {
  sinfo -N -o '%N %T %G'
  # shellcheck disable=SC2016  # for the task's shell
  keep devices timeout 60 srun -N2 -n2 --gpus-per-node=1 bash -c \
    'echo "$SLURMD_NODENAME on $(hostname) has CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"'
  keep doctor-node timeout 60 srun -N1 -n1 -w node2 --gpus-per-node=1 "$PYTHON" -m wattflow.cli doctor
}

# Two points of one sweep: shards 1, and shards 2 whose file is moved away while the nodes are drained.
slurm_part() {
  local until_s=$1
  mkdir -p conf/cluster
  profile >conf/cluster/twonodes.yaml
  cp data/gsm8k_test.jsonl data/lost.jsonl
  # shellcheck disable=SC2046  # several words
  record submit cluster=twonodes sweep=twonodes $(words llama-7b $few $short) dataset.path=data/lost.jsonl shards=1
  follow h200x2 "$WORK/sweeps/twonodes" "$until_s" || return 0
  scontrol update nodename='node[1-2]' state=drain reason=preparing
  # shellcheck disable=SC2046  # several words
  record submit cluster=twonodes sweep=twonodes $(words llama-7b $few $short) dataset.path=data/lost.jsonl shards=2
  mv data/lost.jsonl data/kept.jsonl
  scontrol update nodename='node[1-2]' state=resume
  squeue
  follow h200x2 "$WORK/sweeps/twonodes" "$until_s" || return 0
  keep failed wattflow status sweeps/twonodes

  mv data/kept.jsonl data/lost.jsonl
  record resume sweeps/twonodes
  follow h200x2 "$WORK/sweeps/twonodes" "$until_s" || return 0
  keep resumed wattflow status sweeps/twonodes
  # the collector that came after the resumed array
  local end=$((SECONDS + 20))
  until [ -z "$(timeout 10 squeue -h)" ] || [ "$SECONDS" -gt "$end" ]; do sleep 0.5; done
}

local_part() {
  # NCCL and gloo meet over the loopback interface: this machine may know no address of its own name
  export NCCL_SOCKET_IFNAME=lo GLOO_SOCKET_IFNAME=lo
  # shellcheck disable=SC2046  # several words
  record submit cluster=local cluster.gpu_model=h200 sweep=local $(words llama-13b $prompts $length) \
    dataset.path=data/gsm8k_test.jsonl shards=1,2
  follow h200x2 "$WORK/sweeps/local" "$DEADLINE_S" || true
  keep local wattflow status sweeps/local
}

install_wattflow
[ "$DRY" != 1 ] || pretend 2
trap 'bring_home h200x2; take_down_slurm' EXIT
cd "$WORK"
wattflow doctor --json >doctor-root.json || say "wattflow doctor fails"

# a process of its own, so that the second part runs whatever becomes of the first
(
  bring_up_slurm
  show_slurm
  slurm_part $((DEADLINE_S / 2))
) &
wait $! || say "the part under Slurm failed"
take_down_slurm
local_part

bring_home h200x2
trap - EXIT
say "done; the numbers:"
"$PYTHON" "$HERE/measured.py" h200x2 "$WORK" "$PACKED/commit" | "$PYTHON" "$HERE/summary.py"
