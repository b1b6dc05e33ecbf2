#!/bin/bash -p
# Power caps for jobs that ask for one by a node feature, within what the node's admin allows. It runs as root:
#
#   wattflow-cap.sh prolog   the job's GPUs get the baseline, then the cap that the job asked for
#   wattflow-cap.sh epilog   the job's GPUs get the baseline again
#   wattflow-cap.sh boot     every GPU of the node gets the baseline
#   wattflow-cap.sh check    prints what it would work with, and changes nothing
#
# A cap goes: journal, fsync, set, read back ... the job ... baseline, read back, journal gone. Whatever is killed in
# between, a GPU that may have a cap has its file in the journal, and the next prolog on it, its epilog and the boot put
# the baseline back. What is put back is the baseline that the admin declares: a value found may be a cap that leaked.
#
# A cap that could not be set costs nobody anything: exit 0, and the job's note says so. The exit is 1, upon which Slurm
# drains the node, only where a GPU may still have a cap. docs/sites.md says how to install it.
#
# Nothing of a user's is taken at its word: -p and the fixed PATH keep the environment out, the request and the GPUs'
# numbers pass strict patterns, no Slurm command is called, nothing that a user could write is read, and no process is
# started for a user's process.
set -uo pipefail # bash before 4.4 takes an empty array for an unset one: lists that may be empty are strings here
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
umask 022
shopt -s nullglob

CONF=/etc/wattflow/cap.conf
JOURNAL=/var/lib/wattflow # mode 0700; a file for each GPU that may have a cap, named by its UUID
NOTES=/run/wattflow       # mode 0755; a line for each job with GPUs: STATE WATTS UUIDS WHY
PROC=/proc
SMI_TIMEOUT_S=30
LOCK_TIMEOUT_S=90 # longer than any step of another, such as an nvidia-smi that hangs

UUID='GPU-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
WATTS='[0-9]{1,4}\.[0-9]{2}'
UNKNOWN='\[[A-Za-z/ ]+\]' # such as [N/A]

declare -A LIMIT=() ENFORCED=() LEAST=() MOST=() # by UUID, in hundredths of a watt, or [N/A]
declare -A UUID_AT=()                            # by PCI address
UUID_OF=()                                       # by Slurm's number
GPUS='' COUNT=0 MIG=no WHY='' STEP=/dev/null

say() {
  echo "wattflow-cap: $*" >&2
  timeout 5 logger -t wattflow-cap -- "$*" 2>/dev/null
  return 0
}

# ---- what the admin declares -----------------------------------------------------------------------------------------

# Prints the path without links of a file or folder that nobody but root can have put or changed: it and all folders
# above are root's, and writable by root alone or, above, sticky: there others cannot replace what is root's.
roots_own() { # PATH
  local path paths owner mode sticky=0
  path=$(realpath -e -- "$1" 2>/dev/null) || return 1
  paths=("$path")
  while [ -n "${path%/*}" ]; do
    path=${path%/*}
    paths+=("$path")
  done
  while read -r owner mode; do
    [ "$owner" = 0 ] && (((8#$mode & 8#022) == 0 || (8#$mode & sticky) != 0)) || return 1
    sticky=$((8#1000))
  done < <(stat -c '%u %a' -- "${paths[@]}" / 2>/dev/null || echo none)
  echo "${paths[0]}"
}

# Prints the path of a folder of root's alone, which is made if it is missing; one that is right may lie on a disk that
# can only be read.
own_folder() { # PATH MODE
  local path
  # the first jobs of a node may start at once: another may have made it in between
  [ -d "$1" ] || mkdir -m "$2" -- "$1" 2>/dev/null || [ -d "$1" ] || return 1
  path=$(roots_own "$1") || return 1
  [ "$(stat -c %a -- "$path")" = "$2" ] || chmod "$2" -- "$path" 2>/dev/null || return 1
  echo "$path"
}

# Reads the config into BASELINE_W, ALLOWED_W, SMI and OTHER; fails with WHY.
read_config() {
  local file line key value number=0
  local -A got=() pattern=(
    [baseline_w]='^[1-9][0-9]{1,3}$'
    [allow_w]='^[1-9][0-9]{1,3}( [1-9][0-9]{1,3})*$'
    [nvidia_smi]='^(/[A-Za-z0-9_+.-]+)+$'
    [other_controller]='^[a-z]{1,16}$'
  )
  WHY="the config $CONF is missing, or is not root's alone"
  file=$(roots_own "$CONF") && [ -f "$file" ] || return 1
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1))
    [[ ! $line =~ ^[[:blank:]]*(#|$) ]] || continue
    WHY="the config $CONF is wrong in line $number"
    [[ $line =~ ^([a-z_]+)\ =\ (.+)$ ]] || return 1
    key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    [ -n "${pattern[$key]:-}" ] && [ -z "${got[$key]:-}" ] && [[ $value =~ ${pattern[$key]} ]] || return 1
    got[$key]=$value
  done <"$file"
  for key in "${!pattern[@]}"; do
    WHY="the config $CONF lacks $key"
    [ -n "${got[$key]:-}" ] || return 1
  done
  BASELINE_W=${got[baseline_w]} ALLOWED_W=${got[allow_w]} OTHER=${got[other_controller]}
  for value in $ALLOWED_W; do
    WHY="the config $CONF allows $value W, above the baseline"
    ((value <= BASELINE_W)) || return 1
  done
  WHY="${got[nvidia_smi]} is missing, or is not root's alone"
  SMI=$(roots_own "${got[nvidia_smi]}") && [ -f "$SMI" ] && [ -x "$SMI" ] || return 1
  WHY=
}

# ---- what the job asks -----------------------------------------------------------------------------------------------

# Reads the job's number into JOB.
read_job() {
  JOB=${SLURM_JOB_ID:-}
  [[ $JOB =~ ^[1-9][0-9]{0,9}$ ]]
}

# Reads the cap that the job names into ASKED_W. Fails where it names none; where it names one that cannot be taken,
# ASKED_W stays empty and WHY says why.
read_request() {
  local text=${SLURM_JOB_CONSTRAINTS:-} word words caps=()
  ASKED_W='' WHY=
  [[ $text == *wf_cap* ]] || return 1
  WHY='the constraint is longer than 1024 characters'
  ((${#text} <= 1024)) || return 0
  WHY='the constraint holds more than features joined by &'
  [[ $text =~ ^[A-Za-z0-9_.:=-]+([\&,][A-Za-z0-9_.:=-]+)*$ ]] || return 0
  IFS='&,' read -ra words <<<"$text"
  for word in "${words[@]}"; do
    [[ $word != wf_cap* ]] || caps+=("$word")
  done
  [ ${#caps[@]} != 0 ] || return 1
  WHY='the constraint names more than one cap'
  [ ${#caps[@]} = 1 ] || return 0
  WHY='the cap is no number of watts from 10 to 9999'
  [[ ${caps[0]} =~ ^wf_cap([1-9][0-9]{1,3})$ ]] || return 0
  ASKED_W=${BASH_REMATCH[1]} WHY=
}

# Reads Slurm's numbers of the job's GPUs into NUMBERS; fails where there are none, or none that can be taken.
read_numbers() {
  local text=${SLURM_JOB_GPUS:-} number='(0|[1-9][0-9]?)'
  NUMBERS=''
  [[ $text =~ ^$number(,$number){0,63}$ ]] || return 1
  NUMBERS=${text//,/ }
}

# ---- the GPUs --------------------------------------------------------------------------------------------------------

# nvidia-smi with nothing of this environment, a step that those who wait can see. It holds the lock as long as it lives:
# one that outlives a killed prolog cannot set a cap behind the back of the next.
smi() {
  { echo "$$ $SECONDS $*" >"$STEP"; } 2>/dev/null
  env -i PATH="$PATH" LC_ALL=C timeout -k 5 "$SMI_TIMEOUT_S" "$SMI" "$@" </dev/null 2>/dev/null
}

# Reads what nvidia-smi reports of all GPUs; fails with WHY if one does not answer.
read_gpus() {
  local line at table fields=uuid,pci.bus_id,power.limit,enforced.power.limit,power.min_limit,power.max_limit,mig.mode.current
  local value="($WATTS|$UNKNOWN)" address='([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])'
  local row="^($UUID), $address, $value, $value, $value, $value, (Enabled|Disabled|$UNKNOWN)\$"
  GPUS='' COUNT=0 UUID_AT=() MIG=no WHY='nvidia-smi does not report the limits'
  table=$(smi --query-gpu=$fields --format=csv,noheader,nounits) && [ -n "$table" ] || return 1
  while IFS= read -r line; do
    [[ $line != WARNING:* ]] || continue # as of a damaged infoROM, after the rows
    [[ $line =~ $row ]] || return 1
    set -- "${BASH_REMATCH[@]:1}"
    GPUS+=" $1" COUNT=$((COUNT + 1))
    printf -v at '%08x:%s' "0x$2" "${3,,}" # the driver writes the domain in 8 digits, /proc in 4
    UUID_AT[$at]=$1
    LIMIT[$1]=${4/./} ENFORCED[$1]=${5/./} LEAST[$1]=${6/./} MOST[$1]=${7/./}
    [ "$8" != Enabled ] || MIG=yes
  done <<<"$table"
  WHY=
}

# Finds the GPU behind each of Slurm's numbers. Slurm counts as gres.conf lists the device files; that is the files' own
# number only where they are all of /dev/nvidia0 ... in order, so a gap refuses the node. Fails with WHY.
map_numbers() {
  local file bus at line minor
  UUID_OF=()
  for file in "$PROC"/driver/nvidia/gpus/*/information; do
    bus=${file%/information} bus=${bus##*/} minor=
    [[ $bus =~ ^[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]$ ]] || continue
    while IFS= read -r line; do
      [[ ! $line =~ ^Device\ Minor:[[:blank:]]*([0-9]{1,3})[[:blank:]]*$ ]] || minor=${BASH_REMATCH[1]}
    done <"$file"
    printf -v at '%08x:%s' "0x${bus%%:*}" "${bus#*:}"
    [ -z "$minor" ] || UUID_OF[10#$minor]=${UUID_AT[${at,,}]:-}
  done
  WHY="MIG is on, and a slice's power is its board's"
  [ $MIG = no ] || return 1
  WHY="Slurm's numbers cannot be matched with the devices of $PROC/driver/nvidia"
  for ((minor = 0; minor < COUNT; minor++)); do
    [ -n "${UUID_OF[minor]:-}" ] || return 1
  done
  [ ${#UUID_OF[@]} = $COUNT ] || return 1
  WHY=
}

# Reads the UUIDs of the job's numbers into MINE; fails with WHY.
read_mine() {
  local number uuids=''
  MINE=''
  map_numbers || return 1
  for number in $NUMBERS; do
    WHY="Slurm names GPU $number, which this node does not have"
    [ -n "${UUID_OF[number]:-}" ] || return 1
    uuids+=" ${UUID_OF[number]}"
  done
  MINE=${uuids# } WHY=
}

# Looks once through all processes for root's daemons: of EAR and GEOPM, which set limits (CONTROLLED says why hands are
# kept off), and of CUDA MPS, which shares GPUs out (SHARER names it, cut at 15 characters). A user's processes do not
# count whatever their names: a set-uid program has the user's real uid, or the bit on its file.
find_daemons() {
  local folder name key uid
  CONTROLLED='' SHARER=''
  [ "$OTHER" = none ] || CONTROLLED="the admin declares that $OTHER controls the power here"
  for folder in "$PROC"/[0-9]*; do
    { [ -O "$folder" ] && read -r name <"$folder/comm"; } || continue
    case $name in eard | geopmd | nvidia-cuda-mps) ;; *) continue ;; esac
    uid=''
    while read -r key uid _ && [ "$key" != Uid: ]; do :; done <"$folder/status"
    { [ "$uid" = 0 ] && [ ! -u "$folder/exe" ]; } || continue
    if [ "$name" = nvidia-cuda-mps ]; then SHARER=$name; else CONTROLLED="$name runs here"; fi
  done 2>/dev/null # of a process that has ended meanwhile there is nothing to read
}

# Whether another job has one of the job's GPUs too, as gres/shard lets it; WHY names it. What gres/mps lets is seen by its
# variable; of gres/shard a prolog sees nothing else.
shared() {
  local file uuid text
  WHY='the job has a part of a GPU (MPS)'
  [ -z "${CUDA_MPS_ACTIVE_THREAD_PERCENTAGE+set}" ] || return 0
  WHY="$SHARER runs here"
  [ -z "$SHARER" ] || return 0
  for file in "$NOTES"/[0-9]*; do
    { [ "$file" != "$NOTES/$JOB" ] && read -r text <"$file"; } || continue
    for uuid in $MINE; do
      WHY="job ${file##*/} has $uuid too"
      [[ $text != *$uuid* ]] || return 0
    done
  done 2>/dev/null # a job that has ended meanwhile has none
  WHY=
  return 1
}

# ---- the journal -----------------------------------------------------------------------------------------------------

# Opens the journal and waits until no other prolog, epilog or nvidia-smi of theirs works; the wait counts anew whenever
# another takes a step. Fails with WHY: by 1 where there can be no journal, by 2 where another hangs.
open_journal() {
  local folder before='' after=''
  WHY="the journal $JOURNAL cannot be made, or is not root's alone"
  folder=$(own_folder "$JOURNAL" 700) && exec 9<"$folder" || return 1
  ! own_folder "$NOTES" 755 >/dev/null || STEP=$NOTES/.step
  WHY='another prolog or epilog hangs'
  read -r before 2>/dev/null <"$STEP"
  until flock -w "$LOCK_TIMEOUT_S" 9; do
    read -r after 2>/dev/null <"$STEP"
    [ "$before" != "$after" ] || return 2
    before=$after
  done
  WHY=
}

# Writes that GPUs may have a cap from now on, so that it outlives a power loss.
write_journal() { # WATTS, UUIDS
  local uuid
  for uuid in $2; do
    printf 'job %s\nrequested_w %s\nbaseline_w %s\n' "$JOB" "$1" "$BASELINE_W" >"$JOURNAL/new" 2>/dev/null &&
      sync "$JOURNAL/new" 2>/dev/null && mv -f -- "$JOURNAL/new" "$JOURNAL/$uuid" 2>/dev/null || return 1
  done
  sync "$JOURNAL"
}

# Prints the UUIDs in the journal, or those of the job's.
journalled() { # [JOB]
  local file key job
  for file in "$JOURNAL"/GPU-*; do
    [[ ${file##*/} =~ ^$UUID$ ]] || continue
    key='' job=''
    read -r key job <"$file"
    [ $# = 0 ] || [ "$key $job" = "job $1" ] && printf '%s ' "${file##*/}"
  done
  return 0
}

# ---- setting ---------------------------------------------------------------------------------------------------------

# Puts GPUs back to the baseline, reads that back and forgets their journal; fails if one did not get there. What cannot
# be forgotten is put back once more by the next that meets it.
restore() { # UUIDS
  local uuid rc=0 changed=no
  for uuid in $1; do
    [ "${LIMIT[$uuid]:-}" != "${BASELINE_W}00" ] || continue
    changed=yes
    smi -i "$uuid" -pl "$BASELINE_W" >/dev/null
  done
  if [ $changed = yes ]; then
    LIMIT=()
    read_gpus || say "$WHY."
  fi
  for uuid in $1; do
    if [ "${LIMIT[$uuid]:-}" = "${BASELINE_W}00" ]; then
      rm -f -- "$JOURNAL/$uuid" || say "$uuid: its file in $JOURNAL cannot be removed."
    else
      say "$uuid: not put back to the baseline of $BASELINE_W W; see nvidia-smi -q -d POWER."
      rc=1
    fi
  done
  return $rc
}

# Sets the cap on the job's GPUs and reads it back; fails with WHY, with some GPUs perhaps set.
set_cap() { # WATTS
  local watts=$1 uuid
  for uuid in $MINE; do
    WHY="$uuid takes no limit of $watts W"
    [[ ${LEAST[$uuid]}${MOST[$uuid]} =~ ^[0-9]+$ ]] || return 1
    ((10#${LEAST[$uuid]} <= watts * 100 && watts * 100 <= 10#${MOST[$uuid]})) || return 1
  done
  WHY="the journal in $JOURNAL could not be written"
  write_journal "$watts" "$MINE" || return 1
  for uuid in $MINE; do
    WHY="nvidia-smi did not set $uuid"
    smi -i "$uuid" -pl "$watts" >/dev/null || return 1
  done
  LIMIT=() ENFORCED=()
  read_gpus || return 1
  for uuid in $MINE; do
    WHY="$uuid does not have the limit that was set"
    [ "${LIMIT[$uuid]:-}" = "${watts}00" ] || return 1
    WHY="$uuid has the limit that was set, but another one is in force"
    [ "${ENFORCED[$uuid]:-}" = "${watts}00" ] || return 1
  done
  WHY=
}

# Writes what became of the job's request in a line that the job can read and only root can have written.
note() { # STATE, WATTS OR -, WHY
  local uuids=${MINE// /,}
  [ "$1" != not_applied ] || say "job $JOB: not applied: $3."
  own_folder "$NOTES" 755 >/dev/null && printf '%s %s %s %s\n' "$1" "$2" "${uuids:--}" "$3" >"$NOTES/.$JOB" && mv -f -- "$NOTES/.$JOB" "$NOTES/$JOB"
}

# ---- the actions -----------------------------------------------------------------------------------------------------

# Ends an action that cannot reach the GPUs, for WHY: fails if the journal says that one may have a cap.
give_up() {
  local capped
  capped=$(journalled)
  REFUSED=$WHY
  [ -n "$capped" ] || return 0
  say "$WHY: a cap may stay on $capped"
  return 1
}

# Puts the job's GPUs to the baseline: those of its numbers, unless another program holds the control, and those that the
# journal has for it. Fills MINE; REFUSED says why no cap may be set. Fails if a GPU did not get there.
baseline() {
  local uuid targets
  MINE='' REFUSED=''
  read_config || { give_up; return; }
  find_daemons
  REFUSED=$CONTROLLED
  [ -z "$CONTROLLED" ] || [ -n "$(journalled)" ] || return 0
  open_journal
  case $? in
    1) REFUSED=${REFUSED:-$WHY} ;;
    2) give_up; return ;;
  esac
  read_gpus || { give_up; return; }
  read_mine || REFUSED=${REFUSED:-$WHY}
  targets=$(journalled "$JOB")
  for uuid in $MINE; do
    [[ $targets == *$uuid* ]] || { [ -n "$CONTROLLED" ] && [ ! -e "$JOURNAL/$uuid" ]; } || targets+="$uuid "
  done
  restore "$targets"
}

# Whether the job may have the cap that it asks for; WHY says why not.
granted() {
  WHY=${WHY:-$REFUSED}
  [ -z "$WHY" ] || return 1
  WHY='Slurm names no GPU of the job'
  [ -n "$MINE" ] || return 1
  WHY="the admin does not allow $ASKED_W W"
  [[ " $ALLOWED_W " == *" $ASKED_W "* ]] || return 1
  ! shared
}

prolog() {
  local asked=yes why rc=0
  read_job || { say "SLURM_JOB_ID is no job's number."; return 0; }
  rm -f -- "$NOTES/$JOB"
  MINE=''
  read_request || asked=no
  why=$WHY
  if ! read_numbers && [ -z "$(journalled "$JOB")" ]; then
    [ $asked = no ] || note not_applied "${ASKED_W:--}" "${why:-Slurm names no GPU of the job}"
    return 0
  fi
  baseline || return 1
  WHY=$why
  if [ $asked = no ]; then
    [ -z "$MINE" ] || note baseline - 'no cap was asked for'
  elif ! granted; then
    note not_applied "${ASKED_W:--}" "$WHY"
  elif set_cap "$ASKED_W"; then
    note applied "$ASKED_W" 'set and read back'
  else
    why=$WHY
    restore "$MINE" || rc=1
    note not_applied "$ASKED_W" "$why"
  fi
  return $rc
}

epilog() {
  read_job || { say "SLURM_JOB_ID is no job's number."; return 0; }
  if read_numbers || [ -n "$(journalled "$JOB")" ]; then
    baseline || return 1
  fi
  rm -f -- "$NOTES/$JOB" "$NOTES/.$JOB" || return 0
}

boot() {
  local uuid targets rc=0
  read_config || { say "$WHY."; return 1; }
  find_daemons
  open_journal
  case $? in
    1) say "$WHY."; rc=1 ;;
    2) say "$WHY."; return 1 ;;
  esac
  read_gpus || { say "$WHY."; return 1; }
  targets=$GPUS
  [ -z "$CONTROLLED" ] || targets=$(journalled)
  restore "$targets" || rc=1
  for uuid in $(journalled); do
    [[ $GPUS == *$uuid* ]] || { say "$uuid is gone."; rm -f -- "$JOURNAL/$uuid"; }
  done
  rm -f -- "$NOTES"/[0-9]*
  return $rc
}

check() {
  local number uuid bounds
  read_config || { echo "refused: $WHY"; return 1; }
  echo "baseline $BASELINE_W W; allowed: $ALLOWED_W; by $SMI"
  find_daemons
  [ -z "$CONTROLLED" ] || echo "no cap is set: $CONTROLLED"
  read_gpus || { echo "$WHY"; return 1; }
  map_numbers || echo "no cap is set: $WHY"
  for ((number = 0; number < 1000; number++)); do
    uuid=${UUID_OF[number]:-}
    [ -n "$uuid" ] || continue
    bounds="from ${LEAST[$uuid]%00} to ${MOST[$uuid]%00} W"
    echo "Slurm's GPU $number is $uuid; its limit is ${LIMIT[$uuid]%00} W, $bounds"
  done
  for uuid in $(journalled); do
    echo "$uuid may have a cap, of $(head -n 1 -- "$JOURNAL/$uuid")"
  done
}

case ${1:-} in
  prolog | epilog | boot | check) "$1" ;;
  *) say "${1:-nothing}: not one of prolog, epilog, boot, check."; exit 2 ;;
esac
