"""Run the same engines again on the recorded inputs: the actions must be identical bit for bit, or within some degrees
on another kind of processor."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import Camera
from firmware_bridge.motion.messages import Command
from runtime.bundle import Bundle, sha256
from runtime.contracts import Observation, Prior
from runtime.observe.log_reader import read_log, read_run
from runtime.observe.records import CUT, DAMAGED, FrameRecord, LogError, PriorRecord, TickRecord, digest
from runtime.policies import open_policy
from runtime.policies.finish import finish_of

KEPT = 256  # newest observations and Priors: a slow step may look back that far


@dataclass(frozen=True)
class Difference:
    """The first result that differs from the recorded one. `number`: of the fast step or the Prior."""

    what: str
    number: int
    t_s: float  # since the first step
    recorded: list[float]
    replayed: list[float]


@dataclass(frozen=True)
class Largest:
    """The command that is farthest from the recorded one, and the joint in which it is."""

    degrees: float
    joint: str
    number: int  # of the fast step
    t_s: float  # since the first step


@dataclass(frozen=True)
class Replay:
    """What was compared and the first difference, if any. `gap`: where records are missing, which ends the comparison;
    `damaged`: the file was damaged, and had them. `differing`: how many steps and Priors differ in some bit, which ends
    the comparison unless `within_deg` was given; `stopped`: it ended at a difference."""

    steps: int
    priors: int
    difference: Difference | None
    gap: str = ""
    damaged: bool = False
    within_deg: float | None = None
    differing: int = 0
    largest: Largest | None = None
    stopped: bool = False

    @property
    def identical(self) -> bool:
        compared = self.steps > 0 and (self.priors > 0 or not self.gap)
        return self.difference is None and compared and not self.damaged

    @property
    def passed(self) -> bool:
        """Identical, or no command farther off than `within_deg`."""
        if self.within_deg is None or self.stopped:
            return self.identical
        near = self.largest is None or self.largest.degrees <= self.within_deg
        return near and self.steps > 0 and not self.damaged


def bundle_digest(bundle: Bundle) -> str:
    """SHA-256 of the bundle's manifest, which holds the hash of every engine."""
    return sha256(bundle.path / "manifest.json")


def run_meta(bundle: Bundle, task: str, policy: str, cameras: dict[str, Camera], **more: Any) -> dict[str, Any]:
    """What a log must say of its run so that it can be replayed. `policy`: the policy's mode; `more`: "engine" (default
    "cpu") and rates."""
    calibrations = {name: camera.to_json() for name, camera in cameras.items()}
    joints = [j.name for j in bundle.manifest.joints]
    return {
        "task": task,
        "policy": policy,
        "bundle": str(bundle.path),
        "bundle_sha256": bundle_digest(bundle),
        "joints": joints,
        "calibrations": calibrations,
        **more,
    }


def _joints(command: bytes) -> list[float]:
    return Command.unpack(command).q_rad.tolist() if command else []


def _apart_deg(recorded: list[float], replayed: list[float]) -> np.ndarray:
    """Degrees between two commands, joint by joint; infinite where only one of them is a number or exists."""
    if len(recorded) != len(replayed):
        return np.array([np.inf])
    a, b = np.array(recorded), np.array(replayed)
    return np.where(np.isnan(a) & np.isnan(b), 0.0, np.nan_to_num(np.degrees(np.abs(a - b)), nan=np.inf))


class _Stop(Exception):
    """A difference that cannot be measured in degrees, or for which no tolerance was given."""


class _Damaged(Exception):
    """A record that cannot come from this run."""


class _Player:
    def __init__(self, bundle: Bundle, meta: dict[str, Any], within_deg: float | None):
        cameras = {name: Camera.from_json(c) for name, c in meta["calibrations"].items()}
        policy = open_policy(
            bundle, meta["task"], cameras, mode=meta["policy"], engine=meta.get("engine", "cpu"), ends=meta.get("ends")
        )
        self.slow, self.fast = policy.slow, policy.fast
        self.finish, self.then = finish_of(bundle), list(meta.get("then", []))
        if self.slow.remembers:
            raise LogError(
                f"a policy of kind '{policy.kind}' says that it remembers a plan before it has made one, so its first "
                "Prior cannot be made again: let `remembers` of its slow step be False until then."
            )
        self.joints = [j.name for j in bundle.manifest.joints]
        self.within_deg = within_deg
        self.first: Difference | None = None
        self.largest: Largest | None = None
        self.differing = 0
        self.frames: dict[str, FrameRecord] = {}
        self.observations: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()
        self.priors: OrderedDict[int, Prior] = OrderedDict()
        self.waiting: list[PriorRecord] = []
        self.newest = -1  # number of the newest fast step
        self.began_ns = 0

    def _seconds(self, t_ns: int) -> float:
        self.began_ns = self.began_ns or t_ns
        return round((t_ns - self.began_ns) * 1e-9, 3)

    def _found(self, what: str, number: int, t_ns: int, recorded: Sequence[float], replayed: Sequence[float]) -> None:
        """Note a difference; raises _Stop unless a tolerance was given."""
        self.first = self.first or Difference(what, number, self._seconds(t_ns), list(recorded), list(replayed))
        self.differing += 1
        if self.within_deg is None:
            raise _Stop

    def prior(self, r: PriorRecord) -> None:
        """Raises KeyError when its observation, or the Prior before it (which it goes on from), is not in the log.

        A quick slow step may be in the log before the fast step that took its pictures, which is written once its
        command is out.
        """
        if r.observation > self.newest:
            self.waiting.append(r)
            return
        if self.slow.remembers and r.number != self.slow.priors_made + 1:
            raise KeyError(r.number)
        frames = self.observations[r.observation]
        past = tuple(Observation(0, self.observations[i], q, np.zeros_like(q), i) for i, q in r.past)
        obs = Observation(r.t_capture_ns, frames, r.q_rad, r.qd_rad_s, r.observation, past)
        self.slow.priors_made = r.number - 1
        made = self.slow.step(r.t_ns, obs)
        if r.chunk.shape != made.chunk.shape:
            raise _Damaged(f"a plan of {r.chunk.shape}, this policy's have {made.chunk.shape}")
        self.slow.go_on_from(r.t_capture_ns, r.chunk)  # the recorded plan: differences do not add up
        if self.finish is not None and self.then and self.finish.told(made):
            self.finish.reset()
            self.slow.set_task(self.then.pop(0))
        self.priors[r.number] = made
        while len(self.priors) > KEPT:
            self.priors.popitem(last=False)
        if made.chunk.tobytes() != r.chunk.tobytes():
            self._found("Prior's chunk", r.number, r.t_ns, r.chunk[0].tolist(), made.chunk[0].tolist())
        elif digest(made) != r.digest:
            self._found("Prior's tokens or predicted future", r.number, r.t_ns, [], [])

    def step(self, r: TickRecord) -> None:
        """Raises KeyError when a frame or the Prior is not in the log."""
        frames = {name: self.frames[name].image for name in r.frames}
        for name, frame_number in r.frames.items():
            if self.frames[name].frame_number != frame_number & 0xFFFFFFFF:
                raise KeyError(name)
        self.observations[r.number] = frames
        while len(self.observations) > KEPT:
            self.observations.popitem(last=False)
        self.newest = r.number
        while self.waiting and self.waiting[0].observation <= r.number:
            self.prior(self.waiting.pop(0))
        prior = self.priors[r.prior_number] if r.prior_number >= 0 else None
        if r.reset:
            self.fast.reset()
        if r.command:
            self.fast.commands_made = Command.unpack(r.command).number - 1  # the run's warm-up made commands, too
        obs = Observation(r.t_capture_ns, frames, r.q_rad, r.qd_rad_s, r.number)
        command, tick = self.fast.step(r.t_ns, obs, prior)
        packed = b"" if command is None else command.pack()
        targets = np.stack([tick.reactive_target, tick.predictive_target, tick.sent_target])
        self._seconds(r.t_ns)
        if packed != r.command:
            self._command_differs(r, packed)
        elif targets.astype("<f4").tobytes() != r.targets.tobytes():
            self._found("target", r.number, r.t_ns, r.targets.ravel().tolist(), targets.ravel().tolist())

    def _command_differs(self, r: TickRecord, packed: bytes) -> None:
        recorded, replayed = _joints(r.command), _joints(packed)
        self._found("command", r.number, r.t_ns, recorded, replayed)
        apart = _apart_deg(recorded, replayed)
        if not np.isfinite(apart).all():
            raise _Stop
        worst = int(np.argmax(apart))
        if self.largest is None or apart[worst] > self.largest.degrees:
            self.largest = Largest(float(apart[worst]), self.joints[worst], r.number, self._seconds(r.t_ns))


def _bundle_of(log: Path, meta: dict[str, Any], other: Path | None) -> Bundle:
    bundle = Bundle.load(other or Path(meta["bundle"]))
    if other is None and bundle_digest(bundle) != meta["bundle_sha256"]:
        raise LogError(
            f"{meta['bundle']} is not the bundle that {log} was recorded with (another hash): name that one with "
            "--bundle, "
            "or this one to see where its actions differ."
        )
    return bundle


def replay(log: Path, bundle_path: Path | None = None, within_deg: float | None = None) -> Replay:
    """Every recorded step once more, through the bundle of the run or `bundle_path`; stops at the first difference, or
    with `within_deg` goes on after it (another processor rounds otherwise), each Prior from the plan recorded before
    it, and measures how far the commands are apart.

    Raises LogError when the log cannot be read or was made with another bundle, BundleError when the bundle cannot.
    """
    meta = read_run(log)
    bundle = _bundle_of(log, meta, bundle_path)
    for name in bundle.manifest.cameras:
        if name not in meta["calibrations"]:
            raise LogError(f"{log} was recorded without camera '{name}': name another bundle with --bundle.")
    player = _Player(bundle, meta, within_deg)
    steps = priors = 0
    gap, damaged, stopped = "", False, False
    records = iter(read_log(log))
    for record in records:
        try:
            if isinstance(record, FrameRecord):
                player.frames[record.camera] = record
            elif isinstance(record, PriorRecord):
                player.prior(record)
                priors += 1
            elif isinstance(record, TickRecord):
                if record.after_gap:
                    raise KeyError(record.number)
                player.step(record)
                steps += 1
            elif isinstance(record, dict) and record.get("kind") == CUT:
                gap = "the log was cut off there, and has no end"
            elif isinstance(record, dict) and record.get("kind") == DAMAGED:
                gap, damaged = f"the log is damaged there ({record['why']})", True
        except _Stop:
            stopped = True
        except _Damaged as e:
            gap, damaged = f"the log is damaged there ({e})", True
        except KeyError:
            number = record.number if isinstance(record, (PriorRecord, TickRecord)) else 0
            # Only the end of the file tells a record that was wiped out whole from one that was never written.
            damaged = any(isinstance(r, dict) and r.get("kind") == DAMAGED for r in records)
            gap = (
                f"records before number {number} are missing (the "
                f"{'log is damaged' if damaged else 'disk was too slow'})"
            )
        if gap or stopped:
            break
    return Replay(steps, priors, player.first, gap, damaged, within_deg, player.differing, player.largest, stopped)
