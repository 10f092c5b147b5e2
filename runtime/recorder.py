"""Keeps what happened during a run, and writes it as one episode folder: ticks, joint states, commands, Priors, pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from firmware_bridge.messages import Command, JointState
from runtime.contracts import FastTick, Observation, Prior

FRAME_PERIOD_NS = 66_000_000  # about 15 pictures a second are kept
MAX_FRAMES, MAX_TICKS = 1200, 400_000
TICK_COLUMNS = {
    "t_ns": np.int64,
    "t_capture_ns": np.int64,
    "prior_age_ns": np.int64,
    "gate": np.float32,
    "expert": np.uint8,
    "heat_mass": np.float32,
}


class Recorder:
    """Appending costs microseconds; full buffers drop and count, they never block. `frames` False keeps no pictures."""

    def __init__(self) -> None:
        self.frames = True
        self.dropped = 0
        self._ticks: list[tuple[Any, ...]] = []
        self._joints: list[np.ndarray] = []
        self._pictures: list[tuple[int, dict[str, np.ndarray]]] = []
        self._priors: list[tuple[int, int, np.ndarray]] = []
        self._picture_ns = 0

    def tick(self, obs: Observation, tick: FastTick, command: Command | None, state: JointState) -> None:
        if len(self._ticks) >= MAX_TICKS:
            self.dropped += 1
            return
        self._ticks.append((tick.t_ns, obs.t_capture_ns, tick.prior_age_ns, tick.gate, tick.expert, tick.heatmap_peak))
        q = command.q_rad if command is not None else np.full(6, np.nan, np.float32)
        self._joints.append(
            np.concatenate(
                [q, state.q_rad, state.goal_rad, tick.sent_target, tick.reactive_target, tick.predictive_target]
            )
        )
        if self.frames and obs.t_capture_ns - self._picture_ns >= FRAME_PERIOD_NS:
            if len(self._pictures) < MAX_FRAMES:
                self._picture_ns = obs.t_capture_ns
                self._pictures.append((obs.t_capture_ns, {k: v.copy() for k, v in obs.frames.items()}))
            else:
                self.dropped += 1

    def prior(self, prior: Prior) -> None:
        if self.frames and len(self._priors) < MAX_FRAMES:
            self._priors.append((prior.t_capture_ns, prior.t_ready_ns, prior.future.astype(np.float16)))

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write `episode.npz` and `meta.json` into `folder`, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        columns: list[Any] = (
            list(zip(*self._ticks, strict=True)) if self._ticks else [[] for _ in range(len(TICK_COLUMNS))]
        )
        joints = np.array(self._joints, np.float32).reshape(len(self._joints), 6, 6)
        arrays: dict[str, Any] = {
            name: np.array(c, dtype) for (name, dtype), c in zip(TICK_COLUMNS.items(), columns, strict=True)
        }
        for i, name in enumerate(
            ("command", "measured", "goal", "sent_target", "reactive_target", "predictive_target")
        ):
            arrays[name] = joints[:, i]
        arrays["picture_ns"] = np.array([t for t, _ in self._pictures], np.int64)
        for camera in self._pictures[0][1] if self._pictures else ():
            arrays[f"picture_{camera}"] = np.stack([p[camera] for _, p in self._pictures])
        arrays["prior_capture_ns"] = np.array([p[0] for p in self._priors], np.int64)
        arrays["prior_ready_ns"] = np.array([p[1] for p in self._priors], np.int64)
        if self._priors:
            arrays["prior_future"] = np.stack([p[2] for p in self._priors])
        partial = folder / "episode.partial.npz"
        with open(partial, "wb") as f:
            np.savez_compressed(f, **arrays)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, folder / "episode.npz")
        text = json.dumps({**meta, "dropped": self.dropped}, indent=1, sort_keys=True)
        (folder / "meta.partial").write_text(text)
        os.replace(folder / "meta.partial", folder / "meta.json")


def load_episode(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and meta of a recorded episode."""
    with np.load(folder / "episode.npz") as raw:
        arrays = {k: raw[k] for k in raw.files}
    return arrays, json.loads((folder / "meta.json").read_text())
