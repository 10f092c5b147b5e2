#!/usr/bin/env bash
# Rewrite constraints/py3*.txt: one fully pinned set for each Python, for every extra, from pyproject.toml (and for the peers, from peers.in).
# Versions already in the files are kept as long as they fit; `constraints/update.sh --upgrade` moves them.
# Only metadata is read, nothing big is downloaded. Needs uv (pip install uv) and Python 3.10, 3.11 and 3.12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for version in 3.10 3.11 3.12; do
  uv pip compile --quiet pyproject.toml --all-extras \
    --python "$version" --no-header --annotation-style line \
    --output-file "constraints/py${version/./}.txt" "$@"
  uv pip compile --quiet constraints/peers.in \
    --python "$version" --no-header --no-annotate \
    --output-file "constraints/peers-py${version/./}.txt" "$@"
done

# The same pins must hold on Jetson and other 64-bit Arm Linux (for which there is no onnxruntime-gpu wheel below 1.30).
for version in 3.10 3.11 3.12; do
  uv pip compile --quiet pyproject.toml --extra cpu --extra jetson --extra sim --extra export --extra dev \
    --python "$version" --python-platform aarch64-manylinux_2_35 --constraint "constraints/py${version/./}.txt" >/dev/null
done
