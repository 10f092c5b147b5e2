"""Joint calibration of every family: a person moves the limp arm, whose servos stand elsewhere, or turn otherwise, than
its file says.

The arm is MuJoCo's; its servos answer on a pseudo-terminal. What is measured is right if the arm, read with it, stands
where it is held. One file, a little longer than others: every test needs its hand and its arms.
"""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from calibration import joints
from calibration.camera import CalibrationError
from calibration.store import Store
from firmware_bridge.arms import FAMILIES
from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmError
from firmware_bridge.motion.measurement import TWIN
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import MemoryPort, PtyBus
from firmware_bridge.virtual.plant import KinematicPlant
from harmowam import calibration_joints
from harmowam.calibration_signs import check_signs
from harmowam.cli import main
from runtime.robot import SHIPPED, load_robot
from sim.plant import servos
from sim.world import World

ABOUT = 0.005  # rad: servo steps, rounded three times


@pytest.fixture(scope="module", params=["koch", "viperx", "so101"])
def world(request):
    w = World(0, family=FAMILIES[request.param])
    yield w
    w.close()


class Held:
    """A limp arm of `world` in a person's hands. `truth`: how its servos really count; `robot_file` names its bus.
    `play` rad: how far the second servo of a joint is off the first."""

    def __init__(self, world, folder, registers=(), **build):
        name = world.family.NAME
        text = (SHIPPED / f"{name}.toml").read_text().replace('port = "/dev/ttyACM0"', f'port = "{folder / "arm"}"')
        for joint, lines in build.items():
            text = text.replace(f'name = "{joint}"\n', f'name = "{joint}"\n{lines}\n')
        if name == "so101":
            text = text.replace("zero_step = 2048", "").replace("direction = 1 ", "# ")
        self.robot_file = folder / "robot.toml"
        self.robot_file.write_text(text)
        self.robot = load_robot(str(self.robot_file))
        config, n = self.robot.arm, len(self.robot.arm.ids)
        self.truth = dataclasses.replace(
            config,
            zero_step=tuple(1700 + 97 * k for k in range(n)),
            shadows=tuple((i, k, 1 if s else -1, 2300 - 211 * s) for s, (i, k, _, _) in enumerate(config.shadows)),
        )
        self.world, self.bus = world, servos(world, self.truth)
        self.added = dict.fromkeys(self.bus.ids, 0)  # reported less actual steps
        for servo, register, value in registers:
            self.bus.put(servo, register, value)
            s = self.bus.servos[servo]
            self.added[servo] = s.shown(0.0)
        self.held(np.zeros(n))

    def held(self, q):
        """Put every joint at `q` (rad), and let go."""
        self.world.data.qpos[: len(q)] = q
        return self

    def zero_pose(self):
        q = np.zeros(len(self.truth.ids))
        q[-1] = self.world.family.SHUT
        return self.held(q)

    def sweep(self):
        """Poses on the way of each joint from stop to stop."""
        low, high = np.array(self.truth.lower), np.array(self.truth.upper)
        for k in range(len(low)):
            for angle in (*np.linspace(0, low[k], 8), *np.linspace(low[k], high[k], 15), *np.linspace(high[k], 0, 8)):
                q = np.zeros(len(low))
                q[-1] = self.world.family.SHUT
                q[k] = angle
                yield q


def calibrate(arm, folder, monkeypatch, poses=None, **options):
    """`harmowam calibrate joints` without the sign check, with a person who goes through `poses`."""
    hand = iter(arm.sweep() if poses is None else poses)
    told: list[str] = []

    def moved(wait_s):
        q = next(hand, None)
        if q is not None:
            arm.held(q)
        return q is None

    monkeypatch.setattr(calibration_joints, "_enter_pressed", moved)
    with served(arm, folder):
        done = calibration_joints.guided(
            arm.robot,
            Store(folder / "calibration"),
            arm.robot.port,
            folder / "r.html",
            lambda text: arm.zero_pose(),
            told.append,
            sign_check=False,
        )
    return done, told


@contextlib.contextmanager
def served(arm, folder):
    server = PtyBus(arm.bus, baud=0, latency_s=0, link=folder / "arm")
    try:
        yield
    finally:
        server.close()


def calibrated(arm):
    """The arm as it is driven with the calibration that its robot file names."""
    text = arm.robot_file.read_text()
    if "\ncalibration = " not in text.partition("[[arm.joint]]")[0]:
        arm.robot_file.write_text(text.replace("[arm]\n", '[arm]\ncalibration = "calibration/joints"\n'))
    config = load_robot(str(arm.robot_file)).arm
    return Arm(Bus(MemoryPort(arm.bus), protocol=config.protocol), config)


def assert_it_stands_where_it_is_held(arm):
    driven = calibrated(arm)
    driven.check()
    rng = np.random.default_rng(0)
    for _ in range(5):
        q = rng.uniform(driven.config.lower, driven.config.upper)
        arm.held(q)
        measured = driven.read()
        assert np.abs(measured.q - q).max() < ABOUT and not (measured.bits & TWIN).any()
        driven.write_goals(q)
        present = {i: s.get("present_position") for i, s in arm.bus.servos.items()}
        assert all(abs(arm.bus.get(i, "goal_position") - present[i]) < 5 for i in present)


def test_an_arm_that_was_moved_by_hand_is_read_as_it_stands(world, tmp_path, monkeypatch):
    arm = Held(world, tmp_path)
    before = {i: s.stored for i, s in arm.bus.servos.items()}
    done, _ = calibrate(arm, tmp_path, monkeypatch)
    assert_it_stands_where_it_is_held(arm)
    driven = calibrated(arm).config
    stopless = world.family.STOPLESS
    for k, name in enumerate(driven.joints):
        assert driven.upper[k] <= arm.truth.upper[k] and driven.lower[k] >= arm.truth.lower[k]
        if name not in stopless:
            assert driven.upper[k] > arm.truth.upper[k] - joints.MARGIN - ABOUT
            assert driven.lower[k] < arm.truth.lower[k] + joints.MARGIN + ABOUT
    assert {i: s.stored for i, s in arm.bus.servos.items()} == before  # nothing is written into EEPROM
    with served(arm, tmp_path):
        assert (
            calibration_joints.compare_eeprom(arm.robot, Store(tmp_path / "calibration"), arm.robot.port)["differs"]
            == []
        )


@pytest.mark.parametrize("world", ["koch"], indirect=True)
@pytest.mark.parametrize(
    ("mode", "offset", "added"),
    [(3, 900, 900), (3, -800, -800), (3, 3000, 0), (4, 3000, 3000), (4, -3000, -3000), (5, -5000, -5000)],
)
def test_a_dynamixels_offset_counts_as_its_mode_has_it(world, tmp_path, monkeypatch, mode, offset, added):
    """Servo 3, an XL330; 5000 steps are more than a turn. Mode and offset are part of the calibration."""
    arm = Held(world, tmp_path, [(3, "mode", mode), (3, "homing_offset", offset)])
    assert arm.added[3] == added
    done, _ = calibrate(arm, tmp_path, monkeypatch)
    row = done["joints"][2]
    assert (row["homing_offset"], row["mode"]) == (offset, mode) and row["zero_step"] == arm.truth.zero_step[2] + added
    arm.held(np.zeros(6))
    assert np.abs(calibrated(arm).read().q).max() < ABOUT
    arm.bus.put(3, "mode", 4 if mode == 3 else 3)
    with pytest.raises(ArmError, match=r"servo 3 .elbow_flex. holds mode .* calibrate the joints again"):
        calibrated(arm).check(to_move=False)
    with served(arm, tmp_path):
        said = calibration_joints.compare_eeprom(arm.robot, Store(tmp_path / "calibration"), arm.robot.port)["said"]
    assert f"elbow_flex (servo 3): operating mode {4 if mode == 3 else 3} in EEPROM, {mode} when calibrated" in said


@pytest.mark.parametrize("world", ["viperx"], indirect=True)
def test_which_way_a_second_servo_turns_is_measured(world, tmp_path, monkeypatch):
    """The robot file has both of them turn the other way than the first servo; the elbow's does not."""
    arm = Held(world, tmp_path)
    assert [s[2] for s in arm.robot.arm.shadows] == [-1, -1] and [s[2] for s in arm.truth.shadows] == [-1, 1]
    calibrate(arm, tmp_path, monkeypatch)
    found = calibrated(arm).config.shadows
    assert [(i, k, d) for i, k, d, _ in found] == [(3, 1, -1), (5, 2, 1)]
    assert all(abs(a[3] - b[3]) <= 2 for a, b in zip(found, arm.truth.shadows, strict=True))
    assert (
        ", its second servo" not in (page := (tmp_path / "r.html").read_text())
        and "its second servo 5 turns with it" in page
    )
    arm.bus.put(5, "homing_offset", 20)
    with pytest.raises(ArmError, match=r"servo 5 .elbow. holds homing_offset 20"):
        calibrated(arm).check()


@pytest.mark.parametrize("world", ["viperx"], indirect=True)
def test_two_servos_of_a_joint_that_do_not_turn_together_are_refused(world, tmp_path, monkeypatch):
    arm = Held(world, tmp_path)
    arm.bus.servos[3].sensor = lambda steps, now: steps + 0.05 * (steps - 2300)  # a horn that slips
    with pytest.raises(
        CalibrationError, match=r"the two servos of shoulder \(2 and 3\) do not turn together, 0.0\d rad apart"
    ):
        calibrate(arm, tmp_path, monkeypatch)
    assert Store(tmp_path / "calibration").known_hash("joints") is None
    arm.bus.servos[3].sensor = None
    arm.bus.put(3, "torque_enable", 1)
    with pytest.raises(CalibrationError, match="energised"):  # the second servo alone would hold the joint
        calibrate(arm, tmp_path, monkeypatch)


@pytest.mark.parametrize("world", ["koch"], indirect=True)
def test_a_geared_joint_is_measured_in_its_own_angles(world, tmp_path, monkeypatch):
    arm = Held(world, tmp_path, elbow_flex="gear = 1.3", gripper="gear = 2.0\nzero_step = 1000")
    arm.truth = dataclasses.replace(arm.truth, zero_step=(*arm.truth.zero_step[:5], 500))
    arm.bus = servos(world, arm.truth)
    done, _ = calibrate(arm, tmp_path, monkeypatch)
    assert done["joints"][2]["gear"] == 1.3
    assert_it_stands_where_it_is_held(arm)
    other = dataclasses.replace(calibrated(arm).config, gear=())
    made = joints.JointCalibration.from_json({k: done[k] for k in ("angles", "joints")})
    with pytest.raises(CalibrationError, match=r"or for other models or gears: run `harmowam calibrate joints`"):
        made.apply(other)
    with pytest.raises(CalibrationError, match=r"or for other models or gears"):
        made.apply(dataclasses.replace(calibrated(arm).config, models=("XL330-M288",) * 6))


@pytest.mark.parametrize("world", ["koch"], indirect=True)
@pytest.mark.parametrize("mode", [3, 4])
def test_a_joint_whose_servo_passes_its_encoders_end_is_refused(world, tmp_path, monkeypatch, mode):
    """After a power cut it would read a turn off, also where it counts turns until then."""
    arm = Held(world, tmp_path, [(3, "mode", mode)], elbow_flex="gear = 2.5")
    if mode == 3:
        arm.bus.servos[3].sensor = lambda steps, now: steps % 4096
    with pytest.raises(
        CalibrationError,
        match=r"elbow_flex passes the end of its encoder .* one turn of its servo, which turns 2.5 times",
    ):
        calibrate(arm, tmp_path, monkeypatch)


@pytest.mark.parametrize("world", ["koch"], indirect=True)
def test_a_servo_that_was_turned_round_since_its_power_came_on_is_refused(world, tmp_path, monkeypatch):
    arm = Held(world, tmp_path, [(3, "mode", 4)])
    arm.bus.servos[3].sensor = lambda steps, now: steps + 4096
    with pytest.raises(
        CalibrationError, match=r"elbow_flex has been turned beyond .*switch the arm's power off and on"
    ):
        calibrate(arm, tmp_path, monkeypatch)


@pytest.mark.parametrize("world", ["viperx"], indirect=True)
def test_joints_without_stops_need_not_be_moved_and_are_kept_within_their_servos_turn(world, tmp_path, monkeypatch):
    arm = Held(world, tmp_path)
    arm.truth = dataclasses.replace(arm.truth, zero_step=(1000, *arm.truth.zero_step[1:]))
    arm.bus = servos(world, arm.truth)
    poses = [q for q in arm.sweep() if not (q[[3, 5]]).any() and abs(q[0]) < 1]
    done, told = calibrate(arm, tmp_path, monkeypatch, poses)
    assert told == [
        "move every joint from stop to stop (but for waist, forearm_roll and wrist_rotate), then press Enter"
    ]
    assert "waist is kept within -86 to 179 degrees, for its servo's turn ends there" in done["said"]
    assert calibrated(arm).config.lower[0] == pytest.approx(-1000 * 2 * np.pi / 4096 + joints.MARGIN, abs=ABOUT)
    assert_it_stands_where_it_is_held(arm)


@pytest.mark.wall_clock
@pytest.mark.parametrize("name", ["koch", "viperx"])
def test_the_sign_check_moves_each_joint_of_any_family_by_itself(name, tmp_path):
    """Through guard and motor process; second servos go along. The arm is let go where it was held."""
    robot_file = tmp_path / "robot.toml"
    text = (SHIPPED / f"{name}.toml").read_text().replace("/dev/ttyACM0", str(tmp_path / "arm"))
    robot_file.write_text(text.replace("[arm]", "[arm]\nrelease_s = 0.4"))
    robot = load_robot(str(robot_file))
    first, models = robot.arm, [MODELS[m] for m in robot.arm.model_names]
    ids = (*first.ids, *(s[0] for s in first.shadows))
    plant = KinematicPlant(np.full(len(ids), 2048.0))
    bus = VirtualBus(ids, plant, [*models, *(models[s[1]] for s in first.shadows)])
    server = PtyBus(bus, link=tmp_path / "arm")
    asked: list[str] = []

    def answer(text):
        if "Hold the arm" in text:
            return ""
        turned = (plant.position - 2048) * 2 * np.pi / 4096
        expected = np.zeros(len(ids))
        expected[len(asked)] = np.radians(5)
        for k, (_, joint, direction, _) in enumerate(first.shadows):
            expected[len(first.ids) + k] = direction * expected[joint]
        assert np.abs(turned - expected).max() < 0.01
        asked.append(text)
        return "y"

    told: list[str] = []
    check_signs(robot, first, robot.port, answer, told.append)
    assert len(asked) == len(first.joints) and told == ["hold the arm: it lets go"]
    assert [bus.get(i, "torque_enable") for i in ids] == [0] * len(ids)
    server.close()


KOCH = FAMILIES["koch"].JOINTS


def lerobots(**change):
    """What `lerobot-calibrate` writes for a Koch: all but two joints swept, the middle of each at step 2047."""
    rows = {
        n: {"id": k + 1, "drive_mode": 0, "homing_offset": 300 * k - 1400, "range_min": 1000, "range_max": 3100}
        for k, n in enumerate(KOCH)
    }
    for name in ("shoulder_pan", "wrist_roll"):
        rows[name].update(range_min=0, range_max=4095)
    for name, row in change.items():
        rows[name] = {**rows[name], **row} if name in rows else row
    return rows


def imported(folder, **change):
    robot = folder / "robot.toml"
    robot.write_text((SHIPPED / "koch.toml").read_text())
    (folder / "lerobot.json").write_text(json.dumps(lerobots(**change)))
    options = [
        "--robot",
        str(robot),
        "--import-lerobot",
        str(folder / "lerobot.json"),
        "--report",
        str(folder / "r.html"),
    ]
    return CliRunner().invoke(main, ["calibrate", "joints", *options])


@pytest.mark.parametrize("world", ["koch"], indirect=True)
def test_lerobots_calibration_of_a_koch_is_taken_with_the_modes_that_lerobot_drives_it_in(world, tmp_path):
    """Its servos hold what LeRobot wrote: the offsets, and its modes."""
    done = imported(tmp_path)
    assert done.exit_code == 0, done.output
    arm = Held(world, tmp_path)
    rows = lerobots()
    for name, row in rows.items():
        arm.bus.put(row["id"], "mode", 5 if name == "gripper" else 4)
        arm.bus.put(row["id"], "homing_offset", row["homing_offset"])
    driven = calibrated(arm)
    for name in KOCH[:-1]:  # each in the middle of its range by LeRobot: what the family calls the middle
        row, k = rows[name], KOCH.index(name)
        actual = (row["range_min"] + row["range_max"]) // 2 - row["homing_offset"]
        q = np.zeros(6)
        q[k] = (actual - arm.truth.zero_step[k]) * 2 * np.pi / 4096
        arm.held(q)
        assert driven.read().q[k] == pytest.approx(FAMILIES["koch"].middle[k], abs=ABOUT)
    arm.bus.put(2, "mode", 3)  # where an offset of more than a quarter turn does not count
    with pytest.raises(ArmError, match=r"servo 2 .shoulder_lift. holds mode 3, the robot file says 4"):
        driven.check(to_move=False)
    options = ["--robot", str(tmp_path / "robot.toml"), "--export-lerobot", str(tmp_path / "again.json")]
    assert CliRunner().invoke(main, ["calibrate", "joints", *options]).exit_code == 0
    assert json.loads((tmp_path / "again.json").read_text()) == rows


def test_a_koch_whose_servos_count_backwards_by_themselves_is_not_imported(tmp_path):
    done = imported(tmp_path, elbow_flex={"drive_mode": 1})
    assert done.exit_code == 2 and "the servo of elbow_flex counts backwards by itself (drive_mode 1)" in done.stderr


def test_what_is_no_joint_in_lerobots_file_is_ignored_and_said(tmp_path):
    done = imported(tmp_path)
    assert done.exit_code == 0 and "ignored" not in done.stdout
    done = imported(tmp_path, written_by={"tool": "mine"}, version=2)
    assert done.exit_code == 0, done.output
    assert "ignored, for it is no joint: written_by, version\njoints of " in done.stdout


def test_lerobot_has_no_form_for_two_servos_on_a_joint(tmp_path):
    robot = tmp_path / "robot.toml"
    robot.write_text((SHIPPED / "viperx.toml").read_text())
    (tmp_path / "lerobot.json").write_text(json.dumps(lerobots()))
    options = ["--robot", str(robot), "--import-lerobot", str(tmp_path / "lerobot.json")]
    done = CliRunner().invoke(main, ["calibrate", "joints", *options])
    assert done.exit_code == 2 and "LeRobot calibrates no arm that has two servos on a joint" in done.stderr


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        ({"mode": None}, "'mode' must be 3, 4 or 5 for a XL430-W250"),
        ({"mode": 1}, r"must be 3 or 4 or 5, not 1"),
        ({"model": "STS3215"}, "'mode' must be left out for a STS3215"),
        ({"model": "XL999"}, "servo model 'XL999' is not known"),
        ({"zero_step": 4300}, "'zero_step' must be a whole number from 0 to 4295, not 4300"),
        ({"gear": 0.0}, "must be a number from 0.1 to 20"),
    ],
)
def test_a_record_of_what_no_servo_is_is_refused(spoil, what):
    row = {
        "name": "elbow",
        "id": 1,
        "zero_step": 2048,
        "direction": 1,
        "range_min": 800,
        "range_max": 3290,
        "homing_offset": 200,
    }
    row |= {"model": "XL430-W250", "mode": 4}
    joints.JointCalibration.from_json({"angles": "maker", "joints": [row]})
    with pytest.raises(CalibrationError, match=what):
        joints.JointCalibration.from_json({"angles": "maker", "joints": [row | spoil]})
