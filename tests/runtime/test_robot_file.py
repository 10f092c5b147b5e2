"""The robot file that `harmowam setup` writes: every key, its meaning and range, and the shipped values."""

import re
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from common.schema import parse_toml, shaped
from runtime.cameras.v4l2 import plugged_in
from runtime.robot import CameraConfig, RobotError, RobotFile
from runtime.robot_file import MEANINGS, families, filled, shipped, text

COMMENTED = re.compile(r"^# (\w+ = .*|\[\w+\])$", re.M)


def read(toml: str) -> RobotFile:
    return shaped(parse_toml(toml.encode()), RobotFile)


def struct(kind: Any) -> Any:
    """The struct in a type annotation, None for a plain value."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((s for s in map(struct, get_args(kind)) if s is not None), None)


def keys(kind: Any, path: str = "") -> set[str]:
    """Every key that the declared structs allow; a second servo's three are on the line of its joint."""
    found = set()
    for name, inner in get_type_hints(kind).items():
        found.add(path + name)
        if (below := struct(inner)) is not None and name != "shadow":
            found |= keys(below, f"{path}{name}.")
    return found


def test_every_key_of_the_declared_structs_has_a_meaning():
    assert set(MEANINGS) == keys(RobotFile)


@pytest.mark.parametrize("family", families())
def test_the_text_reads_as_the_file_it_was_made_of(family):
    assert read(text(shipped(family))) == shipped(family)


@pytest.mark.parametrize("family", families())
def test_every_key_is_there_with_its_meaning_above_it(family):
    lines = text(shipped(family)).splitlines()
    for path, meaning in MEANINGS.items():
        name = path.rpartition(".")[2]
        above = next(k for k, line in enumerate(lines) if line.startswith(f"# {meaning}") and name in lines[k + 1])
        assert re.match(rf"(# )?({name} = |\[+[a-z.]*\b{name}\b)", lines[above + 1]), path


def test_what_is_commented_out_is_the_default_or_an_example_that_may_stand_there():
    made = shipped("so101")
    whole = msgspec.to_builtins(read(COMMENTED.sub(r"\1", text(made))))
    plain = msgspec.to_builtins(made)
    changed = {k for k in plain["arm"] if whole["arm"][k] != plain["arm"][k]}
    assert changed == {"joint", "max_jerk", "estop", "calibration"}
    assert whole["rates"] == plain["rates"] and whole["compute"] == plain["compute"] and whole["bus"] == plain["bus"]
    assert whole["trust"] == {"signers": "allowed_signers", "engines": "engines.json"}
    assert set(whole["arm"]["joint"][0]["shadow"]) == {"id", "direction", "zero_step"}


def test_a_comment_says_unit_range_and_choices():
    made = text(shipped("so101"))
    assert "ramp from full torque to none, s; 0.05 to 10.\n# release_s = 1.5\n" in made
    assert "rad/s^3; by default 50 / s times max_acceleration; each 1 to 1000000; not set by default." in made
    assert '"auto" or "cpu" or "gpu".\n# preprocess = "auto"\n' in made


def test_ports_and_names_that_need_quotes_are_kept():
    camera = CameraConfig("left.1", 'gst:a ! b="c\\d" ü', 64, 48, 29.97, "calibration/left.1")
    made = filled(shipped("koch"), "/dev/serial/by-id/a b", [camera], "calibration/joints")
    back = read(text(made))
    assert back == made and back.camera["left.1"].source == camera.source and back.bus.port == "/dev/serial/by-id/a b"
    assert back.arm.calibration == "calibration/joints"


@pytest.mark.parametrize("bad", [{"name": "a b"}, {"source": "a\nb"}, {"width": 8}])
def test_what_cannot_stand_in_a_robot_file_is_refused(bad):
    camera = {"name": "front", "source": "x", "width": 64, "height": 48, "fps": 30.0, "calibration": "c", **bad}
    with pytest.raises(RobotError, match=r"^no robot file can be written of this: .*: give another value\.$"):
        filled(shipped("so101"), "p", [CameraConfig(**camera)])


def test_cameras_are_found_by_the_first_node_of_each_and_by_lasting_names(tmp_path):
    dev, sys = tmp_path / "dev", tmp_path / "sys"
    for number, index in ((0, 0), (1, 1), (2, 0), (10, 0)):
        (sys / f"video{number}").mkdir(parents=True)
        (sys / f"video{number}/index").write_text(f"{index}\n")
        dev.mkdir(exist_ok=True)
        (dev / f"video{number}").touch()
    (dev / "v4l/by-id").mkdir(parents=True)
    (dev / "v4l/by-id/usb-cam-index0").symlink_to(dev / "video2")
    assert plugged_in(dev, sys) == [str(dev / n) for n in ("video0", "v4l/by-id/usb-cam-index0", "video10")]
    assert plugged_in(tmp_path / "none", sys) == []
