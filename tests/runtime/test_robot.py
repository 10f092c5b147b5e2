"""Robot files: what is wrong is named by file and key, with the next step."""

import pytest

from runtime.robot import SHIPPED, RobotError, load_robot


def test_shipped_robots_load():
    for path in SHIPPED.glob("*.toml"):
        robot = load_robot(path.stem)
        assert len(robot.arm.joints) == 6 and set(robot.cameras) == {"front", "wrist"}
        assert all(lo <= r <= hi for lo, r, hi in zip(robot.arm.lower, robot.arm.rest, robot.arm.upper, strict=True))


CASES = {
    "unknown key": (("[bus]", "[bus]\nparity = 1"), "'parity' is no key"),
    "missing key": (('name = "simulated SO-101"', ""), "lacks 'name'"),
    "wrong kind": (("fast_hz = 50", 'fast_hz = "fast"'), "'fast_hz' must be float"),
    "wrong length": (("rest = [0.0, ", "rest = ["), "'rest' must hold 6 numbers"),
    "two servos with one id": (("id = 2", "id = 1"), "share a servo id"),
    "a second servo with a first one's id": (("id = 2", "id = 2\nshadow = { id = 1 }"), "share a servo id"),
    "a second servo that turns sideways": (
        ("id = 2", "id = 2\nshadow = { id = 9, direction = 2 }"),
        "shadow has an impossible",
    ),
    "a gear of nothing": (("id = 2", "id = 2\ngear = 0"), "'gear' must be greater"),
    "limits the wrong way round": (("lower = -1.69", "lower = 2.0"), "impossible limits"),
    "another family": (('family = "so101"', 'family = "viperx"'), "is not known"),
    "servo of another protocol": (("id = 2", 'id = 2\nmodel = "XL430-W250"'), "cannot be driven"),
    "servo that cannot be let down in a ramp": (("id = 2", 'id = 2\nmodel = "SCS0009"'), "'SCS0009' cannot be driven"),
    "a pixel format of five letters": (("fps = ", 'fourcc = "MJPEG"\nfps = '), "'fourcc' must be four characters"),
    "jerk below zero": (("max_jerk = [20000.0", "max_jerk = [0.0"), "'max_jerk' must be greater"),
    "no TOML": (("[rates]", "[rates"), "is not TOML"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_robot_file_is_refused(tmp_path, case):
    (old, new), sentence = CASES[case]
    text = (SHIPPED / "sim_so101.toml").read_text()
    assert old in text
    path = tmp_path / "robot.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RobotError, match=sentence) as e:
        load_robot(str(path))
    assert "robot.toml" in str(e.value)


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
