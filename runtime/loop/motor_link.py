"""The slots that a run shares with the motor process: it writes requests and commands, and reads joint states and
stamps."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from common.slots import SlotReader, SlotWriter
from common.timing import COMMAND_LIFE_S, MOTOR_SILENT_S
from firmware_bridge.motion.messages import COMMAND_BYTES, Command, Expert, JointState, RequestKind, SafetyState
from firmware_bridge.motion.motor import COMMAND_SLOT, REQUEST_SLOT
from firmware_bridge.motion.stamps import StampReader
from runtime.loop.delay import Lead
from runtime.loop.errors import RunError
from runtime.loop.record import RunRecord

KEPT = 64  # newest commands whose making is remembered


class MotorLink:
    """`sent`: the command in flight; `lead`: how long one takes from its making to the bus."""

    def __init__(self, slots: Path, record: RunRecord):
        self.record, self.lead = record, Lead()
        self.sent: Command | None = None
        self._slots = slots
        self._commands = SlotWriter(slots / COMMAND_SLOT, COMMAND_BYTES)
        self._requests = SlotWriter(slots / REQUEST_SLOT, 16)
        self._states: SlotReader | None = None
        self._stamps: StampReader | None = None
        self._made: dict[int, tuple[int, int, int]] = {}  # command -> frames taken, in its slot, time in the step; ns
        self._on_wire = 0  # number of the newest command that was seen there
        self._first: JointState | None = None

    def request(self, kind: RequestKind) -> None:
        self._requests.write(bytes([kind]))

    def state(self) -> JointState:
        """The newest joint state; raises RunError where there is none."""
        got = self._states.read() if self._states is not None else None
        if got is None:
            raise RunError("the motor process gives no joint state: check the guard's messages.")
        return JointState.unpack(got[0])

    def enable_torque(self, states: SlotReader, timeout_s: float = 3.0) -> None:
        """Ask for torque and wait until the motor process, whose states are in `states`, holds the arm; raises RunError
        with its reason."""
        self._states = states
        self.request(RequestKind.ARM)
        deadline = time.monotonic() + timeout_s
        while (state := self.state()).safety not in (SafetyState.HOLD, SafetyState.ACTIVE):
            if time.monotonic() > deadline or state.safety in (SafetyState.SAFE_STOP, SafetyState.FAULT):
                raise RunError(
                    f"the arm could not be armed ({state.reason or state.safety.name.lower()}): mend that and start "
                    "again."
                )
            time.sleep(0.005)

    def begin(self) -> None:
        """The loop begins: the motor clock is counted from its newest state."""
        self._stamps, self._first = StampReader(self._slots), self.state()

    def look(self) -> JointState:
        """The newest joint state; raises RunError when the arm has stopped or the motor process is silent."""
        state = self.state()
        if state.safety in (SafetyState.SAFE_STOP, SafetyState.FAULT):
            raise RunError(f"the motor process stopped the arm ({state.reason}): mend that, then start again.")
        if time.monotonic_ns() - state.t_ns > MOTOR_SILENT_S * 1e9:
            raise RunError("the motor process fell silent: see what is said of the arm, then start again.")
        return state

    def send(self, command: Command, taken_ns: int, engine_ns: int) -> None:
        """`taken_ns`: when its pictures were taken; `engine_ns`: how long its step took."""
        packed = command.pack()
        now = time.monotonic_ns()  # not after the write: it wakes the motor process, whose goals may be out by its end
        self._commands.write(packed)
        self.sent = command
        self._made[command.number] = (taken_ns, now, engine_ns)
        if len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        self.record.counts.first_command_ns = self.record.counts.first_command_ns or now

    def stay(self, state: JointState, now_ns: int) -> None:
        """Keep the arm where it came to rest: without commands the motor process would lower it. The command expires
        like any other."""
        still = np.zeros_like(state.goal_rad)
        stale_ns = now_ns + int(COMMAND_LIFE_S * 1e9)
        self._commands.write(Command(now_ns, stale_ns, state.goal_rad, still, Expert.NONE).pack())
        self.sent = None

    def book(self, state: JointState) -> None:
        """Book what the motor process did since the last look in counts and traces."""
        c, trace = self.record.counts, self.record.fast_trace
        if state.command_number != self._on_wire and state.t_wire_ns:
            self._on_wire = state.command_number
            c.followed += 1
            taken_ns, slot_ns, engine_ns = self._made.get(self._on_wire, (0, 0, 0))
            if slot_ns:
                trace.add("wire", state.t_wire_ns - slot_ns, slot_ns)
                trace.add("wire.observation", state.t_wire_ns - state.t_command_capture_ns, state.t_command_capture_ns)
                trace.add("wire.overhead", state.t_wire_ns - taken_ns - engine_ns, taken_ns)
                self.lead.see(state, slot_ns)
        new = self._stamps.newest() if self._stamps is not None else None
        if new is not None:
            for name, (start, duration) in new.spans.items():
                self.record.motor_trace.add(f"motor.{name}", duration, start)
            self.record.motor_trace.add("motor.wake", new.began_ns - new.due_ns, new.due_ns)
            c.jerk_rms, c.jerk_max = new.jerk_rms, new.jerk_max
        first = self._first or state
        c.motor_shift_ns = state.shifted_ns - first.shifted_ns
        c.motor_ns = state.t_ns - first.t_ns - c.motor_shift_ns
        c.motor_ticks = state.tick + state.missed_ticks - first.tick - first.missed_ticks
