"""More cameras and larger pictures: the camera process decodes films of noise, a loop takes the newest and
pre-processes."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.growth.apart import BLOCKS, apart, peak_mb, processor_s, spread
from benchmarks.growth.table import Row, Table
from benchmarks.preprocess import camera
from common.clock import prefer, real_time
from common.slots import memory_folder
from common.timing import FAST_PRIORITY
from harmowam.processes import children
from runtime.cameras.process import open_cameras
from runtime.preprocess import Warp, warp_all
from runtime.robot import SHIPPED, Robot, load_robot

NAMES = ("front", "wrist", "left", "right")
SIZES = ((320, 240), (640, 480), (1280, 720), (1920, 1080))
FPS = 30.0
PICTURES = 180  # of a film: it loses a picture's time where it begins again
DIFFERENT = 12  # of them, in turn
SENT = 96  # px, side of the policy's pictures
BENT = (-0.1, 0.02, 0.0, 0.0, 0.0)  # distortion of the lenses
NOTE = (
    f"Films of noise (MJPEG) at {FPS:g} pictures a second in the camera process; the loop waits for the first camera's "
    "next picture, takes the newest of each (a copy into RGB order) and warps all to 96x96 in one call. `age`: from "
    "the read's return to the end of the warp; `overtaken`: pictures of the first camera that the loop did not see; "
    "`loop, peak MB`: with OpenCV, locked, and the making of the film. Pictures that do not fit into the processor's "
    "last cache together (copy and original) are copied at the pace of the memory."
)


def robot_of_films(folder: Path, count: int, width: int, height: int) -> Robot:
    """The SO-101's robot file with `count` films of noise for cameras."""
    text = (SHIPPED / "so101.toml").read_text().partition("[camera.front]")[0]
    rng, first = np.random.default_rng(0), folder / f"{NAMES[0]}.avi"
    coarse = [rng.integers(0, 255, (height // 16, width // 16, 3), np.uint8) for _ in range(DIFFERENT)]
    pictures = [cv2.resize(c, (width, height), interpolation=cv2.INTER_CUBIC) for c in coarse]
    film = cv2.VideoWriter(str(first), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (width, height))
    for k in range(PICTURES):
        film.write(pictures[k % DIFFERENT])
    film.release()
    for name in NAMES[:count]:
        if name != NAMES[0]:
            os.link(first, folder / f"{name}.avi")
        text += f'[camera.{name}]\nsource = "{folder / name}.avi"\nwidth = {width}\nheight = {height}\n'
        text += f'fps = {FPS:g}\ncalibration = "calibration/{name}"\n'
    (folder / "robot.toml").write_text(text)
    return load_robot(str(folder / "robot.toml"))


def point(count: int, width: int, height: int, turns: int) -> dict[str, float]:
    """`turns` of a loop that waits for the front camera's next picture, takes the newest of each and warps them to
    96x96."""
    cv2.setNumThreads(1)
    src = camera(width, height, 1.4 * height, BENT)
    warps = [Warp(src, camera(SENT, SENT, 1.4 * SENT)) for _ in range(count)]
    outs = [np.empty((3, SENT, SENT), np.float32) for _ in warps]
    ages, takes, warped, late = list[float](), list[float](), list[float](), 0
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        robot = robot_of_films(Path(folder), count, width, height)
        with open_cameras(robot, NAMES[:count], Path(folder)) as cameras:
            (process,) = children(os.getpid())
            front = cameras["front"]
            real_time(FAST_PRIORITY)
            seen, began = front.frame_number, time.monotonic()
            used = [(processor_s(process), time.process_time(), began)]
            for k in range(turns):
                if not front.wait(seen, time.monotonic_ns() + 2_000_000_000):
                    raise SystemExit("camera 'front' gives no pictures: see the message of the camera process.")
                woke = time.monotonic_ns()
                frames = [c.newest() for c in cameras.values()]
                assert frames[0] is not None
                taken = time.monotonic_ns()
                warp_all(warps, [f.image for f in frames if f is not None], outs)
                done = time.monotonic_ns()
                ages.append((done - frames[0].t_capture_ns) * 1e-6)
                takes.append((taken - woke) * 1e-6)
                warped.append((done - taken) * 1e-6)
                late += frames[0].frame_number - seen - 1
                seen = frames[0].frame_number
                if (k + 1) % (turns // BLOCKS) == 0:
                    used.append((processor_s(process), time.process_time(), time.monotonic()))
            seconds = time.monotonic() - began
            prefer(0)
            memory = peak_mb(process)
    blocks = np.diff(np.array(used), axis=0)
    of_cameras, of_loop = (blocks[:, :2] / blocks[:, 2:]).min(0).tolist()
    (age, age99), (take, _), (warp, warp99) = spread(ages), spread(takes), spread(warped)
    return {
        "turns/s": turns / seconds,
        "age p50, ms": age,
        "age p99, ms": age99,
        "take p50, ms": take,
        "warp p50, ms": warp,
        "warp p99, ms": warp99,
        "overtaken": float(late),
        "camera process, cores": of_cameras,
        "loop, cores": of_loop,
        "camera process, peak MB": memory,
        "loop, peak MB": peak_mb(),
    }


def _table(
    title: str, points: list[tuple[str, int, int, int]], turns: int, known: dict[tuple[int, ...], Row], note: str = ""
) -> Table:
    rows = []
    for name, count, width, height in points:
        key = (count, width, height)
        if key not in known:
            found = apart("cameras", count=count, width=width, height=height, turns=turns)
            known[key] = Row(name, count * width * height / 1e6, found)
        rows.append(Row(name, known[key].work, known[key].cost))
    return Table(
        title,
        "Mpixel a turn",
        tuple(rows),
        ("take p50, ms", "warp p50, ms", "camera process, cores", "loop, cores", "camera process, peak MB"),
        note,
        {"turns/s": FPS},
    )


def tables(small: bool) -> list[Table]:
    """By number at two sizes, and by size with two cameras."""
    turns, known = (20 if small else 150), dict[tuple[int, ...], Row]()
    vga = [(f"{n} x 640x480", n, 640, 480) for n in (1, 2, 3, 4)]
    sizes = [(f"2 x {w}x{h}", 2, w, h) for w, h in SIZES]
    large = [(f"{n} x 1920x1080", n, 1920, 1080) for n in (1, 2, 3, 4)]
    return [
        _table("Cameras of 640x480, by number", vga, turns, known, NOTE),
        _table("Two cameras, by size", sizes, turns, known),
        _table("Cameras of 1920x1080, by number", large, turns, known),
    ]
