"""`harmowam setup`: the robot file of an arm on a virtual port, with films for cameras."""

import json

import cv2
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from calibration.store import Store
from common.schema import parse_toml, shaped
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import PtyBus
from firmware_bridge.virtual.plant import KinematicPlant
from harmowam.cli import main
from harmowam.setup import ask_cameras
from runtime.robot import RobotFile, load_robot
from runtime.robot_file import servos, shipped
from tests.command import harmowam, refusal
from tests.rig import film

pytestmark = pytest.mark.wall_clock


@pytest.fixture(params=["so101", "koch"])
def family(request):
    return request.param


@pytest.fixture
def port(family, tmp_path):
    ids, models = zip(*servos(shipped(family)), strict=True)
    made = VirtualBus(ids, KinematicPlant(np.full(len(ids), 2048.0)), [MODELS[m] for m in models])
    server = PtyBus(made, link=tmp_path / "by-id/arm")
    yield server.path
    server.close()


@pytest.fixture
def cameras(tmp_path):
    films = {name: film(tmp_path / f"{name}.avi", size=(96, 64)) for name in ("front", "wrist")}
    return [f"--camera={name}={source}" for name, source in films.items()]


def lerobot(path, family, **change):
    joints = load_robot(family).arm
    row = {"drive_mode": 0, "homing_offset": 0, "range_min": 800, "range_max": 3290}
    rows = {n: {"id": i, **row, **change} for n, i in zip(joints.joints, joints.ids, strict=True)}
    path.write_text(json.dumps(rows))
    return path


def test_the_file_is_the_shipped_one_with_this_arms_port_and_cameras(family, port, cameras, tmp_path):
    out = tmp_path / "arm"
    done = harmowam(
        "setup", "--family", family, "--port", port, *cameras, "--out", out, "--yes", "--json", tmp_path / "j"
    )
    assert done.exit_code == 0, done.output
    file = out / "robot.toml"
    made = load_robot(str(file))
    assert made.port == port and made.arm == load_robot(family).arm
    whole, known = (msgspec.to_builtins(m) for m in (shaped(parse_toml(file.read_bytes()), RobotFile), shipped(family)))
    for name in ("front", "wrist"):
        assert whole["camera"][name].pop("source") == str(tmp_path / f"{name}.avi")
        assert [whole["camera"][name].pop(k) for k in ("width", "height", "fps")] == [96, 64, 30.0]
        for key in ("source", "width", "height", "fps"):
            known["camera"][name].pop(key)
        assert cv2.imread(str(out / f"preview-{name}.jpg")).shape == (64, 96, 3)
        assert str(out / f"preview-{name}.jpg") in done.output
    assert whole["bus"].pop("port") == port and known["bus"].pop("port") != port
    assert whole == known
    assert f"6 of the 6 servos of a {family} answer on {port}" in done.stderr
    assert done.stdout.endswith(f"`harmowam bus monitor --robot {file}` (docs/arm.md)\n")
    numbers = json.loads((tmp_path / "j").read_text())
    assert (
        numbers["family"] == family
        and numbers["servos"] == [1, 2, 3, 4, 5, 6]
        and set(numbers["previews"])
        == {
            "front",
            "wrist",
        }
    )
    assert not list(out.rglob("*.partial"))


def test_the_kind_of_arm_is_seen_by_its_servos_and_asked(family, port, cameras, tmp_path):
    args = ["setup", "--port", port, *cameras, "--out", str(tmp_path / "arm")]
    done = CliRunner().invoke(main, args, input="hexapod\n\n")
    assert done.exit_code == 0, done.output
    assert f"[{family}]" in done.stderr and "arm family 'hexapod' is not known" in done.stderr
    assert family == load_robot(str(tmp_path / "arm/robot.toml")).family.NAME


def test_a_lerobot_calibration_is_stored_and_used(family, port, cameras, tmp_path):
    out, given = tmp_path / "arm", lerobot(tmp_path / "lerobot.json", family)
    done = harmowam("setup", "--family", family, "--port", port, *cameras, "--lerobot", given, "--out", out, "--yes")
    assert done.exit_code == 0, done.output
    made = load_robot(str(out / "robot.toml"))
    assert made.joints_measured and made.arm.zero_step != load_robot(family).arm.zero_step
    assert (
        f"then check their directions with `harmowam calibrate joints --signs --robot {out / 'robot.toml'}`"
        in done.output
    )
    (kept,) = Store(out / "calibration").history("joints")
    assert kept["current"] and (out / "joints.html").is_file()
    again = tmp_path / "again"
    plain = harmowam("setup", "--family", family, "--port", port, *cameras, "--out", again, "--yes")
    assert plain.exit_code == 0
    imported = harmowam(
        "calibrate", "joints", "--robot", again / "robot.toml", "--import-lerobot", given, "--report", tmp_path / "p"
    )
    assert imported.exit_code == 0
    assert Store(again / "calibration").get("joints")["result"] == Store(out / "calibration").get("joints")["result"]


BAD = {
    "an unknown family": (
        ["--family", "hexapod"],
        "arm family 'hexapod' is not known: name one of koch, so101, v",
    ),
    "no such port": (["--port", "/dev/none"], "/dev/none does not exist: plug the adapter in"),
    "a camera without a source": (
        ["--camera", "front"],
        "--camera front: write a name and a source, as --c",
    ),
    "a camera twice": (["--camera", "front=a", "--camera", "front=b"], "--camera front is given twice"),
    "a camera that is not there": (
        ["--camera", "front=/dev/video99"],
        "camera 'front' gives no picture (/dev/video9",
    ),
    "a name that is none": (["--camera", "a b=x"], "no robot file can be written of this: the name 'a b' in 'camera'"),
    "a LeRobot file that is not there": (["--lerobot", "none.json"], "none.json cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("family", ["so101"], indirect=True)
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(family, port, tmp_path, case):
    options, sentence = BAD[case]
    said = refusal("setup", "--family", family, "--port", port, "--out", tmp_path / "arm", "--yes", *options)
    assert sentence in said and not (tmp_path / "arm").exists()


@pytest.mark.parametrize("family", ["so101"], indirect=True)
def test_another_arms_calibration_is_refused_before_anything_is_written(family, port, cameras, tmp_path):
    given = lerobot(tmp_path / "lerobot.json", family, id=9)
    options = ("--family", family, "--port", port, *cameras, "--lerobot", given, "--out", tmp_path / "arm", "--yes")
    assert "shoulder_pan is servo 9, the robot file says 1" in refusal("setup", *options)
    assert not (tmp_path / "arm").exists()


def test_a_robot_file_that_exists_is_kept(tmp_path):
    (tmp_path / "robot.toml").write_text("mine")
    said = refusal("setup", "--family", "so101", "--port", "x", "--out", tmp_path, "--yes")
    assert "robot.toml exists and is not replaced: edit it, or name another folder with --out" in said
    assert (tmp_path / "robot.toml").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("family", ["so101"], indirect=True)
def test_a_question_without_an_answer_names_the_option(family, tmp_path):
    silent = PtyBus(VirtualBus([20], KinematicPlant(np.full(1, 2048.0))), link=tmp_path / "silent")
    try:
        options = ("setup", "--port", silent.path, "--out", tmp_path / "arm")
        assert "Kind of arm (koch, so101, viperx) is not known: give it with --family" in refusal(*options, "--yes")
        assert "was asked, and no answer came: give --family, or --yes" in refusal(*options)
        made = harmowam(*options, "--family", family, "--yes")
        assert made.exit_code == 0 and f"harmowam bus set-id --port {silent.path} --to 1`" in made.stdout
    finally:
        silent.close()


def test_cameras_are_named_by_the_user_who_sees_their_pictures_first(tmp_path):
    sources = [film(tmp_path / f"video{k}.avi", size=(96, 64)) for k in range(4)]
    (tmp_path / "video4").write_text("no film")
    answers = "\nfront\na b\nside\n-\n\n"
    with CliRunner().isolation(input=answers) as (_, err, _):
        looks = ask_cameras([*sources, str(tmp_path / "video4")], shipped("so101"), tmp_path / "arm", yes=False)
        said = err.getvalue().decode()
    assert [(c.name, c.source, c.calibration, c.width) for c, _ in looks] == [
        ("front", sources[0], "calibration/front", 96),
        ("side", sources[1], "calibration/side", 96),
        ("wrist", sources[3], "calibration/wrist", 96),
    ]
    assert "a camera is called front already" in said and "the name 'a b' in 'camera' must be a name" in said
    assert f"{tmp_path}/video4 gives no picture, and is left out" in said
    assert f"picture of video2.avi: {tmp_path}/arm/preview-video2.avi.jpg" in said
    assert [p.name for p in (tmp_path / "arm").iterdir()] == ["preview-video2.avi.jpg"]
    taken = ask_cameras(sources[:3], shipped("so101"), tmp_path / "arm", yes=True)
    assert [c.name for c, _ in taken] == ["front", "wrist"]
