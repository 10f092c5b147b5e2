"""Keeps what happened during a run, and writes it as one episode folder: ticks, joint states, commands, Priors, pictures."""

from __future__ import annotations

import io
import json
import threading
from collections import deque
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.clock import prefer
from common.files import write_whole
from firmware_bridge.motion.messages import Command, JointState
from runtime.contracts import FastTick, Observation, Prior

FRAME_PERIOD_NS = 66_000_000  # about 15 pictures a second are kept
MAX_TICKS = 1 << 17  # 43 minutes at 50 Hz
PICTURE_BYTES = 256_000_000  # of JPEG: minutes at 640x480 (50 to 170 kB a pair of pictures), one or two at 1280x720
PRIOR_BYTES = 24_000_000
WAITING = 16  # pictures between the fast loop and the thread that compresses them
JPEG_QUALITY = 92
TICK = np.dtype(
    [
        ("t_ns", "i8"),
        ("t_capture_ns", "i8"),
        ("prior_age_ns", "i8"),
        ("t_wire_ns", "i8"),
        ("t_wire_capture_ns", "i8"),
        ("wire_seq", "i8"),
        ("gate", "f4"),
        ("heat_mass", "f4"),
        ("expert", "u1"),
        ("safety", "u1"),
        ("command", "f4", 6),
        ("measured", "f4", 6),
        ("goal", "f4", 6),
        ("sent_target", "f4", 6),
        ("reactive_target", "f4", 6),
        ("predictive_target", "f4", 6),
    ]
)
NOTHING = np.full(6, np.nan, np.float32)


class Recorder:
    """Recording costs the loops microseconds: rows go into memory that is there already, pictures to a thread that compresses
    them. What does not fit is dropped and counted; nothing ever waits. `on` False keeps nothing.
    """

    def __init__(self, on: bool = True) -> None:
        self.on = on
        self.dropped = 0
        self._rows: np.ndarray = np.zeros(MAX_TICKS, TICK)  # pages come into being when they are written to
        self._count = 0
        self._priors: list[tuple[int, int, int, np.ndarray]] = []
        self._prior_bytes = 0
        self._picture_ns = 0
        self._waiting: deque[tuple[int, dict[str, np.ndarray]]] = deque()
        self._pictures: list[tuple[int, dict[str, bytes]]] = []
        self._picture_bytes = 0
        self._wake = threading.Event()
        self._stop = False
        self._thread: threading.Thread | None = None

    def tick(self, obs: Observation, tick: FastTick, command: Command | None, state: JointState) -> None:
        """One turn of the fast loop. The frames of `obs` are kept by reference: nobody may write to them afterwards."""
        if not self.on:
            return
        if self._count < MAX_TICKS:
            self._rows[self._count] = (
                tick.t_ns, obs.t_capture_ns, tick.prior_age_ns, state.t_wire_ns, state.t_command_capture_ns, state.command_seq,
                tick.gate, tick.heat_mass, tick.expert, state.safety, NOTHING if command is None else command.q_rad,
                state.q_rad, state.goal_rad, tick.sent_target, tick.reactive_target, tick.predictive_target,
            )  # fmt: skip
            self._count += 1
        else:
            self.dropped += 1
        if obs.t_capture_ns - self._picture_ns >= FRAME_PERIOD_NS:
            self._picture_ns = obs.t_capture_ns
            if len(self._waiting) < WAITING and self._picture_bytes < PICTURE_BYTES:
                self._waiting.append((obs.t_capture_ns, obs.frames))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._compress, name="recorder", daemon=True)
                    self._thread.start()
                self._wake.set()
            else:
                self.dropped += 1

    def prior(self, prior: Prior) -> None:
        """One turn of the slow loop."""
        if not self.on:
            return
        if self._prior_bytes < PRIOR_BYTES:
            future = prior.future.astype(np.float16)
            self._priors.append((prior.seq, prior.t_capture_ns, prior.t_ready_ns, future))
            self._prior_bytes += future.nbytes
        else:
            self.dropped += 1

    def _compress(self) -> None:
        prefer(0)  # started by a loop with deadlines
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._waiting:
                t_ns, frames = self._waiting.popleft()
                packed = {}
                for camera, rgb in frames.items():
                    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
                    packed[camera] = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
                self._picture_bytes += sum(map(len, packed.values()))
                self._pictures.append((t_ns, packed))
            if self._stop:
                return

    def close(self) -> None:
        """Compress what still waits; recording is over."""
        self.on = False
        if self._thread is not None:
            self._stop = True
            self._wake.set()
            self._thread.join()
            self._thread = None

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write `episode.npz` and `meta.json` into `folder`, each atomically."""
        self.close()
        folder.mkdir(parents=True, exist_ok=True)
        rows = self._rows[: self._count]
        arrays: dict[str, Any] = {str(name): rows[name] for name in TICK.names or ()}
        arrays["picture_ns"] = np.array([t for t, _ in self._pictures], np.int64)
        for camera in self._pictures[0][1] if self._pictures else ():
            packed = [p[camera] for _, p in self._pictures]
            arrays[f"jpeg_{camera}"] = np.frombuffer(b"".join(packed), np.uint8)
            arrays[f"jpeg_{camera}_end"] = np.cumsum([len(p) for p in packed])
        for i, name in enumerate(("seq", "capture_ns", "ready_ns")):
            arrays[f"prior_{name}"] = np.array([p[i] for p in self._priors], np.int64)
        if self._priors:
            arrays["prior_future"] = np.stack([p[3] for p in self._priors])
        whole = io.BytesIO()
        np.savez_compressed(whole, **arrays)
        write_whole(folder / "episode.npz", whole.getvalue())
        write_whole(folder / "meta.json", json.dumps({**meta, "dropped": self.dropped}, indent=1, sort_keys=True))


def load_episode(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and meta of a recorded episode; pictures come back as `picture_CAMERA`, uint8[N,H,W,3] RGB."""
    with np.load(folder / "episode.npz") as raw:
        arrays = {k: raw[k] for k in raw.files}
    for name in [k for k in arrays if k.startswith("jpeg_") and k + "_end" in arrays]:
        packed, ends = arrays.pop(name), arrays.pop(name + "_end")
        bgr = [cv2.imdecode(piece, cv2.IMREAD_COLOR) for piece in np.split(packed, ends[:-1])]
        arrays["picture_" + name.removeprefix("jpeg_")] = np.stack([p[..., ::-1] for p in bgr if p is not None])
    return arrays, json.loads((folder / "meta.json").read_text())


def wire_ms(episode: dict[str, np.ndarray]) -> np.ndarray:
    """Capture to bytes on the wire of every command that got there, float64[n] ms."""
    _, first = np.unique(episode["wire_seq"], return_index=True)
    first = first[episode["t_wire_ns"][first] > 0]
    return (episode["t_wire_ns"][first] - episode["t_wire_capture_ns"][first]) / 1e6
