"""The robot's devices: servo adapter, joints and emergency stop, cameras."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from calibration.camera import CalibrationError
from calibration.store import load_camera
from runtime.cameras.v4l2 import is_device
from runtime.cameras.v4l2 import node as device_path
from runtime.doctor.finding import Finding, Machine, access_mend
from runtime.doctor.software import ask_opencv
from runtime.robot import CameraConfig, Robot

CH340 = "1a86:7523"
BRLTTY = "/udev/rules.d/85-brltty.rules"


def _undriven_ch340(machine: Machine) -> bool:
    """Whether a CH340 is plugged in that no kernel driver takes."""
    devices = machine.path("/sys/bus/usb/devices").glob("*")
    there = CH340 in (f"{_text(d / 'idVendor')}:{_text(d / 'idProduct')}" for d in devices)
    return there and not machine.path("/sys/bus/usb/drivers/ch341").exists()


def _text(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""


def serial_port(machine: Machine, port: str) -> Iterator[Finding]:
    """Existence, rights, latency timer and USB autosuspend of a servo adapter, and other programs that take it."""
    if port == "sim":
        return
    yield from _brltty(machine)
    node = machine.path(port)
    if not node.exists():
        yield _missing_port(machine, port)
        return
    if mend := access_mend(node, os.R_OK | os.W_OK, "dialout"):
        mend += ", or install the udev rule of docs/jetson.md"
        yield Finding("servo port", "bad", f"{port} may not be opened", mend)
    else:
        yield Finding("servo port", "ok", f"{port} may be opened")
    name = os.path.realpath(node).rsplit("/", 1)[-1]
    yield from _latency_timer(machine, name)
    yield from _autosuspend(machine, name)
    yield from _modem_manager(machine)


def _brltty(machine: Machine) -> Iterator[Finding]:
    """The driver of Braille displays, which claims the USB ids of common adapters unless its udev rule is masked."""
    mask = machine.path("/etc" + BRLTTY)
    if any(machine.path(f + BRLTTY).exists() for f in ("/usr/lib", "/lib")) and os.path.realpath(mask) != "/dev/null":
        yield Finding(
            "brltty",
            "warn",
            "takes CH340 and other adapters for Braille displays, and their port away",
            f"`sudo ln -sf /dev/null /etc{BRLTTY} && sudo udevadm control --reload`, and plug the adapter in again",
        )


def _missing_port(machine: Machine, port: str) -> Finding:
    if _undriven_ch340(machine):
        return Finding(
            "servo port",
            "bad",
            f"{port} does not exist: a CH340 ({CH340}) is plugged in, for which this kernel has no driver",
            "use an adapter with a CH343 (CDC) or FTDI chip, or build the kernel module ch341",
        )
    return Finding(
        "servo port",
        "bad",
        f"{port} does not exist",
        "plug the adapter in, look with `ls -l /dev/serial/by-id`, and correct [bus] port",
    )


def _latency_timer(machine: Machine, name: str) -> Iterator[Finding]:
    """`name`: of the port under /dev."""
    timer = machine.read(f"/sys/bus/usb-serial/devices/{name}/latency_timer")
    if timer and int(timer) > 1:
        rule = (
            f"`echo 1 | sudo tee /sys/bus/usb-serial/devices/{name}/latency_timer` (for good: the udev rule of "
            "docs/jetson.md)"
        )
        yield Finding("USB latency timer", "bad", f"{timer} ms: each answer of a servo waits for it", rule)
    elif timer:
        yield Finding("USB latency timer", "ok", "1 ms")


def _autosuspend(machine: Machine, name: str) -> Iterator[Finding]:
    """`name`: of the port under /dev. The setting belongs to the USB device, one or two folders above the port's."""
    device = machine.path(f"/sys/class/tty/{name}/device")
    for parent in (device / "../power/control", device / "../../power/control"):
        if parent.exists() and parent.read_text().strip() == "auto":
            yield Finding(
                "USB autosuspend",
                "warn",
                "the adapter may be put to sleep",
                f"`echo on | sudo tee {os.path.normpath(os.path.realpath(parent))}`",
            )
            return


def _modem_manager(machine: Machine) -> Iterator[Finding]:
    if shutil.which("systemctl") and machine.path("/usr/lib/systemd/system/ModemManager.service").exists():
        done = subprocess.run(["systemctl", "is-active", "ModemManager"], capture_output=True, text=True, check=False)
        if done.stdout.strip() == "active":
            yield Finding(
                "ModemManager",
                "warn",
                "probes serial adapters when they are plugged in",
                "`sudo systemctl disable --now ModemManager`",
            )


def joints_and_stop(machine: Machine, robot: Robot) -> Iterator[Finding]:
    """Whether the joints' zeros are this arm's own, and whether the emergency stop that the robot file names can be
    read."""
    if robot.simulated:
        return
    if robot.joints_measured:
        yield Finding("joints", "ok", "calibrated")
    else:
        mend = '`harmowam calibrate joints`, then [arm] calibration = "calibration/joints"'
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
    elif mend := access_mend(node, os.R_OK | (os.W_OK if kind == "gpio" else 0), kind if kind == "gpio" else "input"):
        yield Finding("emergency stop", "bad", f"{device} may not be opened", mend)
    else:
        yield Finding("emergency stop", "ok", robot.arm.estop)


def cameras(machine: Machine, robot: Robot) -> Iterator[Finding]:
    """Devices that exist and may be opened, exposure that may stretch a frame, GStreamer in OpenCV, calibrations."""
    for name, camera in robot.cameras.items():
        source = device_path(camera.source)
        if is_device(source):
            found = list(_camera_device(machine, name, source, camera))
            yield from found
            if any(f.state == "bad" for f in found):
                continue
        elif source.startswith("gst:"):
            yield _gstreamer(name)
        elif source.startswith("slot:"):
            yield _slot(machine, name, camera)
        if camera.calibration != "sim":
            yield _calibration(robot, name, camera)
        if camera.fps < robot.fast_hz:
            yield Finding(
                f"camera {name}",
                "warn",
                f"gives {camera.fps:g} frames a second, the fast loop wants {robot.fast_hz:g}",
                "a faster mode: `v4l2-ctl --list-formats-ext`, or lower fast_hz",
            )


def _slot(machine: Machine, name: str, camera: CameraConfig) -> Finding:
    """A camera whose pictures another program writes."""
    path = camera.source.removeprefix("slot:")
    if machine.path(path).exists():
        return Finding(f"camera {name}", "ok", f"{path}, {camera.width}x{camera.height} at {camera.fps:g} fps")
    return Finding(f"camera {name}", "warn", f"nobody writes {path} yet", "start the program that writes it")


def _calibration(robot: Robot, name: str, camera: CameraConfig) -> Finding:
    try:  # a plain file, or a camera's folder in a calibration store
        stored = load_camera(robot.path.parent / camera.calibration)
    except CalibrationError as e:
        return Finding(f"calibration {name}", "bad", str(e), "`harmowam calibrate intrinsics --help`")
    placed = stored.T_base_from_cam is not None or stored.T_tool_from_cam is not None
    return Finding(f"calibration {name}", "ok", f"lens {'and place' if placed else 'only; its place is not known'}")


def _camera_device(machine: Machine, name: str, source: str, camera: CameraConfig) -> Iterator[Finding]:
    node = machine.path(source)
    if not node.exists():
        yield Finding(
            f"camera {name}",
            "bad",
            f"{source} does not exist",
            "plug it in, look with `v4l2-ctl --list-devices`, and correct 'source'",
        )
        return
    if not os.access(node, os.R_OK | os.W_OK):
        mend = "`sudo usermod -aG video $USER` and log in again"
        yield Finding(f"camera {name}", "bad", f"{source} may not be opened", mend)
        return
    yield Finding(f"camera {name}", "ok", f"{source}, {camera.width}x{camera.height} at {camera.fps:g} fps")
    if shutil.which("v4l2-ctl"):
        command = ["v4l2-ctl", "-d", source, "--get-ctrl", "exposure_dynamic_framerate"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.stdout.strip().endswith(": 1"):
            mend = f"`v4l2-ctl -d {source} -c exposure_dynamic_framerate=0`"
            yield Finding(f"camera {name}", "warn", "lowers its rate in dim light", mend)


def _gstreamer(name: str) -> Finding:
    if "GStreamer:                   YES" in ask_opencv("cv2.getBuildInformation()").stdout:
        return Finding(f"camera {name}", "ok", "GStreamer pipeline")
    mend = "use the system's: see docs/jetson.md, OpenCV"
    return Finding(f"camera {name}", "bad", "this OpenCV has no GStreamer", mend)
