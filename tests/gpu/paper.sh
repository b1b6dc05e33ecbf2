#!/bin/bash
# arXiv 2310.03003 at scale h200: at most 27 points by `wattflow paper submit`, in the order of their worth, until DEADLINE_S.
#
#   OUT=results tests/gpu/paper.sh scaling        Figures 4 to 9: LLaMA-13B on one GPU and on two, 18 points, some 8 minutes
#   OUT=results tests/gpu/paper.sh rest           Figures 2, 3, Tables II to V: 7B, 13B, 65B on two, some 9 minutes
#   DRY=1 OUT=/tmp/results tests/gpu/paper.sh     (here, without a GPU: scale cpu on a fake NVML of two)
#
# (as root, in a checkout with the folder of pack.sh; GPUS=1 on one GPU: what needs two is left out with its reason.)
# Brings home paper-PART.json and paper-PART-sweeps.tar.gz after each point. polars is not wanted there: unpacked here, each
# sweep is collected with `wattflow collect`, then `wattflow paper report --scale h200 sweeps_dir=sweeps` draws them.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/machine.sh
. "$HERE/machine.sh"
PART=${1:-all}
GPUS=${GPUS:-2}
scale=h200

case $PART in
  scaling) objects=(fig4) ;;
  rest) objects=(fig2 table3 table4 table5) ;;
  all) objects=(fig4 fig2 table3 table4 table5) ;;
  *) echo "paper.sh $PART: not scaling, rest or all" >&2 && exit 2 ;;
esac

# Where this machine's prompts lie; Alpaca's are the shipped ones.
choices() {
  mkdir -p conf/dataset
  printf 'name: gsm8k\nformat: gsm8k\npath: %s\n' "$WORK/data/gsm8k_test.jsonl" >conf/dataset/gsm8k.yaml
  choices=(cluster=local "cluster.gpus_per_node=$GPUS")
  if [ "$DRY" = 1 ]; then
    scale=cpu
    choices+=(engine.device=cpu cluster.gpu_model=fake)
  else
    choices+=("cluster.gpu_model=${GPU_MODEL:-h200}" "model.tokenizer_path=$WORK/data/llama2_tokenizer.model")
  fi
}

install_wattflow
[ "$DRY" != 1 ] || pretend 2
trap 'bring_home "paper-$PART"' EXIT
# NCCL and gloo meet over the loopback interface: this machine may know no address of its own name
export NCCL_SOCKET_IFNAME=lo GLOO_SOCKET_IFNAME=lo
cd "$WORK"
choices
for object in "${objects[@]}"; do
  [ "$SECONDS" -lt "$DEADLINE_S" ] || break
  before=$(ls sweeps 2>/dev/null || true)
  record paper submit --scale "$scale" --only "$object" "${choices[@]}" || say "$object: not sent"
  for sweep in sweeps/*/; do
    name=$(basename "$sweep")
    if [ -d "$sweep" ] && ! grep -qx "$name" <<<"$before"; then
      follow "paper-$PART" "$WORK/sweeps/$name" "$DEADLINE_S" || true
    fi
  done
done
bring_home "paper-$PART"
trap - EXIT
say "done; the numbers:"
"$PYTHON" "$HERE/measured.py" "paper-$PART" "$WORK" "$PACKED/commit" | "$PYTHON" "$HERE/summary.py"
