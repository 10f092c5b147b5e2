"""`harmowam rehearse`: a new user's way through docs/arm.md, with real commands on a virtual arm."""

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from calibration.store import Store
from common.python import module_command
from firmware_bridge.arms.so101 import FAMILY
from harmowam.cli import main
from harmowam.rehearse import STEPS
from runtime.robot import SHIPPED, load_robot
from sim.rehearsal import ZERO_STEP
from sim.rehearsal_cameras import bench
from tests.tiny import tiny_bundle

TABLE = (Path(__file__).parents[1] / "docs" / "arm.md").read_text()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("rehearsal") / "arm"


def rehearsed(out, *options):
    """What a rehearsal says; it must end well."""
    command = module_command("harmowam.cli", "rehearse", "--out", str(out), *map(str, options))
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(out, *options):
    """The one sentence of a rehearsal that ends with exit code 2."""
    done = CliRunner().invoke(main, ["rehearse", "--out", str(out), *map(str, options)])
    assert done.exit_code == 2, done.output
    return done.stderr


def test_the_steps_are_those_of_the_document():
    assert [title for title, _ in STEPS] == re.findall(r"^\| \d\. ([^|]+?) \|", TABLE, re.M)


def test_another_arms_robot_file_is_neither_used_nor_changed(tmp_path):
    file = tmp_path / "robot.toml"
    file.write_bytes((SHIPPED / "so101.toml").read_bytes())
    for options in ((), ("--step", 3)):
        assert "is not the virtual arm's: name another folder with --out" in refused(tmp_path, *options)
    assert file.read_bytes() == (SHIPPED / "so101.toml").read_bytes()


def test_a_step_that_fails_is_named_with_what_to_do(tmp_path):
    said = refused(tmp_path, "--step", 9, "--bundle", tmp_path / "none.bundle")
    assert said.startswith("error: step 9 (first run): there is no bundle")
    assert "./build.sh bundle" in said and said.endswith("; then repeat with `--step 9`.\n")


@pytest.mark.wall_clock
def test_a_hand_is_seen_and_another_programs_mode_is_set_right(out):
    said = rehearsed(out, "--step", 2)
    seen = [{float(a) for a in re.findall(rf"^ *{name} +\d +([-+.\d]+)", said, re.M)} for name in FAMILY.JOINTS]
    assert sum(max(angles) - min(angles) > 0.5 for angles in seen) >= 3  # the table shows every tenth reading
    assert "shoulder_lift      2      mode      1" in said
    assert said.rstrip().endswith("6 servos hold what they must, and stand where they can be held")


@pytest.mark.wall_clock
def test_the_zeros_of_the_virtual_arm_are_found_and_every_joint_turns_the_right_way(out):
    said = rehearsed(out, "--step", 3)
    assert said.count("(y/n): y") == 6
    robot = load_robot(str(out / "robot.toml"))
    assert robot.joints_measured and max(abs(robot.arm.zero_step - ZERO_STEP)) < 3


@pytest.mark.wall_clock
@pytest.mark.slow
def test_all_steps_lead_from_servos_as_delivered_to_a_moving_arm(tmp_path):
    out = tmp_path / "arm"
    said = rehearsed(out, "--bundle", tiny_bundle(tmp_path))
    assert said.count("$ harmowam bus set-id --port") == 6 and "STS3215: id 1 is now 6" in said
    assert re.findall(r"^step (\d) of docs/arm.md", said, re.M) == [str(k) for k, _ in enumerate(STEPS, 1)]
    assert "0 that will not work" in said and (out / "first" / "profile.html").is_file()
    found = Store(out / "calibration").get("front", kind="camera")["result"]
    assert max(abs(row[3] - at) for row, at in zip(found["T_base_from_cam"], bench("front", 0)[0].X[:3, 3])) < 0.01
