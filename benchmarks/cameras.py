"""From a picture read off a device to the loop that wakes with it in hand: `python -m benchmarks.cameras --count 500`.

Two films of 640x480 stand in for the devices, as two busy cameras would. Printed: ms from the return of the read to the
picture in the loop's hands, p50 and p99, and the processor time of the loop's own process a picture. `--thread` reads
them by threads of the loop's process instead of the camera process, into the same files.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from common.clock import prefer, real_time
from common.slots import memory_folder
from common.timing import FAST_PRIORITY
from runtime.cameras.devices import serve
from runtime.cameras.frames import frames_path
from runtime.cameras.process import open_cameras
from runtime.cameras.sources import CameraSource, open_camera
from runtime.robot import SHIPPED, Robot, load_robot

SIZE = 640, 480
NAMES = ("front", "wrist")


def robot_of_films(folder: Path, fps: float) -> Robot:
    """The SO-101's robot file with a film of noise in place of each camera."""
    import cv2

    text = (SHIPPED / "so101.toml").read_text().replace("fps = 30", f"fps = {fps:g}")
    rng = np.random.default_rng(0)
    for device, name in (("/dev/video0", "front"), ("/dev/video2", "wrist")):
        film = cv2.VideoWriter(str(folder / f"{name}.avi"), cv2.VideoWriter.fourcc(*"MJPG"), fps, SIZE)
        for _ in range(200):
            small = rng.integers(0, 255, (30, 40, 3), np.uint8)
            film.write(cv2.resize(small, SIZE, interpolation=cv2.INTER_CUBIC))
        film.release()
        text = text.replace(device, str(folder / f"{name}.avi"))
    (folder / "robot.toml").write_text(text)
    return load_robot(str(folder / "robot.toml"))


@contextlib.contextmanager
def by_threads(robot: Robot, names: Sequence[str], slots: Path) -> Iterator[dict[str, CameraSource]]:
    stop = threading.Event()
    came = {name: threading.Event() for name in names}
    for name in names:
        args = (robot.cameras[name], frames_path(slots, name), stop, came[name].set)
        threading.Thread(target=serve, args=args, daemon=True).start()
    for event in came.values():
        event.wait()
    try:
        yield {name: open_camera(robot.cameras[name], slots) for name in names}
    finally:
        stop.set()


def measured(cameras: dict[str, CameraSource], count: int) -> dict[str, Any]:
    """`count` turns of a loop that waits for the front camera's next picture and takes the newest of each."""
    real_time(FAST_PRIORITY)
    ages: list[float] = []
    front = cameras["front"]
    seen, used = front.frame_number, time.process_time()
    for _ in range(count):
        if not front.wait(seen, time.monotonic_ns() + 2_000_000_000):
            raise click.ClickException("camera 'front' gives no pictures.")
        frame = front.newest()
        assert frame is not None
        now = time.monotonic_ns()
        if frame.frame_number == seen + 1:  # one that was overtaken is as old as the loop was late
            ages.append((now - frame.t_capture_ns) * 1e-6)
        seen = frame.frame_number
        cameras["wrist"].newest()
    used = time.process_time() - used
    prefer(0)
    return {
        "age_ms_p50": round(float(np.median(ages)), 3),
        "age_ms_p99": round(float(np.percentile(ages, 99)), 3),
        "process_ms_a_turn": round(1e3 * used / count, 3),
        "pictures": len(ages),
    }


@click.command()
@click.option("--count", default=500, show_default=True, help="Turns of the loop.")
@click.option("--fps", default=50.0, show_default=True)
@click.option("--thread", is_flag=True, help="Read by threads of the loop's own process.")
def main(count: int, fps: float, thread: bool) -> None:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        robot = robot_of_films(Path(folder), fps)
        how = by_threads if thread else open_cameras
        with how(robot, NAMES, Path(folder)) as cameras:
            print(json.dumps(measured(cameras, count)))


if __name__ == "__main__":
    main()
