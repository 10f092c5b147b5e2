"""What the fast loop sees: the newest pictures of all cameras, which camera gives none, and faults of the pictures."""

from __future__ import annotations

import time

from runtime.cameras.frames import Frame
from runtime.cameras.sources import CameraSource
from runtime.cameras.watch import CameraWatch, apart
from runtime.loop.errors import RunError


class Eyes:
    """All cameras of a run. `arrived_ns`: when each one's newest picture was there; `faults`: what `look` found."""

    def __init__(self, cameras: dict[str, CameraSource], fast_hz: float):
        self.cameras = cameras
        self.seen = dict.fromkeys(cameras, 0)  # number of the newest picture that the fast loop has used
        self.arrived_ns = dict.fromkeys(cameras, 0)
        self.faults: tuple[str, ...] = ()
        self._noted = dict.fromkeys(cameras, 0)  # newest picture that was seen to come while another did not
        self._apart_ns = int(1e9 / fast_hz)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._watches = {n: CameraWatch(n, fast_hz, c.noisy, c.delay_ns) for n, c in cameras.items()}

    def begin(self, now_ns: int) -> None:
        """Count every camera as in time at `now_ns`."""
        self.arrived_ns = dict.fromkeys(self.cameras, now_ns)

    def pass_over(self) -> None:
        """Count the pictures that are there as used."""
        self.seen = {name: camera.frame_number for name, camera in self.cameras.items()}

    def wait(self, until_ns: int) -> bool:
        """Whether every camera gave a new picture before `until_ns`; returns the moment they are there."""
        for name, camera in self.cameras.items():
            if not camera.wait(self.seen[name], until_ns):
                self._note_who_came()
                return False
            camera.newest()  # copies it while the others are still to come
        return True

    def _note_who_came(self) -> None:
        """Note which cameras did give a picture, so that a fault names the one that did not."""
        for name, camera in self.cameras.items():
            if camera.frame_number > max(self.seen[name], self._noted[name]):
                self._noted[name], self.arrived_ns[name] = camera.frame_number, time.monotonic_ns()

    def frames(self) -> dict[str, Frame]:
        """The newest picture of each; raises RunError for a camera that has none, or one of another size than its
        first."""
        frames = {}
        for name, camera in self.cameras.items():
            frame = camera.newest()
            if frame is None:
                raise RunError(f"camera '{name}' stopped giving frames: check its cable.")
            shape = self._shapes.setdefault(name, frame.image.shape)
            if frame.image.shape != shape:
                raise RunError(
                    f"camera '{name}' changed from {shape[1]}x{shape[0]} to "
                    f"{frame.image.shape[1]}x{frame.image.shape[0]} while "
                    "driving: stop the program that did it, then start again."
                )
            frames[name] = frame
        return frames

    def take(self, now_ns: int) -> dict[str, Frame]:
        """`frames`, which count as used at `now_ns`."""
        frames = self.frames()
        self.seen = {name: frame.frame_number for name, frame in frames.items()}
        self.arrived_ns = dict.fromkeys(frames, now_ns)
        return frames

    def look(self, frames: dict[str, Frame], now_ns: int) -> None:
        """Look for faults of the pictures that came at `now_ns`. They change the health and no command, so this runs
        after the command is out."""
        stamps = {name: f.t_capture_ns for name, f in frames.items()}
        found = [fault for n, f in frames.items() for fault in self._watches[n].look(now_ns, f.t_capture_ns, f.image)]
        self.faults = (*found, *apart(stamps, self._apart_ns))
