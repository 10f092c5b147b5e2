"""A robot on the bench, without physics: virtual servos on a pseudo-terminal, two cameras in slots, a robot file that
names them."""

import gc
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from calibration.camera import Camera
from common.clock import Ticker, prefer
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.line import PtyBus
from firmware_bridge.virtual.plant import KinematicPlant
from runtime.cameras.frames import FrameWriter, frames_path
from runtime.robot import SHIPPED
from tests.tiny import FRONT, WRIST

IDS = range(1, 7)
START = (0.2, -1.2, 1.2, 1.0, 0.0, 0.5)  # rad


def film(path: Path, bgr: tuple[int, int, int] = (90, 90, 90), size: tuple[int, int] = (64, 48)) -> str:
    """Write a video of five pictures of one colour; returns its path, as a robot file's `source`."""
    import cv2

    out = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 30, size)
    for _ in range(5):
        out.write(np.full((size[1], size[0], 3), bgr, np.uint8))
    out.release()
    return str(path)


class SlotCameras:
    """Writes grey pictures with a moving bar into the slots of front and wrist camera, `fps` times per second."""

    def __init__(self, slots: Path, fps: float = 50.0, size: tuple[int, int] = (320, 240)):
        self.size, self.fps = size, fps
        self._slots = [FrameWriter(frames_path(slots, name), *size) for name in ("front", "wrist")]
        self.stop = threading.Event()
        self.unplugged = False
        self._write(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _write(self, k: int) -> None:
        width, height = self.size
        image = np.full((height, width, 3), 90, np.uint8)
        image[:, 4 * k % width, 0] = 255
        for slot in self._slots:
            slot.write(time.monotonic_ns(), image)

    def _run(self) -> None:
        ticker, k = Ticker(self.fps), 0
        while not self.stop.is_set():
            ticker.wait()
            k += 1
            if not self.unplugged:
                self._write(k)

    def close(self) -> None:
        self.stop.set()
        self._thread.join()


class Bench:
    """`robot_file` describes the whole robot; `servos` is the virtual bus, for reading registers and injecting
    faults."""

    def __init__(self, folder: Path, size: tuple[int, int] = (320, 240)):
        self.folder = folder
        gc.collect()
        # the loop runs the garbage collector once; with torch in memory that takes 0.3 s, and the virtual servos are
        # threads of the same process
        gc.freeze()
        folder.mkdir(parents=True, exist_ok=True)
        self.servos = VirtualBus(IDS, KinematicPlant(np.array(START) * 4096 / (2 * np.pi) + 2048))
        prefer(3)  # for the threads that simulate hardware, where the system permits it
        self.server = PtyBus(self.servos, link=folder / "arm")
        self.cameras = SlotCameras(folder, size=size)
        prefer(0)
        for name, like in (("front", FRONT), ("wrist", WRIST)):
            camera = Camera.from_json(like).scaled(320, 240)
            (folder / f"{name}.json").write_text(json.dumps(camera.to_json()))
        text = (SHIPPED / "sim_so101.toml").read_text()
        text = text.replace("simulated = true", "simulated = false").replace(
            'port = "sim"', f'port = "{self.server.path}"'
        )
        # faster than the robot's, to save time
        text = text.replace("[arm]", "[arm]\nlower_speed = 2.0\nrelease_s = 0.4")
        head, front, wrist = text.split("[camera.")
        front, wrist = (
            part.replace('source = "sim"', f'source = "slot:{frames_path(folder, name)}"').replace(
                'calibration = "sim"', f'calibration = "{name}.json"'
            )
            for name, part in (("front", front), ("wrist", wrist))
        )
        self.robot_file = folder / "bench.toml"
        self.robot_file.write_text("[camera.".join((head, front, wrist)))

    def torque(self) -> list[int]:
        return [self.servos.get(i, "torque_enable") for i in IDS]

    def close(self) -> None:
        self.cameras.close()
        self.server.close()


def undo_real_time() -> None:
    """The loop switches the whole process to real time; the test process must go back."""
    gc.unfreeze()
    gc.enable()
    sys.setswitchinterval(0.005)
