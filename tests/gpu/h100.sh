#!/bin/bash
# One GPU, the main job without Slurm: LLaMA-7B's shapes, dummy bf16 weights, 256 of GSM8K's test questions, batch 64, 128
# new tokens, three repeats; then the same as an ordinary user, with fewer prompts. 6 to 7 minutes on an H100.
#
#   OUT=results tests/gpu/h100.sh               (in a checkout with the folder of pack.sh)
#   DRY=1 OUT=/tmp/results tests/gpu/h100.sh    (here, without a GPU)
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/machine.sh
. "$HERE/machine.sh"
NOBODY=65534

prompts=256 fewer=64 length=128
if [ "$DRY" = 1 ]; then prompts=4 fewer=2 length=8; fi

as_nobody() {
  setpriv --reuid $NOBODY --regid $NOBODY --clear-groups \
    env HOME="$WORK/user" TMPDIR="$WORK/user/tmp" XDG_CACHE_HOME="$WORK/user/cache" USER=nobody LOGNAME=nobody "$@"
}

words() { # PROMPTS
  # shellcheck disable=SC2046  # several words
  echo cluster=local cluster.gpu_model=h100-80gb $(model_words llama-7b) \
    model.tokenizer_path=data/llama2_tokenizer.model dataset=gsm8k dataset.path=data/gsm8k_test.jsonl \
    n_prompts="$1" batch_size=64 max_gen_len=$length
}

install_wattflow
[ "$DRY" != 1 ] || pretend 1
trap 'bring_home h100' EXIT
cd "$WORK"

say "what the machine tells root"
wattflow doctor --json >doctor-root.json || say "wattflow doctor fails"
keep doctor-root wattflow doctor

say "what it tells an ordinary user"
install -d -m 700 -o $NOBODY -g $NOBODY user user/tmp user/cache
ln -s ../data user/data
if as_nobody true; then
  as_nobody "$PYTHON" -m wattflow.cli doctor --json >doctor-user.json || say "wattflow doctor fails as uid $NOBODY"
else
  say "this machine does not let a process become uid $NOBODY"
fi

# shellcheck disable=SC2046  # several words
record submit sweep=h100 $(words $prompts) sweep.repeats=3
in_time=0
follow h100 "$WORK/sweeps/h100" $((DEADLINE_S - 60)) || in_time=1
keep status wattflow status sweeps/h100

# never beside another: the locks that keep two measurements apart are each user's own
if [ -s doctor-user.json ] && [ "$in_time" = 0 ] && [ "$SECONDS" -lt $((DEADLINE_S - 80)) ]; then
  say "the same as uid $NOBODY"
  # shellcheck disable=SC2046  # several words
  as_nobody env -C "$WORK/user" "$PYTHON" -m wattflow.cli submit sweep=user $(words $fewer) sweep.repeats=1
  follow h100 "$WORK/user/sweeps/user" "$DEADLINE_S" || true # root may read it
  wait_for 20 "$WORK/user/sweeps/user/results/points.parquet"
fi

bring_home h100
trap - EXIT
say "done; the numbers:"
"$PYTHON" "$HERE/measured.py" h100 "$WORK" "$PACKED/commit" | "$PYTHON" "$HERE/summary.py"
