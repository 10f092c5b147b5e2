#!/usr/bin/env bash
# What the robot has to carry: the base install and one inference engine, in a fresh environment. Goal: <= 400 MB.
#
#   benchmarks/install_size.sh [EXTRA] [PYTHON]     EXTRA is cpu (default) or gpu, PYTHON a Python 3.10, 3.11 or 3.12
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=${1:-cpu}
python=${2:-python3}
goal_mb=400
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m venv "$folder"
version=$("$folder/bin/python" -c 'import sys; print("%d%d" % sys.version_info[:2])')
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mega() { du -sm --apparent-size "$@" | cut -f1; }

mkdir "$folder/source"
git archive HEAD | tar -x -C "$folder/source" # as committed; leaves no build folder behind
own=$(mega "$site") # pip itself
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "constraints/py$version.txt" "$folder/source[$extra]"
with_pip=$(mega "$site")

du -sm --apparent-size "$site"/* | sort -rn | awk '$1 > 1 { sub(".*/", "", $2); printf "%5d MB  %s\n", $1, $2 }'
printf '%5d MB  base + [%s] on Python %s, without pip (%d MB on disk with pip and byte code); goal: <= %d MB\n' \
  "$((with_pip - own))" "$extra" "${version/3/3.}" "$(du -sm "$site" | cut -f1)" "$goal_mb"
((with_pip - own <= goal_mb))
