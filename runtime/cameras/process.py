"""The camera process: it owns the real cameras of a robot, and its files of frames are there for everyone to look at.

    python -m runtime.cameras.process --robot FILE --slots FOLDER --camera front --camera wrist

It prints one JSON line a camera, {"camera": NAME} when its first picture is there or {"camera": NAME, "error":
SENTENCE}, and ends on SIGTERM or when its parent is gone. `CameraProcess` starts it, and starts it again when it dies:
a codec that crashes holds the arm and does not end the run. `cameras.json` in the folder says which sources are read,
so that other programs look (`looking_at`) instead of asking the device, which gives its pictures to one program only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from common.errors import Mendable
from common.files import write_whole
from common.python import module_command
from common.run_folder import parent, run_folder
from common.slots import SlotError
from runtime.cameras.devices import CameraError, serve
from runtime.cameras.frames import FrameReader, frames_path
from runtime.cameras.sources import CameraSource, is_real, open_camera
from runtime.cameras.v4l2 import node
from runtime.robot import CameraConfig, Robot, load_robot

INDEX = "cameras.json"
READY_S = 20.0  # limit for the first picture of each camera: a pipeline may take 10 s to open
RESTART_S = 0.3  # pause before a process that died is started again
FRESH_S = 2.0  # a file whose newest frame is older has no writer
LET_GO_S = 3.0  # limit for a read that hangs


class CameraProcess:
    """The process that reads cameras `names` of `robot` into `slots`; none is started where all of them are written by
    others."""

    def __init__(self, robot: Robot, names: Iterable[str], slots: Path):
        self.waiting = {name for name in names if is_real(robot.cameras[name])}
        self._command = module_command(
            "runtime.cameras.process",
            "--robot",
            str(robot.path),
            "--slots",
            str(slots),
        )
        self._command += [word for name in sorted(self.waiting) for word in ("--camera", name)]
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None
        self.starts = 0
        self.process = self._start() if self.waiting else None

    def _start(self) -> subprocess.Popen[str]:
        # Its own session: Ctrl-C reaches only the parent, which ends this process once the arm has been lowered.
        self.starts += 1
        command = [*self._command, "--starter", str(os.getpid())]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    @property
    def pids(self) -> list[int]:
        return [] if self.process is None else [self.process.pid]

    def wait(self) -> None:
        """Until the first picture of each camera is there; raises CameraError for the first that cannot be used."""
        if self.process is None or self._watch is not None:
            return
        assert self.process.stdout is not None
        late = threading.Timer(READY_S, self.process.kill)
        late.start()
        try:
            while self.waiting:
                line = self.process.stdout.readline()
                if not line:
                    raise CameraError(
                        f"the camera process ended without a picture of camera '{min(self.waiting)}': see its message "
                        "above, "
                        f"or run `{' '.join(self._command)}` to see why."
                    )
                told = json.loads(line)
                if "error" in told:
                    raise CameraError(told["error"])
                self.waiting.discard(told["camera"])
        finally:
            late.cancel()
        self._watch = threading.Thread(target=self._keep_going, name="camera-process", daemon=True)
        self._watch.start()

    def _keep_going(self) -> None:
        assert self.process is not None
        while True:
            self.process.communicate()
            if self._ended.wait(RESTART_S):
                return
            self.process = self._start()

    def close(self) -> None:
        self._ended.set()
        if self._watch is not None:  # it may be about to start another one
            while self._watch.is_alive():
                self._terminate()
                self._watch.join(0.1)
        elif self.process is not None:
            self._terminate()
            self.process.communicate()

    def _terminate(self) -> None:
        if self.process is not None:
            self.process.terminate()


@contextlib.contextmanager
def open_cameras(robot: Robot, wanted: Iterable[str], slots: Path) -> Iterator[dict[str, CameraSource]]:
    """Cameras `wanted` of the robot file, their process included, open as long as the context is. Raises
    CameraError."""
    names = checked(robot, wanted)
    process = CameraProcess(robot, names, slots)
    cameras: dict[str, CameraSource] = {}
    try:
        process.wait()
        for name in names:
            cameras[name] = open_camera(robot.cameras[name], slots)
        yield cameras
    finally:
        for camera in cameras.values():
            camera.close()
        process.close()


@contextlib.contextmanager
def looking_at(robot: Robot, name: str) -> Iterator[CameraSource]:
    """Camera `name` for a program that only looks: through the frames of the process that owns the camera, else through
    a camera process of its own. Raises CameraError."""
    found = owned(robot.cameras[name])
    if found is not None:
        camera = open_camera(robot.cameras[name], found)
        try:
            yield camera
        finally:
            camera.close()
        return
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(open_cameras(robot, [name], stack.enter_context(run_folder())))[name]


def checked(robot: Robot, wanted: Iterable[str]) -> list[str]:
    """The names of `wanted`; raises CameraError for one that the robot file does not have."""
    names = list(wanted)
    for name in names:
        if name not in robot.cameras:
            raise CameraError(
                f"the bundle needs camera '{name}', which {robot.path} does not have: add it under [camera.{name}]."
            )
    return names


def owned(config: CameraConfig) -> Path | None:
    """The folder where a process of this user keeps the frames of this camera's device, the newest at most 2 s old;
    None where no process does."""
    if not is_real(config):
        return None
    for index in parent().glob(f"harmowam-*/{INDEX}"):
        try:
            if index.stat().st_uid != os.getuid() or json.loads(index.read_text()).get(config.name) != _device(config):
                continue
            reader = FrameReader(frames_path(index.parent, config.name))
        except (OSError, ValueError, SlotError):  # somebody else's, or on its way in or out
            continue
        newest = reader.newest()
        reader.close()
        if newest is not None and time.monotonic_ns() - newest.t_capture_ns < FRESH_S * 1e9:
            return index.parent
    return None


def _device(config: CameraConfig) -> str:
    """A camera's source by the one name that all its other names lead to."""
    return str(Path(node(config.source)).resolve()) if "://" not in config.source else config.source


def _report(**told: str) -> None:
    """One line to the parent, whole: two cameras may speak at once."""
    with contextlib.suppress(BrokenPipeError):
        os.write(1, (json.dumps(told) + "\n").encode())


def _serve(config: CameraConfig, slots: Path, stop: threading.Event) -> None:
    try:
        serve(config, frames_path(slots, config.name), stop, lambda: _report(camera=config.name))
    except Mendable as e:
        _report(camera=config.name, error=str(e))


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description="Reads the real cameras of a robot file into files of frames.")
    parser.add_argument("--robot", required=True, help="a robot file")
    parser.add_argument("--slots", type=Path, required=True, help="folder of the files")
    parser.add_argument("--camera", action="append", required=True, help="name in the robot file; may be given again")
    parser.add_argument("--starter", type=int, default=os.getppid(), help="parent process; without it, this one ends")
    args = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    robot = load_robot(args.robot, calibrated=False)
    chosen = [robot.cameras[name] for name in checked(robot, args.camera)]
    write_whole(args.slots / INDEX, json.dumps({c.name: _device(c) for c in chosen}).encode())
    threads = [threading.Thread(target=_serve, args=(c, args.slots, stop), name=c.name, daemon=True) for c in chosen]
    for thread in threads:
        thread.start()
    while not stop.wait(0.2) and os.getppid() == args.starter:
        pass
    stop.set()
    deadline = time.monotonic() + LET_GO_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    os._exit(0)  # without clean-up: a capture must not be released under a read that hangs


if __name__ == "__main__":
    main()
