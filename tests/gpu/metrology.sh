#!/bin/bash
# One GPU, for docs/uncertainty.md: its passport, decode at batch 1 and 64 with what wattflow remarks on each row, and 20
# windows of the integral against the energy counter. No limit, clock or mode is touched. 5 to 6 minutes on an H200.
#
#   OUT=results tests/gpu/metrology.sh               (in a checkout with the folder of pack.sh)
#   DRY=1 OUT=/tmp/results tests/gpu/metrology.sh    (here, without a GPU; of the calibration only the plan)
#
# Left in $OUT: passport-<k>.json, passports.tar.gz (the reads, for `wattflow calibrate --from`), metrology.json and
# metrology-sweeps.tar.gz (the rows and sweeps of decode), joules.json (the windows). Each is there once its part is done.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/gpu/machine.sh
. "$HERE/machine.sh"

singles=12 batches=512 length=256 share=0.5
if [ "$DRY" = 1 ]; then singles=2 batches=4 length=8 share=1; fi

# UUIDs are cut to their beginning: which board it was is nobody's business
cut_uuids() { sed -E 's/(GPU-[0-9a-f]{8})-[-0-9a-f]{27}/\1/g' "$1"; }

calibrated() {
  if [ "$DRY" = 1 ]; then
    mkdir -p load # a board that draws its idle watts, as no file there says that a load is on
    FAKE_NVML_PROCESSES=0 FAKE_NVML_CURVE=load:100:300 FAKE_NVML_LOAD=$PWD/load \
      wattflow calibrate --dry-run --minutes 2 --out passports --load "$PYTHON $ROOT/tests/fake_load.py"
    return
  fi
  record calibrate --out passports --minutes 2 --no-page
  local number=0 path
  for path in passports/passport-*.json; do
    cut_uuids "$path" >"$OUT/passport-$number.json"
    number=$((number + 1))
  done
  tar -czf "$OUT/passports.tar.gz" passports
}

decoded() { # BATCH, PROMPTS
  # shellcheck disable=SC2046  # several words
  record submit sweep="decode-$1" cluster=local cluster.gpu_model=h200 $(model_words llama-7b) \
    model.tokenizer_path=data/llama2_tokenizer.model dataset=gsm8k dataset.path=data/gsm8k_test.jsonl \
    engine=fast n_prompts="$2" batch_size="$1" max_gen_len=$length power.idle_s=3 sweep.repeats=2
  follow metrology "$WORK/sweeps/decode-$1" "$DEADLINE_S" || true
}

install_wattflow
[ "$DRY" != 1 ] || pretend 1
trap 'bring_home metrology' EXIT
cd "$WORK"

calibrated || { say "the calibration fails" && [ "$DRY" != 1 ]; }
decoded 1 "$singles"
decoded 64 "$batches"
bring_home metrology
trap - EXIT

say "20 windows by all methods"
STAGES=agreement AGREEMENT_SHARE=$share DEADLINE_S=120 OUT=$OUT PACKED=$PACKED DRY=$DRY "$PYTHON" "$HERE/joules.py" ||
  say "joules.py fails"
say "done; the numbers:"
"$PYTHON" "$HERE/measured.py" metrology "$WORK" "$PACKED/commit" | "$PYTHON" "$HERE/summary.py"
