#!/bin/bash
# Does to one node what can happen to a machine:
#
#   node.sh kill NODE     it is lost: slurmd, its steps and their tasks end at once
#   node.sh stop NODE     its slurmd crashed; jobs on it run on
#   node.sh freeze NODE   it hangs: nothing on it moves; `thaw` lets it go on
#   node.sh start NODE    its slurmd is started (again)
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/testcluster/settings.sh
. "$HERE/settings.sh"
DO=${1:?kill, stop, freeze, thaw or start} NODE=${2:?name of a node}

signal_all() { # SIGNAL
  local pids
  mapfile -t pids < <(node_processes "$NODE")
  [ ${#pids[@]} = 0 ] || kill "-$1" "${pids[@]}" 2>/dev/null || true
}

# A slurmd of the node, under the node's own host name if it has one; `exec` keeps the pid that was noted.
start_slurmd() {
  local slurmd=(slurmd -D -N "$NODE")
  [ -z "$PREFIX" ] || slurmd+=(-d "$PREFIX/sbin/slurmstepd")
  if [ "$HOSTNAMES" = own ]; then
    # shellcheck disable=SC2016  # $0 and $@ are for the inner shell
    slurmd=(unshare --uts bash -c 'hostname "$0" && exec "$@"' "$NODE" "${slurmd[@]}")
  fi
  start "slurmd-$NODE" slurmd "${slurmd[@]}"
}

case $DO in
  kill)
    signal_all KILL
    sleep 0.1 # what was being forked meanwhile
    signal_all KILL
    rm -f "$RUN/slurmd-$NODE.pid"
    ;;
  stop) stop "slurmd-$NODE" slurmd ;;
  freeze) signal_all STOP ;;
  thaw) signal_all CONT ;;
  start) start_slurmd ;;
  *) fail "$DO: not one of kill, stop, freeze, thaw, start." ;;
esac
