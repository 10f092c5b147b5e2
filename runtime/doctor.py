"""What on this machine stands in the way of deadlines, and the command that mends each. Looks only; changes nothing."""

from __future__ import annotations

import grp
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from calibration.camera import CalibrationError
from calibration.store import load_camera
from runtime.cameras.v4l2 import is_device
from runtime.cameras.v4l2 import node as device_path
from runtime.robot import Robot


@dataclass(frozen=True)
class Finding:
    """One check: `state` ok, warn (works, but not as well as it could) or bad (will not work); `mend` is what to
    type."""

    name: str
    state: str
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Machine:
    """Where to look; another `root` for tests."""

    root: Path = Path("/")

    def path(self, absolute: str) -> Path:
        return self.root / absolute.lstrip("/")

    def read(self, absolute: str) -> str:
        try:
            return self.path(absolute).read_text().strip("\0\n ")
        except OSError:
            return ""

    @property
    def jetson(self) -> bool:
        return self.path("/etc/nv_tegra_release").exists() or "tegra" in self.read("/proc/device-tree/compatible")


REBOOT = "where it asks to reboot, answer YES; then `sudo jetson_clocks`"
GPU_CLOCKS = ("17000000.gpu", "17000000.ga10b")  # devfreq's folder: from JetPack 6 on, and before
CH340 = "1a86:7523"
BRLTTY = "/udev/rules.d/85-brltty.rules"
LIMITS = "/etc/security/limits.d/90-harmowam.conf"


def _fifo() -> bool:
    """Whether this user may use SCHED_FIFO; tried in a child, so that this process stays as it is."""
    code = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def realtime(machine: Machine) -> Iterator[Finding]:
    """SCHED_FIFO, locked memory, its throttling, and whether the cores are enough."""
    limits = (
        f"run `echo '@realtime - rtprio 60\n@realtime - memlock unlimited' | sudo tee {LIMITS}`, `sudo groupadd -f "
        "realtime`, "
    )
    limits += "`sudo usermod -aG realtime $USER`, and log in again"
    if _fifo():
        yield Finding("real-time scheduling", "ok", "SCHED_FIFO is allowed")
    else:
        yield Finding(
            "real-time scheduling",
            "warn",
            "SCHED_FIFO is not allowed: ordinary work delays the loops by milliseconds",
            limits,
        )
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0 or soft > 1 << 29:
        yield Finding("locked memory", "ok", "mlockall is allowed")
    else:
        yield Finding(
            "locked memory",
            "warn",
            f"only {soft // 1024} kB may be locked: a page that comes from the disk costs a deadline",
            limits,
        )
    share = machine.read("/proc/sys/kernel/sched_rt_runtime_us")
    if share and share != "-1" and int(share) < 950_000:
        yield Finding(
            "real-time share",
            "warn",
            f"real-time threads get {int(share) / 10_000:.0f} % of a core",
            "`sudo sysctl kernel.sched_rt_runtime_us=950000`",
        )
    allowed = len(os.sched_getaffinity(0))
    if allowed < 2:
        yield Finding(
            "cores",
            "warn",
            "one core for the loops, the motors and the cameras",
            "give it two: `taskset -c 0-1 harmowam ...`",
        )
    else:
        yield Finding("cores", "ok", f"{allowed} cores")
    load = float((machine.read("/proc/loadavg") or "0").split()[0])
    if load > allowed:
        yield Finding("load", "warn", f"load {load:.1f} on {allowed} cores", "stop what is not needed: `top -o %CPU`")
    swappiness = machine.read("/proc/sys/vm/swappiness")
    swaps = machine.read("/proc/swaps").splitlines()[1:]
    if swaps and swappiness and int(swappiness) > 20:
        yield Finding("swap", "warn", f"swap is on, swappiness {swappiness}", "`sudo sysctl vm.swappiness=1`")


def clocks(machine: Machine) -> Iterator[Finding]:
    """CPU governor, clock source and, on a Jetson, power mode and locked clocks."""
    governors = {
        p.read_text().strip()
        for p in machine.path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    }
    slow = governors - {"performance"}
    if slow and not machine.jetson:
        mend = (
            "`for g in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance | sudo tee $g; done`"
        )
        yield Finding(
            "CPU clock",
            "warn",
            f"governor {', '.join(sorted(slow))}: the first milliseconds of each tick run slowly",
            mend,
        )
    elif governors and not slow:
        yield Finding("CPU clock", "ok", "governor performance")
    source = machine.read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source in ("hpet", "acpi_pm"):
        yield Finding(
            "clock source",
            "warn",
            f"{source}: a time stamp costs a microsecond",
            "boot with `clocksource=tsc` if the processor's is stable",
        )
    elif source:
        yield Finding("clock source", "ok", source)
    if not machine.jetson:
        return
    # The fastest mode has another number on every board: on an Orin Nano with the "super" modes 0 is 15 W and 2 is
    # MAXN_SUPER.
    modes = {
        int(k): v
        for k, v in re.findall(r"^<\s*POWER_MODEL ID=(\d+) NAME=(\S+)", machine.read("/etc/nvpmodel.conf"), re.M)
    }
    fastest = next((k for k, v in modes.items() if v.startswith("MAXN")), 0)
    found = re.search(r"pmode:(\d+)", machine.read("/var/lib/nvpmodel/status"))
    if found is None:
        yield Finding("power mode", "warn", "unknown", "`sudo nvpmodel -q`")
    else:
        mode = int(found[1])
        name = f"{mode} ({modes[mode]})" if mode in modes else str(mode)
        if mode == fastest:
            yield Finding("power mode", "ok", name)
        else:
            mend = f"`sudo nvpmodel -m {fastest}` (needs cooling; {REBOOT}; docs/jetson.md)"
            yield Finding("power mode", "warn", f"{name}: not the fastest", mend)
    folders = [f"/sys/class/devfreq/{name}" for name in GPU_CLOCKS]
    low, high = ("".join(machine.read(f"{folder}/{bound}_freq") for folder in folders) for bound in ("min", "max"))
    if not (low and high):
        yield Finding("GPU clock", "warn", "unknown", "`sudo jetson_clocks`, then `sudo jetson_clocks --show`")
    elif low != high:
        yield Finding(
            "GPU clock",
            "warn",
            f"floats between {int(low) // 10**6} and {int(high) // 10**6} MHz",
            "`sudo jetson_clocks`",
        )
    else:
        yield Finding("GPU clock", "ok", f"locked at {int(high) // 10**6} MHz")
    if "PREEMPT_RT" not in platform.version():
        yield Finding(
            "kernel",
            "warn",
            "not a PREEMPT_RT kernel: single delays of milliseconds remain",
            "see docs/jetson.md, Real-time kernel",
        )


def _may(node: Path, mode: int, fallback: str) -> str:
    """Nothing, or the command that lets this user open `node`."""
    if os.access(node, mode):
        return ""
    try:
        group = grp.getgrgid(node.stat().st_gid).gr_name
    except KeyError:
        group = fallback
    return f"`sudo usermod -aG {group} $USER` and log in again"


def _undriven_ch340(machine: Machine) -> bool:
    """Whether a CH340 is plugged in that no kernel driver takes."""
    devices = machine.path("/sys/bus/usb/devices").glob("*")
    there = CH340 in (f"{_text(d / 'idVendor')}:{_text(d / 'idProduct')}" for d in devices)
    return there and not machine.path("/sys/bus/usb/drivers/ch341").exists()


def _text(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""


def serial_port(machine: Machine, port: str) -> Iterator[Finding]:
    """Existence, rights, latency timer and USB autosuspend of a servo adapter, and who else takes it."""
    if port == "sim":
        return
    node = machine.path(port)
    mask = machine.path("/etc" + BRLTTY)
    if any(machine.path(f + BRLTTY).exists() for f in ("/usr/lib", "/lib")) and os.path.realpath(mask) != "/dev/null":
        yield Finding(
            "brltty",
            "warn",
            "takes CH340 and other adapters for Braille displays, and their port away",
            f"`sudo ln -sf /dev/null /etc{BRLTTY} && sudo udevadm control --reload`, and plug the adapter in again",
        )
    if not node.exists() and _undriven_ch340(machine):
        yield Finding(
            "servo port",
            "bad",
            f"{port} does not exist: a CH340 ({CH340}) is plugged in, for which this kernel has no driver",
            "use an adapter with a CH343 (CDC) or FTDI chip, or build the kernel module ch341",
        )
        return
    if not node.exists():
        yield Finding(
            "servo port",
            "bad",
            f"{port} does not exist",
            "plug the adapter in, look with `ls -l /dev/serial/by-id`, and correct [bus] port",
        )
        return
    name = os.path.realpath(node).rsplit("/", 1)[-1]
    if mend := _may(node, os.R_OK | os.W_OK, "dialout"):
        mend += ", or install the udev rule of docs/jetson.md"
        yield Finding("servo port", "bad", f"{port} may not be opened", mend)
    else:
        yield Finding("servo port", "ok", f"{port} may be opened")
    timer = machine.read(f"/sys/bus/usb-serial/devices/{name}/latency_timer")
    if timer and int(timer) > 1:
        rule = (
            f"`echo 1 | sudo tee /sys/bus/usb-serial/devices/{name}/latency_timer` (for good: the udev rule of "
            "docs/jetson.md)"
        )
        yield Finding("USB latency timer", "bad", f"{timer} ms: each answer of a servo waits for it", rule)
    elif timer:
        yield Finding("USB latency timer", "ok", "1 ms")
    device = machine.path(f"/sys/class/tty/{name}/device")
    for parent in (device / "../power/control", device / "../../power/control"):
        if parent.exists() and parent.read_text().strip() == "auto":
            yield Finding(
                "USB autosuspend",
                "warn",
                "the adapter may be put to sleep",
                f"`echo on | sudo tee {os.path.normpath(os.path.realpath(parent))}`",
            )
            break
    if shutil.which("systemctl") and machine.path("/usr/lib/systemd/system/ModemManager.service").exists():
        done = subprocess.run(["systemctl", "is-active", "ModemManager"], capture_output=True, text=True, check=False)
        if done.stdout.strip() == "active":
            yield Finding(
                "ModemManager",
                "warn",
                "probes serial adapters when they are plugged in",
                "`sudo systemctl disable --now ModemManager`",
            )


def arm(machine: Machine, robot: Robot) -> Iterator[Finding]:
    """Whether the joints' zeros are this arm's own, and whether the emergency stop that the robot file names can be
    read."""
    if robot.simulated:
        return
    if robot.joints_measured:
        yield Finding("joints", "ok", "calibrated")
    else:
        mend = f'`harmowam calibrate joints --robot {robot.path}`, then [arm] calibration = "calibration/joints"'
        yield Finding("joints", "warn", "not calibrated: the zeros are the robot file's, not this arm's", mend)
    if not robot.arm.estop:
        mend = "see docs/arm.md, Emergency stop; a switch in the arm's supply comes first"
        yield Finding("emergency stop", "warn", "the robot file names none", mend)
        return
    kind, _, where = robot.arm.estop.partition(":")
    device = where.rpartition(":")[0] if kind == "gpio" else where
    node = machine.path(device)
    if not device or not node.exists():
        yield Finding("emergency stop", "bad", f"{robot.arm.estop} does not exist", "correct [arm] estop")
    elif mend := _may(node, os.R_OK | (os.W_OK if kind == "gpio" else 0), kind if kind == "gpio" else "input"):
        yield Finding("emergency stop", "bad", f"{device} may not be opened", mend)
    else:
        yield Finding("emergency stop", "ok", robot.arm.estop)


def _ask_opencv(expression: str) -> subprocess.CompletedProcess[str]:
    """What cv2 says, in a child: one that was built for another numpy may take its process along."""
    command = [sys.executable, "-c", f"import cv2; print({expression})"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def opencv() -> Iterator[Finding]:
    """An OpenCV that imports, and finds calibration boards."""
    done = _ask_opencv("cv2.__version__, hasattr(cv2.aruco, 'CharucoDetector')")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
        mend = "`pip install --force-reinstall opencv-python-headless`; for the system's own see docs/jetson.md, OpenCV"
        if "numpy" in done.stderr.lower():
            mend = "`pip install 'numpy==1.26.4'`: the system's OpenCV was built for numpy 1 (docs/jetson.md, OpenCV)"
        yield Finding("OpenCV", "bad", f"does not import ({why})", mend)
        return
    version, boards = done.stdout.split()
    if boards == "True":
        yield Finding("OpenCV", "ok", version)
    else:
        mend = "`sudo apt-get remove python3-opencv` where that is Ubuntu's, and see docs/jetson.md, OpenCV"
        yield Finding("OpenCV", "bad", f"{version} has no aruco.CharucoDetector, which 4.7 brought", mend)


def cameras(machine: Machine, robot: Robot) -> Iterator[Finding]:
    """Devices that exist and may be opened, exposure that may stretch a frame, GStreamer in OpenCV."""
    for name, camera in robot.cameras.items():
        source = device_path(camera.source)
        if is_device(source):
            node = machine.path(source)
            if not node.exists():
                yield Finding(
                    f"camera {name}",
                    "bad",
                    f"{source} does not exist",
                    "plug it in, look with `v4l2-ctl --list-devices`, and correct 'source'",
                )
                continue
            if not os.access(node, os.R_OK | os.W_OK):
                yield Finding(
                    f"camera {name}",
                    "bad",
                    f"{source} may not be opened",
                    "`sudo usermod -aG video $USER` and log in again",
                )
                continue
            yield Finding(f"camera {name}", "ok", f"{source}, {camera.width}x{camera.height} at {camera.fps:g} fps")
            if shutil.which("v4l2-ctl"):
                command = ["v4l2-ctl", "-d", source, "--get-ctrl", "exposure_dynamic_framerate"]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.stdout.strip().endswith(": 1"):
                    yield Finding(
                        f"camera {name}",
                        "warn",
                        "lowers its rate in dim light",
                        f"`v4l2-ctl -d {source} -c exposure_dynamic_framerate=0`",
                    )
        elif source.startswith("gst:"):
            if "GStreamer:                   YES" not in _ask_opencv("cv2.getBuildInformation()").stdout:
                yield Finding(
                    f"camera {name}",
                    "bad",
                    "this OpenCV has no GStreamer",
                    "use the system's: see docs/jetson.md, OpenCV",
                )
            else:
                yield Finding(f"camera {name}", "ok", "GStreamer pipeline")
        if camera.calibration != "sim":
            try:  # a plain file, or a camera's folder in a calibration store
                load_camera(robot.path.parent / camera.calibration)
            except CalibrationError as e:
                yield Finding(f"calibration {name}", "bad", str(e), "`harmowam calibrate intrinsics --help`")
        if camera.fps < robot.fast_hz:
            yield Finding(
                f"camera {name}",
                "warn",
                f"gives {camera.fps:g} frames a second, the fast loop wants {robot.fast_hz:g}",
                "a faster mode: `v4l2-ctl --list-formats-ext`, or lower fast_hz",
            )


def engines(machine: Machine) -> Iterator[Finding]:
    """An inference engine that really runs where it is meant to, and the tools that pre-processing is built with."""
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
        gpu = [p for p in providers if p.startswith(("CUDA", "Tensorrt"))]
        yield Finding(
            "inference",
            "ok",
            f"ONNX Runtime {onnxruntime.__version__} "
            f"({', '.join(p.removesuffix('ExecutionProvider') for p in providers)})",
        )
        if machine.jetson and not gpu:
            yield Finding(
                "inference", "warn", "ONNX Runtime runs on the CPU only", "`./build.sh jetson` builds TensorRT engines"
            )
    except ImportError:
        yield Finding(
            "inference",
            "bad",
            "no inference engine is installed",
            "`pip install 'harmowam-edge[cpu]'`, or `./build.sh jetson`",
        )
    if machine.jetson:
        for module, without, found, mend in (
            (
                "tensorrt",
                "bad",
                "does not import",
                "`sudo apt-get install python3-libnvinfer`, and a .venv made with --system-site-packages",
            ),
            (
                "pycuda",
                "warn",
                "does not import: the kernel's check through pycuda cannot run (no loop needs it)",
                "`./build.sh jetson`",
            ),
        ):
            done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False)
            yield Finding(module, "ok", "imports") if done.returncode == 0 else Finding(module, without, found, mend)
    if shutil.which("g++") or shutil.which("clang++") or os.environ.get("CXX"):
        yield Finding("C++ compiler", "ok", "found")
    else:
        yield Finding("C++ compiler", "bad", "none: pre-processing cannot be compiled", "`sudo apt-get install g++`")
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if machine.jetson and not nvcc:
        yield Finding(
            "nvcc",
            "warn",
            "not found: no pre-processing on the GPU (the loops do it on the CPU)",
            "`sudo apt-get install nvidia-jetpack`",
        )


def storage(machine: Machine) -> Iterator[Finding]:
    """Room for slots and for logs."""
    shm = machine.path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield Finding(
            "/dev/shm", "warn", "not writable: slots would lie on a disk", "`sudo mount -t tmpfs tmpfs /dev/shm`"
        )
    elif shutil.disk_usage(shm).free < 32_000_000:
        yield Finding(
            "/dev/shm", "warn", "less than 32 MB free", "remove what a killed run left: `rm -r /dev/shm/harmowam-*`"
        )
    free = shutil.disk_usage(".").free
    if free < 2_000_000_000:
        yield Finding(
            "disk",
            "warn",
            f"{free / 1e9:.1f} GB free here: a log takes 1.4 GB a minute",
            "free some, or log elsewhere with --log",
        )
    else:
        yield Finding("disk", "ok", f"{free / 1e9:.0f} GB free")


def examine(robot: Robot, machine: Machine | None = None) -> list[Finding]:
    """Every check, in the order in which one would mend them."""
    m = machine or Machine()
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: engines(m),
        lambda: serial_port(m, robot.port),
        lambda: arm(m, robot),
        opencv,
        lambda: cameras(m, robot),
        lambda: realtime(m),
        lambda: clocks(m),
        lambda: storage(m),
    ]
    return [finding for check in checks for finding in check()]
