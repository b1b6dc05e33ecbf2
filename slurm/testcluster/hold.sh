#!/bin/bash
# A cluster that lasts as long as this script's standard input is open: it is brought up, and taken down and removed
# when the input ends. A program that holds the other end so takes its cluster with it, even where it is killed.
#
#   slurm/testcluster/hold.sh       (Ctrl-D ends it)
#
# Daemons change their user and steps leave their slurmd, so that no signal of a parent's death reaches all of them:
# they live in a PID namespace of which this script is the first process, and the kernel ends them with it. Where the
# system refuses such a namespace, the cluster still goes down with the input, but outlives a kill of this script.
set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export CLUSTER_INSIDE=1 # what is started from here is among the cluster's processes
# shellcheck source=slurm/testcluster/settings.sh
. "$HERE/settings.sh"
NAMESPACE=(unshare --pid --mount --fork --kill-child --)

if [ "${1:-}" = --first ]; then
  mkdir -p "$RUN"
  read -r pid _ </proc/self/stat # as it is called outside, for this /proc is still the one from there
  mount -t proc proc /proc
  echo "$pid" >"$RUN/hold.pid"
elif why=$("${NAMESPACE[@]}" mount -t proc proc /proc 2>&1); then
  exec "${NAMESPACE[@]}" "$0" --first
else
  echo "hold.sh: no PID namespace ($why): kill -9 of this script would leave the cluster." >&2
fi

if "$HERE/up.sh" </dev/null; then
  exec >>"$LOG/hold.out" 2>&1 # whoever would have read what comes from now on may be gone
  while read -r _; do :; done
  "$HERE/down.sh" --wipe
else
  "$HERE/down.sh" # leaves the logs
  exit 1
fi
