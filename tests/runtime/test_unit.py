"""The unit for systemd gives the policy what it needs of the machine, and nothing else."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "runtime" / "jetson" / "harmowam.service"


def settings() -> dict[str, list[str]]:
    """Key of [Service] -> its values, in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def systemd(*args: str) -> str:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze: sudo apt-get install systemd")
    done = subprocess.run(["systemd-analyze", *args], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_exposure_of_the_unit_is_low():
    said = systemd("security", "--offline=true", "--no-pager", str(UNIT))
    assert float(said.rpartition("service: ")[2].split()[0]) <= 2.0, said


def test_systemd_knows_every_setting():
    """Only the command is not there."""
    said = [line for line in systemd("verify", str(UNIT)).splitlines() if UNIT.name in line]
    assert all("is not executable" in line for line in said), said


def test_calls_that_a_run_makes_are_allowed():
    allowed = {line.strip() for line in _listed("@system-service")} - {line.strip() for line in _listed("@privileged")}
    needed = (
        "sched_setscheduler sched_setaffinity mlockall futex memfd_create ioctl kill prctl clock_nanosleep fallocate"
    )
    assert set(needed.split()) <= allowed


def _listed(group: str) -> list[str]:
    """The system calls of a group, those of groups within it included."""
    lines = [line.strip() for line in systemd("syscall-filter", "--no-pager", group).splitlines()[1:]]
    return [x for line in lines if not line.startswith("#") for x in (_listed(line) if line[:1] == "@" else [line])]


def test_what_the_arm_needs_stays_open():
    unit = settings()
    assert unit["RestrictRealtime"] == ["no"] and int(unit["LimitRTPRIO"][0]) >= 60
    assert unit["LimitMEMLOCK"] == ["infinity"]
    assert "MemoryDenyWriteExecute" not in unit and "PrivateDevices" not in unit and "ProcSubset" not in unit
    assert unit["SystemCallErrorNumber"] == ["EPERM"], "a call that is refused must not kill the motor process"
    assert unit["RestrictAddressFamilies"] == ["AF_UNIX"]
    devices = dict(value.split() for value in unit["DeviceAllow"])
    assert {"char-ttyUSB", "char-ttyACM", "char-video4linux", "char-nv*", "char-gpiochip", "char-input"} <= set(devices)
    assert unit["WorkingDirectory"] == unit["ReadWritePaths"]
