"""What a log holds, and how the records that replay needs bit for bit are packed (channels encoded "harmowam").

The other channels are for other programs, too: `runtime.observe.schemas`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.errors import Mendable
from firmware_bridge.motion.messages import Command
from runtime.contracts import A, Observation, Prior

# Version 3: pictures, places, joints, commands and health in well-known schemas. Version 2: all of them packed like the
# other records, no predicted future. Version 1: shoulder_pan and wrist_roll mirrored, jaw shut at 0.
VERSION = 3
READABLE = (2, 3)
ENCODING = "harmowam"
STEP, PRIOR, FUTURE, STATE, HEALTH = "fast/step", "slow/prior", "slow/future", "arm/state", "health"
CAMERA = "camera/"  # followed by the camera's name
_TICK = struct.Struct("<qqqqBB")  # step's time, observation, its capture time, Prior's number (-1: none), flags, joints
# Number, observation, its capture time, step's time, ready, chunk rows, joints (above PAST_BITS: older observations).
_PRIOR = struct.Struct("<qqqqqII")
PAST_BITS = 16
_FUTURE = struct.Struct("<qq4I")  # Prior's number, capture time of its observation, shape; then float16
# Flags: the fast step's memory was cleared before this step; its command went to the arm; the step before it was
# dropped.
RESET, SENT, AFTER_GAP = 1, 2, 4
DIGEST_BYTES = 32  # of SHA-256, at the end of a Prior
CUT, DAMAGED = "cut", "damaged"  # `kind` of what `read_log` gives last where a file does not come to its end


class LogError(Mendable):
    """A log that cannot be written or read; one sentence and the next step."""


@dataclass(frozen=True)
class TickRecord:
    """One fast step: what went in (frames by their numbers) and what came out. `command` is raw, before any limiter."""

    t_ns: int
    number: int
    t_capture_ns: int
    prior_number: int  # -1: none
    reset: bool
    sent: bool
    q_rad: np.ndarray  # float32[J], as the step saw it: rolled forward
    qd_rad_s: np.ndarray
    frames: dict[str, int]
    command: bytes  # `Command.pack()`, empty when the step gave none
    targets: np.ndarray  # float32[3,6]: reactive, predictive, sent
    after_gap: bool = False  # the step before it did not fit into the queue and is not in the log


@dataclass(frozen=True)
class PriorRecord:
    """One slow step: which observation went in, with which measured joints, and what came out (tokens and future by
    hash)."""

    number: int
    observation: int
    t_capture_ns: int
    t_ns: int
    t_ready_ns: int
    q_rad: np.ndarray
    qd_rad_s: np.ndarray
    chunk: np.ndarray  # float32[K,A]
    digest: bytes
    past: tuple[tuple[int, np.ndarray], ...] = ()  # number and measured joints of the older observations


@dataclass(frozen=True)
class FrameRecord:
    camera: str
    frame_number: int
    t_capture_ns: int
    image: np.ndarray  # uint8[H,W,3] RGB


@dataclass(frozen=True)
class FutureRecord:
    """What the world model predicted in one slow step: float16[H,C,h,w] latents, for people to look at (`digest` holds
    them exactly)."""

    number: int
    t_capture_ns: int
    future: np.ndarray


def digest(prior: Prior) -> bytes:
    """SHA-256 of tokens and predicted future."""
    made = hashlib.sha256(np.ascontiguousarray(prior.tokens).data)
    made.update(np.ascontiguousarray(prior.future).data)
    return made.digest()


def packed_tick(
    t_ns: int,
    obs: Observation,
    frames: Mapping[str, int],
    prior_number: int,
    command: Command | None,
    targets: np.ndarray,
    flags: int,
) -> bytes:
    """A `TickRecord`; `frames` are the numbers of its pictures."""
    raw = _TICK.pack(t_ns, obs.number, obs.t_capture_ns, prior_number, flags, len(obs.q_rad))
    raw += np.concatenate([obs.q_rad, obs.qd_rad_s, targets.ravel()]).astype("<f4").tobytes()
    names = json.dumps(frames).encode()
    return raw + struct.pack("<I", len(names)) + names + (command.pack() if command is not None else b"")


def packed_prior(prior: Prior, obs: Observation, t_ns: int) -> bytes:
    """A `PriorRecord`."""
    joints = len(obs.q_rad) | len(obs.past) << PAST_BITS
    raw = _PRIOR.pack(prior.number, obs.number, prior.t_capture_ns, t_ns, prior.t_ready_ns, len(prior.chunk), joints)
    raw += np.array([o.number for o in obs.past], "<i8").tobytes()
    floats = [obs.q_rad, obs.qd_rad_s, *(o.q_rad for o in obs.past), prior.chunk.ravel()]
    return raw + np.concatenate(floats).astype("<f4").tobytes() + digest(prior)


def packed_future(prior: Prior) -> bytes:
    """A `FutureRecord`."""
    return _FUTURE.pack(prior.number, prior.t_capture_ns, *prior.future.shape) + prior.future.astype("<f2").tobytes()


def tick_of(raw: bytes) -> TickRecord:
    t, number, captured, prior_number, flags, n = _TICK.unpack_from(raw)
    at = _TICK.size
    floats = np.frombuffer(raw, "<f4", 2 * n + 3 * A, at).copy()
    at += floats.nbytes
    (length,) = struct.unpack_from("<I", raw, at)
    frames = json.loads(raw[at + 4 : at + 4 + length])
    if not isinstance(frames, dict) or not all(type(number) is int for number in frames.values()):
        raise ValueError("a step whose pictures have no numbers")
    q, qd, targets = floats[:n], floats[n : 2 * n], floats[2 * n :].reshape(3, A)
    command = raw[at + 4 + length :]
    if command and len(Command.unpack(command).q_rad) != n:
        raise ValueError("a command of another number of joints than were measured")
    return TickRecord(
        t,
        number,
        captured,
        prior_number,
        bool(flags & RESET),
        bool(flags & SENT),
        q,
        qd,
        frames,
        command,
        targets,
        bool(flags & AFTER_GAP),
    )


def prior_of(raw: bytes) -> PriorRecord:
    number, observation, captured, t, ready, k, joints = _PRIOR.unpack_from(raw)
    n, older = joints & (1 << PAST_BITS) - 1, joints >> PAST_BITS
    at = _PRIOR.size + 8 * older
    numbers = np.frombuffer(raw[_PRIOR.size : at], "<i8")
    floats = np.frombuffer(raw[at:-DIGEST_BYTES], "<f4").copy()
    q, qd, *past = floats[: (2 + older) * n].reshape(2 + older, n)
    chunk = floats[(2 + older) * n :].reshape(k, -1)
    seen = tuple((int(i), x) for i, x in zip(numbers, past, strict=True))
    return PriorRecord(number, observation, captured, t, ready, q, qd, chunk, raw[-DIGEST_BYTES:], seen)


def future_of(raw: bytes) -> FutureRecord:
    number, captured, *shape = _FUTURE.unpack_from(raw)
    return FutureRecord(number, captured, np.frombuffer(raw, "<f2", offset=_FUTURE.size).reshape(shape))
