#!/bin/sh
# Fetches the bashes that Debian's suites beside this machine's have to a folder as bash-VERSION: the prolog and the
# epilog are tried with each (tests/test_cap_scripts.py looks into .bashes). Nothing is installed.
#   tests/other_bashes.sh .bashes
# A suite that is gone from the mirror is passed over. Debian keeps none older than bash 5.1 there.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
command -v apt-get >/dev/null || { echo "$0: no apt here, no other bashes." >&2; exit 0; }
mirror=$(apt-cache policy bash | sed -n 's|^ *[0-9]* \(https\{0,1\}://[^ ]*debian\) .*|\1|p' | head -n 1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
: >installed # nothing, so that the suite's own version is the candidate

# one that runs here, and looks up users, which a static program does by this machine's libraries
works() { [ "$("$1" -pc 'cd ~root && echo ~root' 2>/dev/null)" = /root ]; }

for pair in bullseye:bash forky:bash-static; do # 5.1; 5.3, whose libraries are newer
  suite=${pair%:*} package=${pair#*:}
  mkdir -p lists/partial cache/archives/partial
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >list
  set -- -qq -o Dir::Etc::sourcelist="$work/list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists" \
    -o Dir::Cache="$work/cache" -o Dir::State::status="$work/installed" -o APT::Sandbox::User=root -o Acquire::Languages=none
  if apt-get "$@" update >log 2>&1 && apt-get "$@" download "$package" >>log 2>&1; then
    dpkg-deb -x "$package"_*.deb unpacked
    program=$(find unpacked -name "$package" -path '*bin/*' -type f)
    # shellcheck disable=SC2016 # it is that bash's to expand
    version=$("$program" -c 'echo "${BASH_VERSINFO[0]}.${BASH_VERSINFO[1]}"' || echo none)
    if works "$program"; then mv "$program" "$folder/bash-$version"; else echo "$0: $suite's does not run here." >&2; fi
  else
    echo "$0: no bash of $suite: $(tail -n 1 log)" >&2
  fi
  rm -rf lists cache unpacked ./*.deb
done
ls "$folder"
