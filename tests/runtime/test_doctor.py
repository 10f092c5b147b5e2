"""The doctor names what is wrong and the command that mends it, on machines made of files."""

import dataclasses
import os

import pytest

from calibration.store import Store, new_record
from runtime.doctor import timing
from runtime.doctor.devices import cameras, joints_and_stop, serial_port
from runtime.doctor.examine import examine
from runtime.doctor.finding import Finding, Machine
from runtime.doctor.software import opencv, storage
from runtime.doctor.timing import clocks, realtime
from runtime.robot import load_robot
from tests.dataset import camera


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def put(machine, path, text=""):
    file = machine.path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def named(findings, name):
    return next(f for f in findings if f.name == name)


def test_a_usb_adapter_with_a_slow_latency_timer_is_bad(machine):
    put(machine, "/dev/ttyUSB0")
    put(machine, "/sys/bus/usb-serial/devices/ttyUSB0/latency_timer", "16\n")
    found = named(serial_port(machine, "/dev/ttyUSB0"), "USB latency timer")
    assert found.state == "bad" and "16 ms" in found.found and "echo 1 | sudo tee" in found.mend
    put(machine, "/sys/bus/usb-serial/devices/ttyUSB0/latency_timer", "1\n")
    assert named(serial_port(machine, "/dev/ttyUSB0"), "USB latency timer").state == "ok"


def test_a_missing_port_ends_the_look_at_the_port(machine):
    assert [f.state for f in serial_port(machine, "/dev/ttyACM9")] == ["bad"]
    assert list(serial_port(machine, "sim")) == []


def test_a_relative_port_is_looked_for_in_the_working_directory(machine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ports").mkdir()
    os.symlink("/dev/null", "ports/arm")
    root = dataclasses.replace(machine, root=tmp_path / "root")
    assert named(serial_port(root, "ports/arm"), "servo port").found == "ports/arm may be opened"
    assert named(serial_port(root, "ports/other"), "servo port").found == "ports/other does not exist"


def test_a_ch340_without_a_driver_is_named(machine):
    put(machine, "/sys/bus/usb/devices/1-2/idVendor", "1a86\n")
    put(machine, "/sys/bus/usb/devices/1-2/idProduct", "7523\n")
    put(machine, "/sys/bus/usb/devices/1-2:1.0/bInterfaceClass", "ff\n")
    found = named(serial_port(machine, "/dev/ttyUSB0"), "servo port")
    assert found.state == "bad" and "CH340" in found.found and "no driver" in found.found and "ch341" in found.mend
    machine.path("/sys/bus/usb/drivers/ch341").mkdir(parents=True)
    assert named(serial_port(machine, "/dev/ttyUSB0"), "servo port").found == "/dev/ttyUSB0 does not exist"


def test_brltty_is_named_until_its_rule_is_masked(machine):
    put(machine, "/usr/lib/udev/rules.d/85-brltty.rules", "# Braille\n")
    found = named(serial_port(machine, "/dev/ttyUSB0"), "brltty")
    assert found.state == "warn" and "ln -sf /dev/null /etc/udev/rules.d/85-brltty.rules" in found.mend
    mask = machine.path("/etc/udev/rules.d/85-brltty.rules")
    mask.parent.mkdir(parents=True)
    mask.symlink_to("/dev/null")
    assert "brltty" not in {f.name for f in serial_port(machine, "/dev/ttyUSB0")}


def opencv_that(tmp_path, monkeypatch, source):
    (tmp_path / "cv2.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return named(opencv(), "OpenCV")


def test_an_opencv_that_does_not_import_or_is_too_old(tmp_path, monkeypatch):
    foreign = 'raise ImportError("numpy.core.multiarray failed to import")'
    found = opencv_that(tmp_path, monkeypatch, foreign)
    assert found.state == "bad" and "numpy.core.multiarray failed" in found.found and "numpy==1.26.4" in found.mend
    assert "numpy" not in opencv_that(tmp_path, monkeypatch, 'raise ImportError("libGL.so.1")').mend
    old = "__version__ = '4.5.4'\nclass aruco: pass\n"
    found = opencv_that(tmp_path, monkeypatch, old)
    assert found.state == "bad" and "4.5.4" in found.found and "python3-opencv" in found.mend
    assert opencv_that(tmp_path, monkeypatch, old + "aruco.CharucoDetector = 1\n").state == "ok"


@pytest.mark.parametrize("folder", ["17000000.gpu", "17000000.ga10b"])
def test_an_orin_that_does_not_run_at_full_speed(machine, folder):
    put(machine, "/etc/nv_tegra_release", "# R36 (release)")
    put(machine, "/var/lib/nvpmodel/status", "pmode:0002")
    unknown = named(clocks(machine), "GPU clock")
    assert (unknown.state, unknown.found) == ("warn", "unknown") and unknown.mend
    put(machine, f"/sys/class/devfreq/{folder}/min_freq", "306000000")
    put(machine, f"/sys/class/devfreq/{folder}/max_freq", "1300500000")
    found = list(clocks(machine))
    assert named(found, "power mode").state == "warn" and "nvpmodel -m 0" in named(found, "power mode").mend
    assert "reboot" in named(found, "power mode").mend  # nvpmodel asks, and nothing has changed until then
    # An Orin Nano's own list: its fastest mode is 2, and 0 is slow.
    put(machine, "/etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\nCPU 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n")
    assert named(clocks(machine), "power mode") == Finding("power mode", "ok", "2 (MAXN_SUPER)")
    put(machine, "/var/lib/nvpmodel/status", "pmode:0000 fmode:fanNull")
    slow = named(clocks(machine), "power mode")
    assert slow.state == "warn" and slow.found.startswith("0 (15W)") and "nvpmodel -m 2" in slow.mend
    machine.path("/etc/nvpmodel.conf").unlink()
    assert (
        named(found, "GPU clock").mend == "`sudo jetson_clocks`" and "306 and 1300" in named(found, "GPU clock").found
    )
    put(machine, "/var/lib/nvpmodel/status", "pmode:0000")
    put(machine, f"/sys/class/devfreq/{folder}/min_freq", "1300500000")
    assert {named(clocks(machine), n).state for n in ("power mode", "GPU clock")} == {"ok"}


def test_a_governor_that_saves_power_and_a_slow_clock_source(machine):
    put(machine, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave")
    put(machine, "/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet")
    found = list(clocks(machine))
    assert {f.name: f.state for f in found} == {"CPU clock": "warn", "clock source": "warn"}
    assert "performance" in named(found, "CPU clock").mend


def test_without_rights_to_real_time_the_limits_file_is_given(machine, monkeypatch):
    monkeypatch.setattr(timing, "_fifo", lambda: False)
    found = named(realtime(machine), "real-time scheduling")
    assert found.state == "warn" and "/etc/security/limits.d/90-harmowam.conf" in found.mend


def test_an_arm_with_foreign_zeros_and_a_stop_that_cannot_be_read(machine):
    robot = load_robot("so101")
    found = list(joints_and_stop(machine, robot))
    assert {f.name: f.state for f in found} == {"joints": "warn", "emergency stop": "warn"}
    assert "harmowam calibrate joints" in named(found, "joints").mend

    def stop(where):
        robot_with = dataclasses.replace(robot, arm=dataclasses.replace(robot.arm, estop=where), joints_measured=True)
        found = list(joints_and_stop(machine, robot_with))
        assert named(found, "joints").state == "ok"
        return named(found, "emergency stop").state

    assert stop("key:/dev/input/by-id/button") == stop("gpio:/dev/gpiochip0:17") == stop("gpio:") == "bad"
    put(machine, "/dev/input/by-id/button")
    put(machine, "/dev/gpiochip0")
    assert stop("key:/dev/input/by-id/button") == stop("gpio:/dev/gpiochip0:17") == "ok"
    assert not list(joints_and_stop(machine, load_robot("sim_so101")))


def test_a_calibration_may_be_a_folder_of_the_store(machine, tmp_path):
    put(machine, "/dev/video0")
    store, result = Store(tmp_path / "calibration"), camera("front", 640, 480).to_json()
    record = new_record("camera", "front", result, identity={"mount": "base"}, parents=[], uncertainty={}, evidence={})
    store.set_current("front", store.put(record), "test")
    shipped = load_robot("so101")
    front = dataclasses.replace(shipped.cameras["front"], calibration="calibration/front")
    robot = dataclasses.replace(shipped, path=tmp_path / "robot.toml", cameras={"front": front})
    assert named(cameras(machine, robot), "calibration front") == Finding("calibration front", "ok", "lens and place")
    unposed = new_record(
        "camera",
        "front",
        {**result, "T_base_from_cam": None},
        identity={"mount": "base"},
        parents=[],
        uncertainty={},
        evidence={},
    )
    store.set_current("front", store.put(unposed), "test")
    assert "hand-eye" in named(cameras(machine, robot), "calibration front").found


def test_a_camera_that_a_program_writes_is_listed(machine, tmp_path):
    shipped = load_robot("so101")
    slot = dataclasses.replace(shipped.cameras["front"], source="slot:/arm/front.slot")
    robot = dataclasses.replace(shipped, cameras={"front": slot})
    silent = named(cameras(machine, robot), "camera front")
    assert (silent.state, silent.found) == ("warn", "nobody writes /arm/front.slot yet")
    put(machine, "/arm/front.slot")
    assert named(cameras(machine, robot), "camera front").found == "/arm/front.slot, 640x480 at 30 fps"


def test_cameras_that_are_missing_or_slower_than_the_loop(machine):
    robot = load_robot("so101")
    found = list(cameras(machine, robot))
    assert {f.state for f in found if f.name.startswith("camera")} == {"bad"} and "v4l2-ctl --list-devices" in found[
        0
    ].mend
    for source, said in (
        ("/dev/v4l/by-id/usb-cam-video-index0", "/dev/v4l/by-id/usb-cam-video-index0"),
        ("3", "/dev/video3"),
    ):
        named_so = dataclasses.replace(robot.cameras["front"], source=source)
        found = list(cameras(machine, dataclasses.replace(robot, cameras={"front": named_so})))
        assert named(found, "camera front").found == f"{said} does not exist"
    put(machine, "/dev/video0")
    slow = dataclasses.replace(robot, fast_hz=50.0)
    found = list(cameras(machine, slow))
    assert any("gives 30 frames a second, the fast loop wants 50" in f.found for f in found)
    assert (
        named(found, "calibration front").state == "bad" and "cannot be read" in named(found, "calibration front").found
    )
    pipeline = dataclasses.replace(robot.cameras["front"], source="gst:nvarguscamerasrc ! appsink")
    csi = dataclasses.replace(robot, cameras={"front": pipeline})
    assert "docs/jetson.md" in named(cameras(machine, csi), "camera front").mend


def test_everything_is_examined_on_this_machine_and_nothing_raises():
    findings = examine(load_robot("sim_so101"))
    assert {"inference", "C++ compiler", "cores"} <= {f.name for f in findings}
    assert all(f.mend for f in findings if f.state != "ok")
    assert list(storage(Machine()))
