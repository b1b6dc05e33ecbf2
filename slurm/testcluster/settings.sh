# shellcheck shell=bash
# Settings of the test cluster, each from the environment or its default, and the few functions that up.sh, down.sh
# and node.sh share: they know a daemon by its pid file, and trust a pid only while it carries that daemon's name.
# Under hold.sh the cluster has pids of its own: a script that sources this file goes on among them.

CLUSTER_DIR=${CLUSTER_DIR:-/tmp/wattflow-cluster} # state, logs and pid files; a short path without spaces
NODES=${NODES:-4}
CPUS=${CPUS:-8}              # declared a node, whatever the host has
MEMORY_MB=${MEMORY_MB:-16000} # likewise
GPUS=${GPUS:-2}              # a node; fake ones unless REALGPU is set
GPU_TYPE=${GPU_TYPE:-}       # h100: the GPUs are of that type, as typed requests need
REALGPU=${REALGPU:-0}        # how many GPUs of this host are dealt to the nodes in turn
GPU_DEVICES=${GPU_DEVICES:-/dev/nvidia} # their devices: this and a number
ACCOUNTING=${ACCOUNTING:-slurmdbd} # slurmdbd: sacct answers; filetxt: `sacct -c` alone; none
AUTH=${AUTH:-munge}          # munge; none: any local user may claim to be root
HOSTNAMES=${HOSTNAMES:-own}  # own: nodeN has its host name and 127.0.1.N; shared: every node is this host
PREFIX=${PREFIX:-}           # a folder made by pack.sh; empty for the installed packages
BASE_PORT=${BASE_PORT:-16800} # slurmctld; +1 slurmdbd, +2 MariaDB, +10+N the nodes
MAX_ARRAY_SIZE=${MAX_ARRAY_SIZE:-1001}
MAX_JOB_COUNT=${MAX_JOB_COUNT:-20000}
SLURMD_TIMEOUT_S=${SLURMD_TIMEOUT_S:-10} # until a silent node is DOWN
KILL_WAIT_S=${KILL_WAIT_S:-5}            # between TERM and KILL at a job's end
REQUEUE_WAIT_S=${REQUEUE_WAIT_S:-5}      # before a requeued job may start again
GRACE_S=${GRACE_S:-5}                    # between preemption's signal and the end
EXTRA_CONF=${EXTRA_CONF:-}               # further lines for slurm.conf; they win over those of the template

RUN=$CLUSTER_DIR/run
LOG=$CLUSTER_DIR/log
ETC=$CLUSTER_DIR/etc
# shellcheck disable=SC2034  # marks what up.sh adds to /etc/hosts and down.sh removes
HOSTS_TAG="# wattflow test cluster $CLUSTER_DIR"

if [ -n "$PREFIX" ]; then
  PATH=$PREFIX/bin:$PREFIX/sbin:$PATH
else
  PATH=$PATH:/usr/sbin:/sbin
fi
export PATH
export SLURM_CONF=$ETC/slurm.conf

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 1
}

# A pid file's process: prints the pid if it lives under that name. A zombie does not count.
pid_of() { # NAME OF THE PID FILE, PROGRAM
  local pid name state
  pid=$(cat "$RUN/$1.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
  name=$(awk '/^Name:/ {print $2}' "/proc/$pid/status" 2>/dev/null) || return 1
  state=$(awk '/^State:/ {print $2}' "/proc/$pid/status" 2>/dev/null) || return 1
  [ "$name" = "$2" ] && [ "$state" != Z ] && echo "$pid"
}

# Starts a program that stays in the foreground, detached from the terminal, unless it lives already.
start() { # NAME OF THE PID FILE, PROGRAM, COMMAND...
  local name=$1 program=$2
  shift 2
  pid_of "$name" "$program" >/dev/null && return
  (
    close_inherited
    exec setsid "$@" >>"$LOG/$name.out" 2>&1 </dev/null
  ) &
  echo $! >"$RUN/$name.pid"
}

# Lets go of what a caller had open: under `flock FILE up.sh` the daemons would else keep the lock for as long as they live.
close_inherited() {
  local descriptor
  for descriptor in "/proc/$BASHPID/fd"/*; do
    descriptor=${descriptor##*/}
    [ "$descriptor" -le 2 ] || eval "exec $descriptor>&-"
  done
}

# Ends a program by TERM, after five seconds by KILL.
stop() { # NAME OF THE PID FILE, PROGRAM
  local pid
  if pid=$(pid_of "$1" "$2"); then
    kill -TERM "$pid" 2>/dev/null
    wait_until 5 gone "$1" "$2" || kill -KILL "$pid" 2>/dev/null
  fi
  rm -f "$RUN/$1.pid"
}

gone() { ! pid_of "$1" "$2" >/dev/null; }

# Asks a command every 50 ms until it succeeds; fails after so many seconds.
wait_until() { # SECONDS, COMMAND...
  local end=$(($(date +%s) + $1))
  shift
  until "$@"; do
    [ "$(date +%s)" -le "$end" ] || return 1
    sleep 0.05
  done
}

# Every process of one node. slurmd and slurmstepd hold the node's log open (slurmstepd wipes its environment for its
# title); tasks carry the node's name and this cluster's slurm.conf in their environment.
node_processes() { # NODE
  local folder pid
  for folder in /proc/[0-9]*; do
    pid=${folder#/proc/}
    case $(cat "$folder/comm" 2>/dev/null) in
      slurmd | slurmstepd)
        find "$folder/fd" -lname "$LOG/slurmd-$1.log" 2>/dev/null | grep -q . && echo "$pid"
        ;;
      *)
        [ "$pid" != $$ ] && grep -qzxF "SLURMD_NODENAME=$1" "$folder/environ" 2>/dev/null &&
          grep -qzxF "SLURM_CONF=$SLURM_CONF" "$folder/environ" 2>/dev/null && echo "$pid"
        ;;
    esac
  done
  return 0
}

each_node() { seq -f 'node%.0f' "$NODES"; }

if [ -z "${CLUSTER_INSIDE:-}" ] && holder=$(pid_of hold hold.sh); then
  export CLUSTER_INSIDE=1
  exec nsenter --target "$holder" --pid --mount -- "$HERE/${0##*/}" "$@"
fi
