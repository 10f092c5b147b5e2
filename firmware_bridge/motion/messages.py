"""Records between the policy and the motor process: `Command` to it, `JointState` from it.

Both have a largest size, so that a slot (a memory-mapped file with the newest value) can hold them; `pack` and
`unpack` are the only encoders. Times are `time.monotonic_ns()`; angles are in rad.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

import numpy as np

MAX_JOINTS = 8


class SafetyState(enum.IntEnum):
    """States of the motor process. SAFE_STOP and FAULT are latched: the motor process releases the arm and ends, and
    only the operator starts it again."""

    DISARMED = 0
    ARMING = 1
    ACTIVE = 2
    HOLD = 3
    SAFE_STOP = 4
    FAULT = 5


class Expert(enum.IntEnum):
    """Which expert of the policy made a command. NONE: a script, calibration or test; PLAN: a policy that has action
    chunks but no experts."""

    NONE = 0
    REACTIVE = 1
    PREDICTIVE = 2
    PLAN = 3


class RequestKind(enum.IntEnum):
    """What the operator, or a `harmowam` command, asks of the motor process."""

    NONE = 0
    ARM = 1  # torque on at the measured pose, then follow commands
    HOLD = 2  # keep the present goal, torque on
    LOWER = 3  # move to the rest pose, ramp the torque down, release, exit


@dataclass(frozen=True)
class Command:
    """Joint targets for one instant.

    The motor process extrapolates `q_rad + qd_rad_s * (now - t_apply_ns)` until `t_stale_ns`; after that it brakes and
    holds.
    """

    t_apply_ns: int
    t_stale_ns: int
    q_rad: np.ndarray  # float32[J], gripper last
    qd_rad_s: np.ndarray  # float32[J]
    expert: Expert = Expert.NONE
    gate: float = 0.0  # probability of interaction
    t_capture_ns: int = 0  # capture time of the observation this command was made from
    number: int = 0  # count of commands, by the writer

    _HEAD = struct.Struct("<qqqqBBf")

    def pack(self) -> bytes:
        n = len(self.q_rad)
        head = self._HEAD.pack(
            self.t_apply_ns, self.t_stale_ns, self.t_capture_ns, self.number, n, int(self.expert), float(self.gate)
        )
        return head + np.asarray(self.q_rad, "<f4").tobytes() + np.asarray(self.qd_rad_s, "<f4").tobytes()

    @classmethod
    def unpack(cls, raw: bytes) -> Command:
        """Raises ValueError when `raw` is no command."""
        if len(raw) < cls._HEAD.size:
            raise ValueError(f"{len(raw)} bytes are no command")
        t_apply, t_stale, t_capture, number, n, expert, gate = cls._HEAD.unpack_from(raw)
        arrays = np.frombuffer(raw, "<f4", 2 * n, cls._HEAD.size).copy()
        return cls(t_apply, t_stale, arrays[:n], arrays[n:], Expert(expert), gate, t_capture, number)


COMMAND_BYTES = Command._HEAD.size + 2 * 4 * MAX_JOINTS


@dataclass(frozen=True)
class JointState:
    """One measurement of the whole arm, and the state of the motor process.

    `status_bits`: condition bits in the layout of Feetech's register 65, with the bits of `measurement`. `goal_rad`:
    the last goal sent to the servos. `command_number`: the newest command that goals were sent for; `t_wire_ns`: when
    its first goal was written to the port; `t_command_capture_ns`: capture time of its observation; all 0 before the
    first command. `shifted_ns`: by how much the ticks were moved, since the start, to leave time for commands.
    """

    t_ns: int
    q_rad: np.ndarray  # float32[J]
    qd_rad_s: np.ndarray  # float32[J]
    goal_rad: np.ndarray  # float32[J]
    current_a: np.ndarray  # float32[J], newest telemetry
    temperature_c: np.ndarray  # float32[J]
    voltage_v: np.ndarray  # float32[J]
    status_bits: np.ndarray  # uint8[J]
    safety: SafetyState = SafetyState.DISARMED
    reason: str = ""  # why it is not ACTIVE, at most 96 bytes
    t_wire_ns: int = 0
    t_command_capture_ns: int = 0
    command_number: int = 0
    tick: int = 0
    missed_ticks: int = 0
    shifted_ns: int = 0

    _HEAD = struct.Struct("<qqqqqqqBB96s")

    def pack(self) -> bytes:
        n = len(self.q_rad)
        head = self._HEAD.pack(
            self.t_ns,
            self.t_wire_ns,
            self.t_command_capture_ns,
            self.command_number,
            self.tick,
            self.missed_ticks,
            self.shifted_ns,
            n,
            int(self.safety),
            self.reason.encode()[:96],
        )
        floats = (self.q_rad, self.qd_rad_s, self.goal_rad, self.current_a, self.temperature_c, self.voltage_v)
        return (
            head
            + b"".join(np.asarray(a, "<f4").tobytes() for a in floats)
            + np.asarray(self.status_bits, "u1").tobytes()
        )

    @classmethod
    def unpack(cls, raw: bytes) -> JointState:
        t, t_wire, t_capture, command_number, tick, missed, shifted, n, safety, reason = cls._HEAD.unpack_from(raw)
        offset = cls._HEAD.size
        q, qd, goal, cur, temp, volt = np.frombuffer(raw, "<f4", 6 * n, offset).reshape(6, n).copy()
        bits = np.frombuffer(raw, "u1", n, offset + 24 * n).copy()
        text = reason.rstrip(b"\0").decode(errors="replace")
        return cls(
            t,
            q,
            qd,
            goal,
            cur,
            temp,
            volt,
            bits,
            SafetyState(safety),
            text,
            t_wire,
            t_capture,
            command_number,
            tick,
            missed,
            shifted,
        )


JOINT_STATE_BYTES = JointState._HEAD.size + 25 * MAX_JOINTS
