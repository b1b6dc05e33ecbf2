#!/bin/bash
# Runs a command where the cluster's processes live: under hold.sh their pids and mounts are not those outside.
#
#   slurm/testcluster/inside.sh ps aux
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/testcluster/settings.sh
. "$HERE/settings.sh"
exec "$@"
