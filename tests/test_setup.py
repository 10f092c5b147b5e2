"""`harmowam setup`: the robot file of an arm on a virtual port, with films for cameras."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

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
from harmowam import camera_page
from harmowam.camera_page import Card
from harmowam.cli import main
from harmowam.options import UserError
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
    assert whole["bus"].pop("port") == port and known["bus"].pop("port") != port
    assert whole == known
    assert f"6 of the 6 servos of a {family} answer on {port}" in done.stderr
    assert done.stdout.endswith(f"`harmowam bus monitor --robot {file}` (docs/arm.md)\n")
    numbers = json.loads((tmp_path / "j").read_text())
    assert numbers["family"] == family and numbers["servos"] == [1, 2, 3, 4, 5, 6]
    assert numbers["cameras"] == {name: str(tmp_path / f"{name}.avi") for name in ("front", "wrist")}
    assert f"what the cameras show: {out / 'cameras.html'}" in done.stderr
    assert [name for _, name, _ in shown(out)] == ["front", "wrist"]
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


def shown(out):
    """Picture, name and rows of each camera on the page."""
    page = (out / "cameras.html").read_text()
    assert "http:" not in page and "https:" not in page and "<script" not in page  # it loads nothing from elsewhere
    cards = []
    for figure in re.findall("<figure>(.*?)</figure>", page):
        picture = re.search('src="data:image/jpeg;base64,(.*?)"', figure)
        image = None if picture is None else cv2.imdecode(np.frombuffer(base64.b64decode(picture[1]), np.uint8), 1)
        rows = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", figure))
        cards.append((image, re.search("<h2.*?>(.*?)</h2>", figure)[1], rows))
    return cards


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


def test_cameras_are_named_by_the_user_who_sees_them_all_on_a_page(tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    sources = [film(tmp_path / f"video{k}.avi", bgr=(0, 0, 50 * k), size=(96, 64)) for k in range(4)]
    (tmp_path / "video4").write_text("no film")
    answers = "\nfront\na b\nside\n-\n\n"
    with CliRunner().isolation(input=answers) as (_, err, _):
        chosen = ask_cameras([*sources, str(tmp_path / "video4")], shipped("so101"), tmp_path / "arm", yes=False)
        said = err.getvalue().decode()
    assert [(c.name, c.source, c.calibration, c.width) for c in chosen] == [
        ("front", sources[0], "calibration/front", 96),
        ("side", sources[1], "calibration/side", 96),
        ("wrist", sources[3], "calibration/wrist", 96),
    ]
    assert "a camera is called front already" in said and "the name 'a b' in 'camera' must be a name" in said
    assert f"{tmp_path}/video4 gives no picture, and is left out" in said
    page = f"what the cameras show: {tmp_path}/arm/cameras.html"
    assert said.index(page) < said.index(f"Name of the camera {sources[0]} ")
    assert "refresh" not in (tmp_path / "arm/cameras.html").read_text()
    cards = shown(tmp_path / "arm")
    assert [name for _, name, _ in cards] == ["front", "side", "is left out", "wrist", "has no name yet"]
    assert (
        cards[4][0] is None and [abs(int(c[0][32, 48, 2]) - 50 * k) < 9 for k, c in enumerate(cards[:4])] == [True] * 4
    )
    assert cards[1][2] == {"source": sources[1], "gives": "96 x 64 px, MJPG, 30 pictures a second"}
    taken = ask_cameras(sources[:3], shipped("so101"), tmp_path / "arm", yes=True)
    assert [c.name for c in taken] == ["front", "wrist"]


def test_while_names_are_asked_for_the_page_loads_itself_again_and_not_afterwards(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(camera_page, "show", lambda page: asked.append(page.read_text()))
    source, page = film(tmp_path / "video0.avi", size=(96, 64)), tmp_path / "arm/cameras.html"
    with CliRunner().isolation(input=""), pytest.raises(UserError, match="no answer came: give --camera, or --yes"):
        ask_cameras([source], shipped("so101"), tmp_path / "arm", yes=False)
    assert 'http-equiv="refresh"' in asked[0] and "has no name yet" in asked[0]
    assert "refresh" not in page.read_text() and "has no name yet" in page.read_text()
    ask_cameras([source], shipped("so101"), tmp_path / "arm", yes=True)
    assert len(asked) == 1 and "refresh" not in page.read_text()


@pytest.mark.parametrize("family", ["so101"], indirect=True)
def test_the_page_is_made_anew_of_the_robot_file_which_stays_as_it_is(family, port, cameras, tmp_path):
    out = tmp_path / "arm"
    options = ("--family", family, "--port", port, *cameras, "--out", out, "--yes")
    assert harmowam("setup", *options).exit_code == 0
    before = (out / "robot.toml").read_bytes()
    film(tmp_path / "wrist.avi", bgr=(0, 0, 200), size=(96, 64))
    assert "robot.toml exists and is not replaced" in refusal("setup", *options)
    done = harmowam("setup", "--look", "--out", out)
    assert done.exit_code == 0 and done.stdout == f"what the cameras show: {out / 'cameras.html'}\n", done.output
    assert f"<code>harmowam setup --look --out {out}</code>" in (out / "cameras.html").read_text()
    (_, front, _), (picture, wrist, _) = shown(out)
    assert (front, wrist) == ("front", "wrist") and picture[32, 48, 2] > 190
    assert (out / "robot.toml").read_bytes() == before
    assert "--yes means nothing with --look" in refusal("setup", "--look", "--yes", "--out", out)
    assert "no camera is plugged in: plug one in" in refusal("setup", "--look", "--out", tmp_path / "none")


def test_a_device_stands_on_the_page_by_its_path_and_by_the_name_that_lasts():
    text = camera_page.page(
        [Card("/dev/stdin", "wrist", None)], "harmowam setup --look"
    )  # a link, as those in by-id are
    plain = camera_page.page([Card("/dev/null", "<wrist>", None)], "harmowam setup --look")
    device = Path("/dev/stdin").resolve()
    assert f"<dt>device</dt><dd>{device}</dd><dt>lasting name</dt><dd>/dev/stdin</dd>" in text
    assert "<dt>device</dt><dd>/dev/null</dd><dt>lasting name</dt><dd>none: it may change when replugged</dd>" in plain
    assert "&lt;wrist&gt;" in plain and "gives no picture: another program has it open, or it is unplugged" in plain


@pytest.mark.parametrize("display", ["", ":0"])
def test_a_browser_is_opened_where_there_is_a_display_only(tmp_path, display):
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    code = (
        f"from pathlib import Path; from harmowam.camera_page import show; show(Path({str(tmp_path / 'x y.html')!r}))"
    )
    environ = {**os.environ, "BROWSER": f"{browser} %s", "DISPLAY": display, "WAYLAND_DISPLAY": ""}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True, timeout=60)
    opened = tmp_path / "opened"
    assert opened.read_text() == f"file://{tmp_path}/x%20y.html\n" if display else not opened.exists()
