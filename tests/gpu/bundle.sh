#!/bin/bash
# One GPU, the sweep whose bundle ships in docs/bundles/: LLaMA-7B's shapes, dummy bf16 weights, both engines, two repeats,
# 192 of GSM8K's test questions in batches of 64, 64 new tokens each. It is collected, bundled and verified on the spot.
# 2 to 3 minutes on an H100.
#
#   OUT=results tests/gpu/bundle.sh               (in a checkout with the folder of pack.sh)
#   DRY=1 OUT=/tmp/results tests/gpu/bundle.sh    (here, without a GPU)
#
# $OUT/llama-7b-h100.zip is the bundle; the sweep as it lies on disk comes home too, in bundle-sweeps.tar.gz.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/machine.sh
. "$HERE/machine.sh"

prompts=192 length=64
if [ "$DRY" = 1 ]; then prompts=4 length=8; fi

install_wattflow
[ "$DRY" != 1 ] || pretend 1
trap 'bring_home bundle' EXIT
cd "$WORK"

# shellcheck disable=SC2046  # several words
record submit sweep=llama-7b cluster=local cluster.gpu_model=h100-80gb $(model_words llama-7b) \
  model.tokenizer_path=data/llama2_tokenizer.model dataset=gsm8k dataset.path=data/gsm8k_test.jsonl \
  engine=fast,paper n_prompts=$prompts batch_size=64 max_gen_len=$length power.idle_s=2 sweep.repeats=2
follow bundle "$WORK/sweeps/llama-7b" $((DEADLINE_S - 60))
bring_home bundle
trap - EXIT

record bundle sweeps/llama-7b --out llama-7b-h100.zip
record verify llama-7b-h100.zip
cp llama-7b-h100.zip "$OUT/"
say "done: $(du -k llama-7b-h100.zip | cut -f1) KiB"
