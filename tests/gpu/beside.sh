#!/bin/bash
# The control of points side by side on one node of two GPUs: LLaMA-7B alone on each, then on both at once, by a portable
# Slurm whose steps are real, in some 90 s on 2x H200.
#
#   OUT=results tests/gpu/beside.sh               (as root, in a checkout with the folder of pack.sh)
#   DRY=1 OUT=/tmp/results tests/gpu/beside.sh    (here, without a GPU: the synthetic engine on a fake NVML)
#
# Brings home beside.json and beside-sweeps.tar.gz: `wattflow collect sweeps/neighbours` here prints the ratio.
set -euo pipefail
DEADLINE_S=${DEADLINE_S:-150}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/machine.sh
. "$HERE/machine.sh"

export CLUSTER_DIR=$WORK/cluster PREFIX=$WORK/slurm ACCOUNTING=none NODES=1 GPUS=2 REALGPU=2 CPUS=8

profile() {
  cat <<END
name: onenode
launcher: slurm
partition: gpu
gpus_per_node: 2
gpu_model: h200
gpu_memory_gib: 139
cpus_per_rank: 4
mem_gb_per_node: 12
time_min: 5
accounting: false # this Slurm has no sacct
END
}

words() {
  if [ "$DRY" = 1 ]; then
    echo "model=tiny model.vocab_size=32000 model.tokenizer=sentencepiece engine=synthetic engine.device=cpu \
      engine.synthetic_ms_per_token=20 power.meter=nvml power.idle_s=0.2 n_prompts=8 batch_size=4 max_gen_len=8"
  else
    echo "model=llama-7b engine=fast power.idle_s=2 n_prompts=768 batch_size=64 max_gen_len=128 dataset.cycle=true"
  fi
}

install_wattflow
[ "$DRY" != 1 ] || pretend 2
trap 'bring_home beside; take_down_slurm' EXIT
cd "$WORK"
bring_up_slurm
mkdir -p conf/cluster
profile >conf/cluster/onenode.yaml
# shellcheck disable=SC2046  # several words
record submit grid=neighbours cluster=onenode sweep=neighbours sweep.repeats="${REPEATS:-4}" $(words) \
  model.tokenizer_path=data/llama2_tokenizer.model dataset=gsm8k dataset.path=data/gsm8k_test.jsonl
follow beside "$WORK/sweeps/neighbours" "$DEADLINE_S" || true
wattflow status sweeps/neighbours || true
tail -n 30 sweeps/neighbours/submitit/*/*_0_log.* || true
