"""Robot files: what is wrong is named by file and key, with the next step."""

import pytest

from runtime.compute import Compute
from runtime.robot import SHIPPED, RobotError, load_robot


def test_shipped_robots_load():
    for path in SHIPPED.glob("*.toml"):
        robot = load_robot(path.stem)
        assert robot.arm.joints == robot.family.JOINTS and set(robot.cameras) == {"front", "wrist"}
        assert all(lo <= r <= hi for lo, r, hi in zip(robot.arm.lower, robot.arm.rest, robot.arm.upper, strict=True))


CASES = {  # what is replaced in the simulated arm's file, by what, and what is said
    "unknown key": ("[bus]", "[bus]\nparity = 1", "'bus.parity' is no key that is known here .baud, port."),
    "missing key": ('name = "simulated SO-101"', "", "'name' is missing .text in one line."),
    "wrong kind": ("fast_hz = 50", 'fast_hz = "fast"', "'rates.fast_hz' must be a number from 5 to 240, not 'fast'"),
    "wrong length": ("rest = [0.0, ", "rest = [", "'arm': 'rest' must hold 6 numbers"),
    "rest outside the limits": ("rest = [0.0, ", "rest = [1.95, ", "'rest' puts shoulder_pan at 1.95"),
    "two servos with one id": ("id = 2", "id = 1", "share a servo id"),
    "a second servo with a first one's id": ("id = 2", "id = 2\nshadow = { id = 1 }", "share a servo id"),
    "a second servo that turns sideways": (
        "id = 2",
        "id = 2\nshadow = { id = 9, direction = 2 }",
        r"'arm.joint\[1\].shadow.direction' must be 1 or -1, not 2",
    ),
    "two joints of one name": ('name = "elbow_flex"', 'name = "gripper"', "share a name"),
    "a joint more": (
        "[rates]",
        '[[arm.joint]]\nname = "x"\nid = 7\nlower = 0\nupper = 1\n[rates]',
        "must hold 7 numbers",
    ),
    "limits the wrong way round": (
        "lower = -1.69",
        "lower = 2.0",
        "impossible limits, 'lower' 2 is not below 'upper' 1.69",
    ),
    "joints of another family": (
        'family = "so101"',
        'family = "koch"\n# ',
        "'arm.joint' must|impossible limits of shoulder_lift",
    ),
    "joints in another order": (
        'name = "shoulder_lift"',
        'name = "lift"',
        "joints of a so101 are shoulder_pan, shoulder_lift, elbow_flex",
    ),
    "another family": (
        'family = "so101"',
        'family = "hexapod"',
        "'hexapod' is not known .this version drives koch, so101, viperx",
    ),
    "servo of another protocol": ("id = 2", 'id = 2\nmodel = "XL430-W250"', "of two protocols cannot be driven"),
    "servo that nobody knows": ("id = 2", 'id = 2\nmodel = "S9000"', "'S9000' cannot be driven .these can: STS3215, "),
    "servo that cannot be let down in a ramp": ("id = 2", 'id = 2\nmodel = "SCS0009"', "'SCS0009' cannot be driven"),
    "a register that the servo has no room for": (
        "id = 2",
        "id = 2\nhoming_offset = 9000",
        "cannot be held by the servo",
    ),
    "a pixel format of five letters": ("fps = ", 'fourcc = "MJPEG"\nfps = ', "must be four characters such as MJPG"),
    "no TOML": ("[rates]", "[rates", "is not TOML"),
    "a key given twice": ("id = 2", "id = 2\nid = 3", "is not TOML .Cannot overwrite"),
    # What no arm on a desk can have.
    "never lowered": (
        "[arm]",
        "[arm]\nstop_after_s = 1e300",
        "'arm.stop_after_s' must be a number from 0.05 to 10, not 1e.300",
    ),
    "never released": ("[arm]", "[arm]\nrelease_s = 1e300", "'arm.release_s' must be a number from 0.05 to 10"),
    "a lead without end": ("[arm]", "[arm]\nmax_lead = 1e300", "'arm.max_lead' must be a number from 0.02 to 1.6"),
    "lowered for ever": ("[arm]", "[arm]\nlower_speed = 1e-300", "'arm.lower_speed' must be a number from 0.05 to 3"),
    "never said not to follow": (
        "[arm]",
        "[arm]\nfollow_rad = 1e9",
        "'arm.follow_rad' must be a number from 0.02 to 1.6",
    ),
    "said after a year": ("[arm]", "[arm]\nfollow_s = 3e7", "'arm.follow_s' must be a number from 0.05 to 10"),
    "a zero beyond a turn": (
        "id = 2",
        "id = 2\nzero_step = 100000",
        "'zero_step' must be a whole number from 0 to 4095",
    ),
    "a shadow's zero beyond a turn": (
        "id = 2",
        "id = 2\nshadow = { id = 9, zero_step = 4096 }",
        "from 0 to 4095, not 4096",
    ),
    "a motor clock too quick": (
        "motor_hz = 100",
        "motor_hz = 10000",
        "'rates.motor_hz' must be a number from 20 to 500",
    ),
    "a motor clock without sense": (
        "motor_hz = 100",
        "motor_hz = 1e300",
        "'rates.motor_hz' must be a number from 20 to 500",
    ),
    "a slow loop without sense": ("slow_hz = 8", "slow_hz = 1e300", "'rates.slow_hz' must be a number from 0.5 to 60"),
    "a slow loop that stands": ("slow_hz = 8", "slow_hz = 1e-300", "'rates.slow_hz' must be a number from 0.5 to 60"),
    "a fast loop that stands": ("fast_hz = 50", "fast_hz = 1e-300", "'rates.fast_hz' must be a number from 5 to 240"),
    "a gear of nothing": (
        "id = 2",
        "id = 2\ngear = 0",
        r"'arm.joint\[1\].gear' must be a number from 0.1 to 20, not 0",
    ),
    "a gear of next to nothing": ("id = 2", "id = 2\ngear = 1e-300", "gear' must be a number from 0.1 to 20"),
    "a camera as wide as a town": (
        "width = 320",
        "width = 1000000",
        "'camera.front.width' must be a whole number from 16 to 8192",
    ),
    "a camera without an end": ("fps = 50", "fps = inf", "'camera.front.fps' must be a finite number, not inf"),
    "a delay that is no number": (
        "fps = 50",
        "fps = 50\ndelay_ms = nan",
        "'camera.front.delay_ms' must be a finite number",
    ),
    "a delay before the picture": (
        "fps = 50",
        "fps = 50\ndelay_ms = -5",
        "'camera.front.delay_ms' must be a number from 0 to",
    ),
    "jerk below zero": (
        "max_jerk = [20000.0",
        "max_jerk = [0.0",
        r"'arm.max_jerk\[0\]' must be a number from 1 to 1e.06",
    ),
    "jerk that is no number": (
        "max_jerk = [20000.0",
        "max_jerk = [nan",
        r"'arm.max_jerk\[0\]' must be a finite number",
    ),
    "velocity without an end": (
        "max_velocity = [4.0",
        "max_velocity = [1e300",
        r"'arm.max_velocity\[0\]' must be a number",
    ),
    "no acceleration": (
        "max_acceleration = [40.0",
        "max_acceleration = [0",
        r"'arm.max_acceleration\[0\]' must be a number",
    ),
    "a joint that turns through itself": (
        "upper = 1.69",
        "upper = 5.69",
        "impossible limits of elbow_flex: .* to 2.19 rad",
    ),
    "a joint that turns for ever": (
        "upper = 1.69",
        "upper = 100.0",
        r"'arm.joint\[2\].upper' must be a number from -6.2832 to",
    ),
    "bauds of another century": (
        "baud = 1_000_000",
        "baud = 300",
        "'bus.baud' must be a whole number from 9600 to 4.5e.06",
    ),
    # What no program can work with.
    "a number of 400 digits": (
        "slow_hz = 8",
        "slow_hz = 1" + "0" * 400,
        "'rates.slow_hz' is a whole number of more than 64",
    ),
    "a number of 5000 digits": ("slow_hz = 8", "slow_hz = 1" + "0" * 5000, "line 56 is longer than 2000"),
    "lists in lists": ("[bus]", "x = " + "[\n" * 30_000 + "\n[bus]", "nested more than 32 deep"),
    "names in names": ("[bus]", "x." * 900 + "y = 1\n[bus]", "nested more than 32 deep"),
    "names in names without end": ("[bus]", "x." * 30_000 + "y = 1\n[bus]", "line 6 is longer than 2000 characters"),
    "longer than any robot file": ("[bus]", "# " + "x" * 100_000 + "\n[bus]", "is larger than 64 KiB"),
    "a camera with a name of 300 letters": (
        "[camera.front]",
        f"[camera.{'f' * 300}]",
        "in 'camera' is longer than 255 characters",
    ),
    "a camera with a name of 100 letters": (
        "[camera.front]",
        f"[camera.{'f' * 100}]",
        "must be a name of at most 64 letters",
    ),
    "a camera elsewhere": ("[camera.front]", '[camera."../front"]', "the name '../front' in 'camera' must be a name"),
    "half a character": ("name = ", 'name = "\\uD800"\n# ', "is not TOML"),
    "a text of two lines": ("name = ", 'name = "a\\nb"\n# ', "'name' must be text in one line"),
    "a port that is no path": ('port = "sim"', 'port = "\\u0000"', "'bus.port' must be text in one line"),
    "a camera that is a number": (
        "[camera.front]",
        "[camera]\nfront = 3\n[camera.hand]",
        "'camera.front' must be a table of keys, not 3",
    ),
    "an engine of no kind": (
        "[rates]",
        '[compute]\nengine = "tpu"\n[rates]',
        "'compute.engine' must be .*tensorrt.*, not 'tpu'",
    ),
    "pre-processing nowhere": (
        "[rates]",
        "[compute]\npreprocess = 3\n[rates]",
        "'compute.preprocess' must be .*gpu.*, not 3",
    ),
    "a core twice": (
        "[rates]",
        "[compute]\ncores = [1, 1]\n[rates]",
        "'compute': 'cores' must name each processor core once",
    ),
    "a core that no machine has": (
        "[rates]",
        "[compute]\ncores = [1024]\n[rates]",
        "must be a whole number from 0 to 1023, not 1024",
    ),
    "a core that is true": (
        "[rates]",
        "[compute]\ncores = [true]\n[rates]",
        "must be a whole number from 0 to 1023, not true",
    ),
    "compute that is no table": ('name = "sim', 'compute = 3\nname = "sim', "'compute' must be a table of keys, not 3"),
    "compute by another name": (
        "[rates]",
        "[compute]\nthreads = 2\n[rates]",
        "'compute.threads' is no key that is known here",
    ),
    "a table that is a number": ("[rates]", "[other]", "'other' is no key that is known here"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_robot_file_is_refused(tmp_path, case):
    old, new, sentence = CASES[case]
    text = (SHIPPED / "sim_so101.toml").read_text()
    assert old in text
    path = tmp_path / "robot.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RobotError, match=sentence) as e:
        load_robot(str(path))
    said = str(e.value)
    assert "robot.toml" in said and ": correct it" in said and said.isprintable() and len(said) < 500


@pytest.mark.parametrize("name", ["x" * 5000, "\0", "\ud800", "/"])
def test_what_is_no_path_to_a_file_is_refused(name):
    with pytest.raises(RobotError, match=r"cannot be read .*sim_so101"):
        load_robot(name)


def test_the_pixel_format_is_handed_to_the_camera(tmp_path):
    path = tmp_path / "robot.toml"
    path.write_text((SHIPPED / "so101.toml").read_text().replace("fps = ", 'fourcc = "MJPG"\nfps = ', 1))
    cameras = load_robot(str(path)).cameras
    assert (cameras["front"].fourcc, cameras["wrist"].fourcc) == ("MJPG", "")


def test_what_the_servos_must_hold_is_handed_to_the_arm(tmp_path):
    path = tmp_path / "robot.toml"
    path.write_text(
        (SHIPPED / "so101.toml").read_text().replace("id = 3", "id = 3\nhoming_offset = -85\nmax_position = 3600", 1)
    )
    assert load_robot(str(path)).arm.eeprom == ((3, "homing_offset", -85), (3, "max_position", 3600))


def test_an_absent_robot_file_names_the_shipped_ones():
    with pytest.raises(RobotError, match="sim_so101"):
        load_robot("nothing")


def test_gears_and_second_servos_are_handed_to_the_arm(tmp_path):
    """As on a ViperX: two servos on the shoulder, mounted face to face."""
    text = (SHIPPED / "so101.toml").read_text()
    path = tmp_path / "robot.toml"
    path.write_text(text.replace("id = 2\n", "id = 2\ngear = 2.5\nshadow = { id = 12, zero_step = 2040 }\n"))
    arm = load_robot(str(path)).arm
    assert arm.gear == (1.0, 2.5, 1.0, 1.0, 1.0, 1.0) and arm.shadows == ((12, 1, -1, 2040),)
    plain = load_robot("so101").arm
    assert plain.gear == () and plain.shadows == ()


def test_what_to_compute_with_is_in_the_robot_file(tmp_path):
    text = (SHIPPED / "sim_so101.toml").read_text()
    assert load_robot("sim_so101").compute == Compute("auto", "auto", ())
    (tmp_path / "r.toml").write_text(text + '\n[compute]\nengine = "tensorrt"\npreprocess = "gpu"\ncores = [2, 3]\n')
    assert load_robot(str(tmp_path / "r.toml")).compute == Compute("tensorrt", "gpu", (2, 3))
