#!/usr/bin/env bash
# Rewrite constraints/py3*.txt: one fully pinned set for each Python, for every extra, from pyproject.toml (and for the peers, from peers.in);
# and constraints/robot-cp3*.txt: what a robot installs, the same versions with the hash of every file that may stand for them.
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
  uv pip compile --quiet pyproject.toml --extra cpu --extra jetson --extra sim --extra export --extra tensorrt-check --extra dev \
    --python "$version" --python-platform aarch64-manylinux_2_35 --constraint "constraints/py${version/./}.txt" >/dev/null
done

# What ./build.sh jetson installs (JetPack 6 has Python 3.10, 7.2 has 3.12). A release's hashes are those of all its files, so one list fits both
# processors; the second pass sees that it is complete for the other one. --constraint keeps the versions above.
for version in 3.10 3.12; do
  for platform in x86_64 aarch64; do
    uv pip compile --quiet pyproject.toml constraints/robot.in --extra cpu --extra jetson --generate-hashes --no-emit-index-url --no-emit-find-links \
      --python "$version" --python-platform "$platform-manylinux_2_35" --constraint "constraints/py${version/./}.txt" \
      --no-header --no-annotate --output-file "constraints/robot-cp${version/./}.$platform"
  done
  cmp "constraints/robot-cp${version/./}".{x86_64,aarch64}
  mv "constraints/robot-cp${version/./}.x86_64" "constraints/robot-cp${version/./}.txt"
  rm "constraints/robot-cp${version/./}.aarch64"
done
