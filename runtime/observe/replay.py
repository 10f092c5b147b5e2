"""Run the same engines again on the recorded inputs: the actions must be identical, bit for bit."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import Camera
from firmware_bridge.motion.messages import Command
from runtime.bundle import Bundle, sha256
from runtime.contracts import Observation, Prior
from runtime.observe.log import (
    CUT,
    DAMAGED,
    FrameRecord,
    LogError,
    PriorRecord,
    TickRecord,
    digest,
    read_log,
    read_meta,
)
from runtime.policies import open_policy

KEPT = 256  # newest observations and Priors: a slow step may look back that far


@dataclass(frozen=True)
class Difference:
    """The first thing that came out otherwise than recorded. `number` counts fast steps or Priors of the log."""

    what: str
    number: int
    t_s: float  # since the first step
    recorded: list[float]
    replayed: list[float]


@dataclass(frozen=True)
class Replay:
    """What was compared and what differed first, if anything. `gap`: where records are missing and comparing had to end; `damaged`:
    they are missing from a file that had them."""

    steps: int
    priors: int
    difference: Difference | None
    gap: str = ""
    damaged: bool = False

    @property
    def identical(self) -> bool:
        return self.difference is None and self.steps > 0 and not self.damaged


def bundle_digest(bundle: Bundle) -> str:
    """SHA-256 of the bundle's manifest, which holds the hash of every engine."""
    return sha256(bundle.path / "manifest.json")


def run_meta(bundle: Bundle, task: str, policy: str, cameras: dict[str, Camera], **more: Any) -> dict[str, Any]:
    """What a log must know about its run so that it can be replayed. `policy`: its mode; `more`: "engine" (default "cpu") and rates."""
    calibrations = {name: camera.to_json() for name, camera in cameras.items()}
    return {
        "task": task, "policy": policy, "bundle": str(bundle.path), "bundle_sha256": bundle_digest(bundle),
        "calibrations": calibrations, **more,
    }  # fmt: skip


def _floats(command: bytes) -> list[float]:
    return Command.unpack(command).q_rad.tolist() if command else []


class _Player:
    def __init__(self, bundle: Bundle, meta: dict[str, Any]):
        cameras = {name: Camera.from_json(c) for name, c in meta["calibrations"].items()}
        policy = open_policy(
            bundle, meta["task"], cameras, mode=meta["policy"], engine=meta.get("engine", "cpu"), ends=meta.get("ends")
        )
        self.slow, self.fast = policy.slow, policy.fast
        self.frames: dict[str, FrameRecord] = {}
        self.observations: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self.priors: OrderedDict[int, Prior] = OrderedDict()
        self.waiting: list[PriorRecord] = []
        self.newest = -1  # number of the newest fast step
        self.began_ns = 0

    def _seconds(self, t_ns: int) -> float:
        self.began_ns = self.began_ns or t_ns
        return round((t_ns - self.began_ns) * 1e-9, 3)

    def prior(self, r: PriorRecord) -> Difference | None:
        """Raises KeyError when its observation, or the Prior before it (which it goes on from), is not in the log.

        A quick slow step may be in the log before the fast step that took its pictures, which is written once its command is out.
        """
        if r.observation > self.newest:
            self.waiting.append(r)
            return None
        if self.slow.remembers and r.number != self.slow.seq + 1:
            raise KeyError(r.number)
        frames = self.observations[r.observation]
        obs = Observation(r.t_capture_ns, frames, r.q_rad, r.qd_rad_s, r.observation)
        self.slow.seq = r.number - 1
        made = self.slow.step(r.t_ns, obs)
        self.priors[r.number] = made
        while len(self.priors) > KEPT:
            self.priors.popitem(last=False)
        if made.chunk.tobytes() != r.chunk.tobytes():
            return Difference(
                "Prior's chunk", r.number, self._seconds(r.t_ns), r.chunk[0].tolist(), made.chunk[0].tolist()
            )
        if digest(made) != r.digest:
            return Difference("Prior's tokens or predicted future", r.number, self._seconds(r.t_ns), [], [])
        return None

    def step(self, r: TickRecord) -> Difference | None:
        """Raises KeyError when a frame or the Prior is not in the log."""
        frames = {name: self.frames[name].image for name in r.frames}
        for name, seq in r.frames.items():
            if self.frames[name].seq != seq & 0xFFFFFFFF:
                raise KeyError(name)
        self.observations[r.number] = frames
        while len(self.observations) > KEPT:
            self.observations.popitem(last=False)
        self.newest = r.number
        while self.waiting and self.waiting[0].observation <= r.number:
            if difference := self.prior(self.waiting.pop(0)):
                return difference
        prior = self.priors[r.prior] if r.prior >= 0 else None
        if r.reset:
            self.fast.reset()
        if r.command:
            self.fast.seq = Command.unpack(r.command).seq - 1  # a run's warming up has counted, too
        obs = Observation(r.t_capture_ns, frames, r.q_rad, r.qd_rad_s, r.number)
        command, tick = self.fast.step(r.t_ns, obs, prior)
        packed = b"" if command is None else command.pack()
        if packed != r.command:
            return Difference("command", r.number, self._seconds(r.t_ns), _floats(r.command), _floats(packed))
        targets = np.stack([tick.reactive_target, tick.predictive_target, tick.sent_target])
        if targets.astype("<f4").tobytes() != r.targets.tobytes():
            return Difference(
                "target", r.number, self._seconds(r.t_ns), r.targets.ravel().tolist(), targets.ravel().tolist()
            )
        self._seconds(r.t_ns)
        return None


def replay(log: Path, bundle_path: Path | None = None) -> Replay:
    """Every recorded step once more, through the bundle of the run or `bundle_path`; stops at the first difference.

    Raises LogError when the log cannot be read or was made with another bundle, BundleError when the bundle cannot.
    """
    meta = read_meta(log)
    bundle = Bundle.load(bundle_path or Path(meta["bundle"]))
    if bundle_path is None and bundle_digest(bundle) != meta["bundle_sha256"]:
        raise LogError(
            f"{meta['bundle']} is not the bundle that {log} was recorded with (another hash): name that one with --bundle, "
            "or this one to see where its actions differ."
        )
    player = _Player(bundle, meta)
    steps = priors = 0
    records = iter(read_log(log))
    for record in records:
        try:
            if isinstance(record, FrameRecord):
                player.frames[record.camera] = record
            elif isinstance(record, PriorRecord):
                difference = player.prior(record)
                if difference:
                    return Replay(steps, priors, difference)
                priors += 1
            elif isinstance(record, TickRecord):
                if record.after_gap:
                    raise KeyError(record.number)
                difference = player.step(record)
                if difference:
                    return Replay(steps, priors, difference)
                steps += 1
            elif isinstance(record, dict) and record.get("kind") == CUT:
                return Replay(steps, priors, None, "the log was cut off there, and has no end")
            elif isinstance(record, dict) and record.get("kind") == DAMAGED:
                return Replay(steps, priors, None, f"the log is damaged there ({record['why']})", damaged=True)
        except KeyError:
            number = record.number if isinstance(record, (PriorRecord, TickRecord)) else 0
            missing = f"records before number {number} are missing"
            # A record that was wiped out whole is told from one that was never written at the file's end only.
            if any(isinstance(r, dict) and r.get("kind") == DAMAGED for r in records):
                return Replay(steps, priors, None, f"{missing} (the log is damaged)", damaged=True)
            return Replay(steps, priors, None, f"{missing} (the disk was too slow)")
    return Replay(steps, priors, None)
