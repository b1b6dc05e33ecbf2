#!/bin/bash
# Ends the cluster of up.sh: its jobs, then each daemon by its pid file. `--wipe` also removes $CLUSTER_DIR.
set -uo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/testcluster/settings.sh
. "$HERE/settings.sh"

queue_empty() { [ -z "$(timeout 5 squeue -h -a 2>/dev/null)" ]; }

cancel_jobs() {
  pid_of slurmctld slurmctld >/dev/null || return
  local user
  user=$(id -un)
  timeout 10 scancel --quiet --state=PENDING -u "$user" 2>/dev/null
  timeout 10 scancel --quiet --full --signal=KILL --state=RUNNING -u "$user" 2>/dev/null
  timeout 10 scancel --quiet -u "$user" 2>/dev/null
  wait_until 5 queue_empty
}

stop_nodes() {
  local file node pids
  for file in "$RUN"/slurmd-*.pid; do
    [ -e "$file" ] || continue
    node=${file##*/slurmd-} node=${node%.pid}
    stop "slurmd-$node" slurmd
    mapfile -t pids < <(node_processes "$node") # steps and tasks outlive their slurmd
    [ ${#pids[@]} = 0 ] || kill -KILL "${pids[@]}" 2>/dev/null
  done
}

unname_nodes() { # rewritten in place, for /etc/hosts may be a bind mount
  grep -qF "$HOSTS_TAG" /etc/hosts || return
  local kept
  kept=$(grep -vF "$HOSTS_TAG" /etc/hosts)
  printf '%s\n' "$kept" >/etc/hosts
}

# What is about to be wiped need not be written out first, which takes MariaDB seconds.
drop() { # NAME OF THE PID FILE, PROGRAM
  local pid
  pid=$(pid_of "$1" "$2") && kill -KILL "$pid"
}

if [ -d "$RUN" ]; then
  cancel_jobs
  stop_nodes
  if [ "${1:-}" = --wipe ]; then
    drop slurmdbd slurmdbd
    drop mariadbd mariadbd
  fi
  stop slurmctld slurmctld
  stop slurmdbd slurmdbd
  stop mariadbd mariadbd
  stop munged munged
fi
unname_nodes
if [ "${1:-}" = --wipe ]; then
  # only what up.sh made: a mistyped CLUSTER_DIR must not cost a home directory
  [ ! -d "$CLUSTER_DIR" ] || [ -d "$ETC" ] || fail "$CLUSTER_DIR: no test cluster there; nothing was removed."
  rm -rf -- "$CLUSTER_DIR"
fi
