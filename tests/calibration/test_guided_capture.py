"""Guided capture: which pictures are kept, what the page shows, and a camera that changes under it."""

import http.client
import itertools
import json
import threading
import urllib.request

import cv2
import numpy as np
import pytest

from calibration.camera import CalibrationError
from calibration.guide import Guide
from harmowam.capture_page import CapturePage
from sim.boards import look_at_board, render
from sim.calibration_rig import webcam
from tests.calibration.verbs import SHEET, calibrate


def test_guided_capture_keeps_what_helps_and_says_what_to_do():
    rng, guide = np.random.default_rng(2), Guide(SHEET, wanted=6)
    camera = webcam(None)
    blank = np.full((720, 1280), 90, np.uint8)
    assert guide.add(blank) == "board not found"
    T = look_at_board(rng, SHEET, camera)
    sharp = render(camera, T, SHEET, rng)
    assert "moving" in guide.add(sharp) and guide.add(sharp) == "kept"
    assert guide.add(sharp) == "like one already kept"  # `next_step`, shown beside it, says what helps
    assert guide.add(cv2.GaussianBlur(sharp, (0, 0), 4)).startswith(("blurred", "too few", "board"))
    for _ in range(4):
        image = render(camera, look_at_board(rng, SHEET, camera), SHEET, rng)
        guide.add(image)
        guide.add(image)
    assert len(guide.views) == 5 and guide.coverage.any() and not guide.done
    assert len(guide.pictures) == 3 and all(p.shape == (720, 1280) for p in guide.pictures.values())
    far = sorted(guide.views, key=lambda v: -((v.pixels - [639.5, 359.5]) ** 2).sum())[:3]
    assert set(guide.pictures) == {v.name for v in far}
    assert guide.next_step().startswith(("tilt", "move", "close-ups"))
    page = CapturePage(0)
    page.show(image, guide, "kept")
    with urllib.request.urlopen(page.address + "status") as got:
        assert json.load(got)["kept"] == 5
    with urllib.request.urlopen(page.address + "picture") as got:
        assert cv2.imdecode(np.frombuffer(got.read(), np.uint8), 1).shape == (540, 960, 3)
    page.close()


@pytest.fixture(scope="module")
def page():
    made = CapturePage(0)
    made.picture = b"what the camera sees"
    yield made
    made.close()


def asked(page, *hosts):
    """Status and body for a request of the picture with these Host headers."""
    connection = http.client.HTTPConnection("127.0.0.1", int(page.address.rpartition(":")[2][:-1]), timeout=5)
    connection.putrequest("GET", "/picture", skip_host=True)
    for host in hosts:
        connection.putheader("Host", host.replace("PORT", str(connection.port)))
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


@pytest.mark.parametrize("host", ["127.0.0.1:PORT", "localhost:PORT", "LocalHost:PORT", "[::1]:PORT"])
def test_the_page_answers_to_the_names_of_this_machine(page, host):
    assert asked(page, host) == (200, b"what the camera sees")


@pytest.mark.parametrize(
    "hosts",
    [
        ["attacker.example:PORT"],
        ["attacker.example"],
        ["localhost"],
        ["localhost:1"],
        ["localhost.attacker.example:PORT"],
        ["127.0.0.1:PORT", "attacker.example:PORT"],
        [""],
        [],
    ],
)
def test_a_foreign_page_that_points_its_name_to_this_machine_sees_nothing(page, hosts):
    """DNS rebinding: the browser sends the foreign page's name as Host."""
    assert asked(page, *hosts) == (421, f"ask for {page.address}\n".encode())


def test_a_page_whose_port_is_taken_is_refused_in_one_sentence(bench, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options = ("--robot", bench.robot_file, "--store", tmp_path / "store")
        result = calibrate("intrinsics", *options, "--page", port)
    assert result.exit_code == 2 and result.stderr.startswith("error: "), result.output
    assert f"port {port}" in result.stderr and "give another --page, or 0 for none" in result.stderr


def test_a_camera_that_changes_its_resolution_while_capturing_is_refused(tmp_path):
    from harmowam.capture_page import capture
    from runtime.cameras.frames import FrameWriter
    from runtime.cameras.sources import CameraSource
    from runtime.robot import CameraConfig

    writer, stop = FrameWriter(tmp_path / "slot", 256, 192), threading.Event()
    camera = CameraSource(CameraConfig("front", f"slot:{writer.path}", 128, 96, 30.0, "x"), writer.path)

    def write():
        for k in itertools.count():
            writer.write(k, np.zeros((96, 128, 3) if k % 2 else (192, 256, 3), np.uint8))
            if stop.wait(0.02):
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with pytest.raises(CalibrationError, match=r"changed from (128x96 to 256x192|256x192 to 128x96)"):
            capture(camera, SHEET, 50, 0, lambda line: None)
    finally:
        stop.set()
        thread.join()
