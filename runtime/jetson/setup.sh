#!/usr/bin/env bash
# What an Orin needs beside this project: packages, rights, serial adapters, power mode. Prints everything that it does.
#
#   runtime/jetson/setup.sh --dry-run    only print
#   sudo runtime/jetson/setup.sh USER    do it, for that user
set -euo pipefail

dry=
if [[ ${1:-} == --dry-run ]]; then
  dry=yes
  shift
fi
user=${1:-${SUDO_USER:-$(id -un)}}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf '\n# %s\n' "$*"; }
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  if [[ -z $dry ]]; then
    "$@"
  fi
}
write() { # FILE, text on stdin
  local text
  text=$(cat)
  printf '+ write %s:\n%s\n' "$1" "$text"
  if [[ -z $dry ]]; then
    printf '%s\n' "$text" >"$1.partial"
    mv "$1.partial" "$1"
  fi
}

if [[ -z $dry && $(id -u) != 0 ]]; then
  printf 'setup.sh: run it with sudo, or with --dry-run to see what it would do.\n' >&2
  exit 2
fi
if [[ -z $dry && ! -e /etc/nv_tegra_release ]]; then
  printf 'setup.sh: this is not a Jetson (no /etc/nv_tegra_release). Use --dry-run to see what it would do.\n' >&2
  exit 2
fi

# nvidia-jetpack brings NVIDIA's OpenCV; Ubuntu's python3-opencv would hide it, and is too old to find calibration boards.
say "Packages: TensorRT for Python, CUDA compiler, NVIDIA's OpenCV, camera tools"
run apt-get update
run apt-get install -y --no-install-recommends python3-venv python3-dev g++ python3-libnvinfer v4l-utils nvidia-jetpack

say "Rights: serial ports, cameras, real-time scheduling, locked memory"
run groupadd -f realtime
run usermod -aG dialout,video,realtime "$user"
write /etc/security/limits.d/90-harmowam.conf <<'LIMITS'
@realtime - rtprio 60
@realtime - memlock unlimited
LIMITS

# It takes CH340 and other adapters for Braille displays and unbinds their driver. Who reads one leaves these three lines out.
say "Serial adapters: keep brltty away from them"
run ln -sf /dev/null /etc/udev/rules.d/85-brltty.rules
run systemctl mask brltty.service brltty-udev.service
run systemctl stop brltty.service brltty-udev.service || true

say "Serial adapters: rights, and on FTDI chips a latency timer of 1 ms"
run install -m 0644 "$here/70-harmowam.rules" /etc/udev/rules.d/70-harmowam.rules
run udevadm control --reload
run udevadm trigger --subsystem-match=usb-serial --subsystem-match=tty --subsystem-match=usb --action=add

# Last, for it may not take: a mode with another number of multiprocessors wants a reboot, for which nvpmodel asks. It gets no answer here.
# The fastest mode has another number on every board (0 is 15 W on an Orin Nano with the "super" modes).
fastest=$(sed -nE 's/^< *POWER_MODEL ID=([0-9]+) NAME=MAXN.*/\1/p' /etc/nvpmodel.conf 2>/dev/null | head -n 1 || true)
fastest=${fastest:-0}
say "Full speed: power mode $fastest, clocks locked (needs the fan)"
run nvpmodel -m "$fastest" </dev/null || true
if [[ -n $dry ]] || grep -Eq "pmode:0*$fastest( |\$)" /var/lib/nvpmodel/status; then
  run jetson_clocks
  say "Done. Log in again, then: docs/jetson.md, step 3"
else
  say "Done, but for the power mode, which wants a reboot. Type 'sudo nvpmodel -m $fastest' and answer YES; after it 'sudo jetson_clocks'"
  say "Then: docs/jetson.md, step 3"
fi
