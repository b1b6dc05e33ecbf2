#!/bin/bash
# Brings up a real Slurm on this one machine: munge, slurmctld, several slurmds and, for sacct, slurmdbd with its own
# MariaDB. Run it again at will: what lives is left alone. Needs root. Settings stand in settings.sh.
#
#   NODES=2 ACCOUNTING=none slurm/testcluster/up.sh
#   . /tmp/wattflow-cluster/env.sh && sinfo
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/testcluster/settings.sh
. "$HERE/settings.sh"
HOST=$(hostname -s)
CTLD_PORT=$BASE_PORT DBD_PORT=$((BASE_PORT + 1)) SQL_PORT=$((BASE_PORT + 2))
MUNGE_SOCKET=$CLUSTER_DIR/munge/socket

check_host() {
  local program
  [ "$(id -u)" = 0 ] || fail "Slurm's daemons need root: run this as root."
  for program in slurmctld slurmd scontrol sinfo; do
    command -v "$program" >/dev/null || fail "no $program; install it with slurm/testcluster/install.sh."
  done
  # a step's socket is spool/nodeNN/nodeNN_JOB.STEP in it, and Linux takes 107 bytes of such a name
  [ ${#CLUSTER_DIR} -le 64 ] || fail "CLUSTER_DIR=$CLUSTER_DIR: more than 64 letters; no job would start. Choose a shorter path."
  case $ACCOUNTING in
    slurmdbd) command -v slurmdbd mariadbd >/dev/null || fail "ACCOUNTING=slurmdbd needs slurmdbd and mariadb-server." ;;
    filetxt | none) ;;
    *) fail "ACCOUNTING=$ACCOUNTING: not one of slurmdbd, filetxt, none." ;;
  esac
}

make_folders() {
  mkdir -p "$ETC" "$RUN" "$LOG" "$CLUSTER_DIR/state" "$CLUSTER_DIR/spool"
  chmod 755 "$CLUSTER_DIR" "$ETC" "$RUN" "$LOG"
}

start_munge() { # its own key and socket, so that the system's munge is of no matter
  local folder=$CLUSTER_DIR/munge
  mkdir -p "$folder"
  chmod 755 "$folder"
  if [ ! -s "$folder/key" ]; then
    (umask 077 && head -c 128 /dev/urandom >"$folder/key")
  fi
  pid_of munged munged >/dev/null && return
  rm -f "$MUNGE_SOCKET" "$MUNGE_SOCKET.lock"
  start munged munged munged --foreground --force --num-threads=4 --key-file="$folder/key" --socket="$MUNGE_SOCKET" \
    --pid-file="$folder/pid" --log-file="$LOG/munged.log" --seed-file="$folder/seed"
  wait_until 300 test -S "$MUNGE_SOCKET" || fail "munged did not open its socket; see $LOG/munged.out"
}

sql() { mariadb --no-defaults --socket="$CLUSTER_DIR/sql-run/socket" "$@"; }
sql_answers() { sql --execute='SELECT 1' >/dev/null 2>&1; }

start_mariadb() {
  local data=$CLUSTER_DIR/sql own=$CLUSTER_DIR/sql-run
  pid_of mariadbd mariadbd >/dev/null && return
  mkdir -p "$data" "$own"
  chown mysql "$data" "$own"
  if [ ! -d "$data/mysql" ]; then
    mariadb-install-db --no-defaults --user=mysql --datadir="$data" --auth-root-authentication-method=normal \
      --skip-test-db --innodb-log-file-size=16M >"$LOG/mariadb-install.out" 2>&1 ||
      fail "MariaDB's first start failed; see $LOG/mariadb-install.out"
  fi
  start mariadbd mariadbd mariadbd --no-defaults --user=mysql --datadir="$data" --socket="$own/socket" \
    --pid-file="$own/pid" --log-error="$LOG/mariadb.log" --bind-address=127.0.0.1 --port="$SQL_PORT" \
    --skip-name-resolve --performance-schema=OFF --innodb-buffer-pool-size=64M --innodb-log-file-size=16M \
    --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900
  wait_until 300 sql_answers || fail "MariaDB does not answer; see $LOG/mariadb.log"
  sql --execute="CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
    GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';"
}

slurmdbd_conf() {
  cat <<END
AuthType=auth/$AUTH
${AUTH_LINE}
${PREFIX:+PluginDir=$PREFIX/plugins}
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$DBD_PORT
SlurmUser=root
DebugLevel=info
LogFile=$LOG/slurmdbd.log
PidFile=$RUN/slurmdbd.own
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$SQL_PORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CommitDelay=1
END
}

accounting_lines() {
  case $ACCOUNTING in
    slurmdbd)
      echo "AccountingStorageType=accounting_storage/slurmdbd"
      echo "AccountingStorageHost=127.0.0.1"
      echo "AccountingStoragePort=$DBD_PORT"
      echo "AccountingStorageTRES=gres/gpu"
      # slurmctld looks for munge's socket here too, and dies of 'no TRES' without it
      [ "$AUTH" = none ] || echo "AccountingStoragePass=$MUNGE_SOCKET"
      ;;
    filetxt)
      echo "AccountingStorageType=accounting_storage/none"
      echo "JobCompType=jobcomp/filetxt"
      echo "JobCompLoc=$LOG/jobcomp.log"
      ;;
    none) echo "AccountingStorageType=accounting_storage/none" ;;
  esac
}

node_lines() {
  local number host=$HOST address=127.0.0.1
  for number in $(seq "$NODES"); do
    if [ "$HOSTNAMES" = own ]; then host=node$number address=127.0.1.$number; fi
    echo "NodeName=node$number NodeHostname=$host NodeAddr=$address Port=$((BASE_PORT + 10 + number))" \
      "CPUs=$CPUS RealMemory=$MEMORY_MB Gres=gpu:${GPU_TYPE:+$GPU_TYPE:}$GPUS State=UNKNOWN"
  done
}

gres_conf() {
  local number gpu file
  for number in $(seq "$NODES"); do
    for gpu in $(seq 0 $((GPUS - 1))); do
      file=$CLUSTER_DIR/dev/gpu$gpu
      [ "$REALGPU" = 0 ] || file=$GPU_DEVICES$((((number - 1) * GPUS + gpu) % REALGPU))
      echo "NodeName=node$number Name=gpu ${GPU_TYPE:+Type=$GPU_TYPE }File=$file"
    done
  done
}

make_fake_gpus() { # character devices like /dev/null: with plain files CUDA_VISIBLE_DEVICES would stay unset
  local gpu
  mkdir -p "$CLUSTER_DIR/dev"
  for gpu in $(seq 0 $((GPUS - 1))); do
    [ -c "$CLUSTER_DIR/dev/gpu$gpu" ] || mknod -m 666 "$CLUSTER_DIR/dev/gpu$gpu" c 1 3
  done
}

# CUDA_VISIBLE_DEVICES counts from 0 on every node, so that all 'nodes' of one host would share its first GPUs; what a
# TaskProlog prints as `export` reaches the task.
task_prolog() {
  cat <<END
#!/bin/bash
[ -n "\${CUDA_VISIBLE_DEVICES:-}" ] || exit 0
number=\${SLURMD_NODENAME#node}
real=
for gpu in \${CUDA_VISIBLE_DEVICES//,/ }; do
  real+=,\$((((number - 1) * $GPUS + gpu) % $REALGPU))
done
echo "export CUDA_VISIBLE_DEVICES=\${real#,}"
END
}

# Node names must resolve, or torch's rendezvous at MASTER_ADDR=node1 waits for ever. The file may be a bind mount, so
# it is appended to and never replaced.
name_nodes() {
  local number
  grep -qF "$HOSTS_TAG" /etc/hosts && return
  for number in $(seq "$NODES"); do
    echo "127.0.1.$number node$number $HOSTS_TAG"
  done >>/etc/hosts
}

write_settings() {
  local communication=NoCtldInAddrAny prolog=
  [ "$HOSTNAMES" = own ] || communication+=,NoInAddrAny
  [ -s "$CLUSTER_DIR/state/first-job" ] ||
    echo $(((RANDOM * 32768 + RANDOM) % 900 * 10000 + 10000)) >"$CLUSTER_DIR/state/first-job"
  if [ "$REALGPU" != 0 ]; then
    task_prolog >"$ETC/task_prolog.sh"
    chmod 755 "$ETC/task_prolog.sh"
    prolog=TaskProlog=$ETC/task_prolog.sh
  fi
  accounting_lines >"$ETC/accounting.part"
  node_lines >"$ETC/nodes.part"
  sed -e "/^@ACCOUNTING@/ { r $ETC/accounting.part
d
}" -e "/^@NODES@/ { r $ETC/nodes.part
d
}" -e "s|@DIR@|$CLUSTER_DIR|g; s|@HOST@|$HOST|; s|@CTLD_PORT@|$CTLD_PORT|; s|@AUTH@|$AUTH|" \
    -e "s|@AUTH_INFO@|${AUTH_LINE:+socket=$MUNGE_SOCKET,}cred_expire=$REQUEUE_WAIT_S|; s|@COMMUNICATION@|$communication|" \
    -e "s|@PLUGIN_DIR@|${PREFIX:+PluginDir=$PREFIX/plugins}|; s|@TASK_PROLOG@|$prolog|" \
    -e "s|@FIRST_JOB@|$(cat "$CLUSTER_DIR/state/first-job")|; s|@MAX_ARRAY_SIZE@|$MAX_ARRAY_SIZE|" \
    -e "s|@MAX_JOB_COUNT@|$MAX_JOB_COUNT|; s|@KILL_WAIT@|$KILL_WAIT_S|; s|@SLURMD_TIMEOUT@|$SLURMD_TIMEOUT_S|" \
    -e "s|@GRACE@|$GRACE_S|" "$HERE/slurm.conf.in" >"$ETC/slurm.conf"
  [ -z "$EXTRA_CONF" ] || printf '%s\n' "$EXTRA_CONF" >>"$ETC/slurm.conf"
  gres_conf >"$ETC/gres.conf"
  # Named though unused: left to find out, slurmd ends where /sys/fs/cgroup is not a cgroup file system.
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$ETC/cgroup.conf"
  {
    echo "export SLURM_CONF=$ETC/slurm.conf"
    [ -z "$PREFIX" ] || echo "export PATH=$PREFIX/bin:$PREFIX/sbin:\$PATH"
  } >"$CLUSTER_DIR/env.sh"
}

dbd_listens() { (exec 3<>"/dev/tcp/127.0.0.1/$DBD_PORT") 2>/dev/null; }

start_slurm() {
  local node
  if [ "$ACCOUNTING" = slurmdbd ]; then
    start slurmdbd slurmdbd slurmdbd -D
    wait_until 300 dbd_listens || fail "slurmdbd does not listen; see $LOG/slurmdbd.log"
  fi
  start slurmctld slurmctld slurmctld -D -i
  for node in $(each_node); do
    mkdir -p "$CLUSTER_DIR/spool/$node"
    "$HERE/node.sh" start "$node"
  done
}

nodes_up() { # a sinfo without a controller waits for the whole MessageTimeout: bound it
  [ "$(timeout 10 sinfo -h -N -p gpu -o %t 2>/dev/null | grep -cE '^(idle|mix|alloc)$')" = "$NODES" ]
}

check_host
make_folders
AUTH_LINE=
if [ "$AUTH" = munge ]; then
  AUTH_LINE=AuthInfo=socket=$MUNGE_SOCKET
  start_munge
fi
if [ "$ACCOUNTING" = slurmdbd ]; then
  (umask 077 && slurmdbd_conf >"$ETC/slurmdbd.conf")
  start_mariadb
fi
[ "$REALGPU" != 0 ] || make_fake_gpus
[ "$HOSTNAMES" != own ] || name_nodes
write_settings
start_slurm
wait_until 300 nodes_up || fail "not all of $NODES nodes came up; see $LOG"
echo "$NODES nodes are up in $SECONDS s:  . $CLUSTER_DIR/env.sh"
