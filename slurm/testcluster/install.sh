#!/bin/bash
# Installs what Debian's packages the tests of real Slurm, of the report and of a site's monitoring need and this
# machine lacks, if it may: as root, on a machine with apt. Otherwise it says what is missing and goes on; those tests
# then skip and say why. Daemons that it adds are left off: the tests start their own.
set -euo pipefail

PACKAGES=(slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins slurmdbd mariadb-server chromium shellcheck prometheus faketime)

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing=()
if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install.sh: no apt here. Tests that need Slurm or Chromium skip unless these are on the PATH." >&2
  exit 0
fi
for package in "${PACKAGES[@]}"; do
  installed "$package" || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  echo "install.sh: not installed: ${missing[*]}. Tests that need them skip; as root, 'apt-get install ${missing[*]}' adds them." >&2
  exit 0
fi
echo "install.sh: adding with apt-get: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive

# A package starts its daemon and has it start at each boot: a mask while it is unpacked keeps the first from happening.
daemons=()
for package in "${missing[@]}"; do
  case $package in
    slurmctld | slurmd | slurmdbd | munge | prometheus) daemons+=("$package.service") ;;
    mariadb-server) daemons+=(mariadb.service) ;;
  esac
done
leave_off() {
  systemctl unmask "${daemons[@]}" || true
  systemctl disable "${daemons[@]}" || true # of what could not be installed there is none
}
if [ ${#daemons[@]} != 0 ] && command -v systemctl >/dev/null; then
  systemctl mask "${daemons[@]}" >/dev/null 2>&1 || true
  trap 'leave_off >/dev/null 2>&1' EXIT
fi

for try in 1 2; do # package lists may be missing or old: fetch them and try once more
  if apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; then
    exit 0
  fi
  [ "$try" = 2 ] || apt-get update -qq || true
done
echo "install.sh: apt-get could not add ${missing[*]}. Tests that need them skip." >&2
