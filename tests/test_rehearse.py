"""`harmowam rehearse`: a new user's way through docs/arm.md, with real commands on a virtual arm."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from calibration.store import Store, new_record
from common.python import module_command
from firmware_bridge.arms.so101 import FAMILY
from harmowam.cli import main
from harmowam.options import UserError
from harmowam.rehearse import STEPS, Rehearsal, first_run, missing
from runtime.robot import SHIPPED, load_robot
from sim.rehearsal import ZERO_STEP, VirtualArm
from sim.rehearsal_cameras import bench
from tests.dataset import camera
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


def kind(command):
    """The verbs of a command and its options, but for those that shorten a rehearsal or place its pages."""
    words = shlex.split(command.replace("$R", "--robot FILE"))
    first = next((k for k, word in enumerate(words) if word.startswith("--")), len(words))
    options = {word for word in words if word.startswith("--")}
    return tuple(Path(w).name for w in words[1:first]), frozenset(
        options - {"--seconds", "--views", "--page", "--report"}
    )


def test_the_steps_are_those_of_the_document():
    assert [title for title, _ in STEPS] == re.findall(r"^\| \d\. ([^|]+?) \|", TABLE, re.M)


def test_another_arms_robot_file_is_neither_used_nor_changed(tmp_path):
    file = tmp_path / "robot.toml"
    file.write_bytes((SHIPPED / "so101.toml").read_bytes())
    for options in ((), ("--step", 3)):
        assert "is not the virtual arm's: name another folder with --out" in refused(tmp_path, *options)
    assert file.read_bytes() == (SHIPPED / "so101.toml").read_bytes()


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        (("--step", 9), "step 9 (first run) needs step 3 (joints)"),
        (("--from", 7), "step 7 (where the cameras are) needs step 3 (joints)"),
    ],
)
def test_a_step_whose_first_ones_are_missing_does_not_begin(tmp_path, options, needs):
    out = tmp_path / "an arm"
    said = refused(out, *options)
    go_on = f"begin with `harmowam rehearse --out '{out}' --from 3`."
    assert said == f"error: {needs}, which is not done in {out}: {go_on}\n" and not out.exists()


def test_lenses_and_places_are_looked_for_after_the_joints(tmp_path):
    r = Rehearsal(tmp_path, tmp_path / "none.bundle")
    named = 'calibration = "calibration/joints"'
    r.robot.write_text((SHIPPED / "so101.toml").read_text().replace(f"# {named} ", f"{named}\n#"))
    assert missing(r, 7) == 6 and missing(r, 5) is None
    store = Store(tmp_path / "calibration")
    for name, mount in (("front", "base"), ("wrist", "arm")):
        lens = {**camera(name, 640, 480).to_json(), "T_base_from_cam": None}
        kept = new_record("camera", name, lens, identity={"mount": mount}, parents=[], uncertainty={}, evidence={})
        store.set_current(name, store.put(kept), "test")
    assert missing(r, 7) is None and missing(r, 9) == 7


def test_one_step_and_the_rest_are_not_asked_for_together(tmp_path):
    assert "--from means nothing with --step" in refused(tmp_path, "--step", 3, "--from", 3)


def test_a_run_without_a_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"there is no bundle .*: make it with `./build.sh bundle`"):
        first_run(Rehearsal(tmp_path, tmp_path / "none.bundle"), VirtualArm())


def test_a_step_that_fails_is_named_with_the_command_that_goes_on(tmp_path, monkeypatch):
    def fails(*_):
        raise UserError("the arm stopped.")

    monkeypatch.setattr("harmowam.rehearse.STEPS", (("emergency stop", fails),))
    virtual = Rehearsal(tmp_path, Path())
    virtual.robot.write_text(f'port = "{virtual.port}"')
    said = refused(tmp_path, "--step", 1)
    assert said.startswith("error: step 1 (emergency stop): the arm stopped; ")
    assert said.endswith(f"then go on with `harmowam rehearse --out {tmp_path} --from 1`.\n")


@pytest.mark.wall_clock
def test_a_hand_is_seen_and_another_programs_mode_is_set_right(out):
    said = rehearsed(out, "--step", 2)
    seen = [{float(a) for a in re.findall(rf"^ *{name} +\d +([-+.\d]+)", said, re.M)} for name in FAMILY.JOINTS]
    assert all(max(angles) - min(angles) > 0.2 for angles in seen)
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
    assert re.search(r"^  ok  camera wrist: .*640x480", said, re.M) and "ok  calibration front: lens and place" in said
    robot = f"--robot {out / 'robot.toml'}"
    assert f"next: harmowam calibrate hand-eye {robot} --camera front" in said
    asked = {
        kind(command) for row in re.findall(r"^\| .*", TABLE, re.M) for command in re.findall(r"`(harm[^`]*)`", row)
    }
    assert len(asked) == 10 and asked <= {kind(command) for command in re.findall(r"^\$ (harm.*)", said, re.M)}
    assert "0 that will not work" in said and (out / "first" / "profile.html").is_file()
    found = Store(out / "calibration").get("front", kind="camera")["result"]
    assert max(abs(row[3] - at) for row, at in zip(found["T_base_from_cam"], bench("front", 0)[0].X[:3, 3])) < 0.01
