# shellcheck shell=bash
# What the scripts of a packed checkout share: a working folder with wattflow and the packed wheels in it, following a sweep, and
# bringing its results home after each point, so that whatever ends the script costs the running point alone.
#
#   OUT     where results go                    PYTHON  an interpreter with torch and pyarrow (python3)
#   PACKED  the folder that pack.sh made        WORK    the working folder; readable by all, since one run is nobody's
#   DRY=1   the same lines on a machine without GPU: a tiny model on the CPU, a fake NVML with known watts

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
OUT=$(realpath -m "${OUT:?a folder for the results}")
PACKED=$(realpath -m "${PACKED:-$ROOT/.gpu}")
WORK=${WORK:-/tmp/wattflow-gpu}
PYTHON=${PYTHON:-python3}
DRY=${DRY:-0}
DEADLINE_S=${DEADLINE_S:-540} # nothing is waited for beyond it; what is there by then is brought home

umask 022
export PYTHONUNBUFFERED=1

say() { printf '%s %4d s  %s\n' "$(date -u +%H:%M:%S)" "$SECONDS" "$*"; }

# Runs a wattflow command and notes it, as a person would type it, for the page.
record() {
  say "\$ wattflow $*"
  printf 'wattflow %s\n' "$*" >>"$WORK/commands.txt"
  wattflow "$@"
}

wattflow() { "$PYTHON" -m wattflow.cli "$@"; }

install_wattflow() {
  rm -rf "$WORK"
  mkdir -p "$OUT" "$WORK/code"
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-cache-dir --root-user-action=ignore \
    --target "$WORK/site" "$PACKED"/wheels/*.whl
  cp -r "$ROOT/wattflow" "$ROOT/conf" "$WORK/code/"
  "$PYTHON" -m compileall -q "$WORK/code" # every process that is started here reads them
  cp -r "$PACKED/data" "$WORK/data"
  chmod -R a+rX "$WORK"
  export PYTHONPATH=$WORK/code:$WORK/site
  say "installed into $WORK: $(du -sm "$WORK" | cut -f1) MiB"
}

# Where there is no GPU: a driver whose watts are known functions of time, and a model that a CPU core can carry.
pretend() { # NUMBER OF GPUS
  make -s -C "$ROOT/tests/fake_nvml" OUT="$WORK/nvml"
  chmod -R a+rX "$WORK/nvml"
  export LD_LIBRARY_PATH=$WORK/nvml FAKE_NVML_GPUS=$1
}

# A Slurm of this machine, of the packed programs; in a dry run its GPUs are files.
bring_up_slurm() {
  tar -C "$WORK" -xzf "$PACKED/slurm.tgz"
  if [ "$DRY" = 1 ]; then
    mkdir -p "$WORK/dev"
    for ((number = 0; number < ${REALGPU:-2}; number++)); do
      [ -e "$WORK/dev/nvidia$number" ] || mknod -m 666 "$WORK/dev/nvidia$number" c 1 3
    done
    export GPU_DEVICES=$WORK/dev/nvidia
  fi
  "$ROOT/slurm/testcluster/up.sh"
  # shellcheck source=/dev/null
  . "$CLUSTER_DIR/env.sh"
}

take_down_slurm() { "$ROOT/slurm/testcluster/down.sh" || true; }

# The model's words: NAME, or in a dry run a tiny model over the same vocabulary, so that prompts have their true lengths.
model_words() { # NAME
  if [ "$DRY" = 1 ]; then
    echo "model=tiny model.vocab_size=32000 model.tokenizer=sentencepiece engine.device=cpu precision=fp32"
  else
    echo "model=$1"
  fi
}

# Collects, packs and sums up all sweeps so far; each file is replaced whole. An ordinary user's sweep is left to its
# own job, which collects at its end.
bring_home() { # NAME OF THE SCRIPT
  local sweep parts=()
  for sweep in "$WORK"/sweeps/*/; do
    [ ! -d "$sweep" ] || wattflow collect "$sweep" 2>&1 | sed "s|^|$(basename "$sweep"): |"
  done
  "$PYTHON" "$ROOT/tests/gpu/measured.py" "$1" "$WORK" "$PACKED/commit" >"$OUT/$1.json.new" &&
    mv "$OUT/$1.json.new" "$OUT/$1.json"
  for part in sweeps user/sweeps cluster/log cluster/etc; do
    [ ! -d "$WORK/$part" ] || parts+=("$part")
  done
  # a log may grow meanwhile, which tar tells by exit code 1
  [ ${#parts[@]} = 0 ] || tar -C "$WORK" -czf "$OUT/sweeps.new" --exclude='*.pkl' --exclude='.submission_file*' "${parts[@]}" 2>/dev/null || true
  [ ! -f "$OUT/sweeps.new" ] || mv "$OUT/sweeps.new" "$OUT/$1-sweeps.tar.gz"
}

# Shows a sweep's states as they change, until all points have ended; the results are brought home at each change. After
# so many seconds of the script it ends what still runs, and fails.
follow() { # NAME OF THE SCRIPT, SWEEP, SECOND OF THE SCRIPT
  local shown='' states=''
  while [ "$SECONDS" -lt "$3" ]; do
    # exit code 5 is an unanswered question, which the next round asks again
    local code=0
    states=$(wattflow status "$2" 2>/dev/null) || code=$?
    states=$(awk -F'\t' 'NR > 1 && NF > 1 {n[$2]++} END {for (s in n) printf "%d %s  ", n[s], s}' <<<"$states")
    if [ "$states" != "$shown" ]; then
      say "$(basename "$2"): $states"
      shown=$states
      bring_home "$1"
    fi
    case $code in 4 | 5) sleep 3 ;; *) return 0 ;; esac
  done
  say "$(basename "$2"): not all points have ended, and no more is waited for"
  wattflow cancel "$2" --yes || true
  return 1
}

# What a command printed, kept for the page under a name.
keep() { # NAME, COMMAND...
  local name=$1
  shift
  mkdir -p "$WORK/told"
  "$@" >"$WORK/told/$name.txt" 2>&1 || true
  sed 's/^/    /' "$WORK/told/$name.txt"
}

# Waits until a file is there, for so many seconds.
wait_for() { # SECONDS, FILE
  local end=$((SECONDS + $1))
  until [ -e "$2" ] || [ "$SECONDS" -ge "$end" ]; do sleep 0.5; done
}
