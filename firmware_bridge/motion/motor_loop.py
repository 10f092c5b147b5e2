"""What the motor process does in a tick: decide, write, read. The same in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.lowering import REST_TOLERANCE
from firmware_bridge.motion.measurement import NO_REPLY, Measurement
from firmware_bridge.motion.messages import Command, JointState, RequestKind, SafetyState
from firmware_bridge.motion.safety import INSIST_S, Decision, Safety, blind

RELEASE_NS = 100_000_000
INSIST_NS = int(INSIST_S * 1e9)
TELEMETRY_EVERY = 10  # ticks: it waits for one with room, but no longer than this (nine servos that dawdle leave none)


class MotorLoop:
    """One arm, one safety machine. `tick(now, command, request)` does one period's work and says what was done.

    A tick decides by what was read at the end of the tick before, then writes the goals and asks all servos in one
    write to the port: a command that is there does not wait for six servos to answer. It reads first where nothing is
    armed, so that arming starts from the pose of that instant, and after a tick in which nobody answered.

    `late` gives a command that has come since `tick` was called, if any; who has one calls `telemetry` himself, when
    the tick's state is out.
    """

    def __init__(self, arm: Arm, energised: bool = False, late: Callable[[], Command | None] | None = None):
        self.arm, self.config = arm, arm.config
        self.safety = Safety(arm.config, energised)
        self.ticks = 0
        self._late = late
        self.finished = False
        self.holding: list[int] = []  # servos that could not be released at the end
        self.rested: bool | None = None  # whether the arm was at rest when its torque began to go down
        self._period_ns = int(1e9 / arm.config.motor_hz)
        self._torque: float | None = None
        self._releasing_ns = 0
        self._sent = (0, 0, 0)  # newest command on the wire: sequence, capture time, first time on the wire
        self._now_ns = self._began_ns = 0
        n = len(arm.config.ids)
        self._measured = Measurement(np.zeros(n), np.zeros(n), np.full(n, NO_REPLY, np.uint8))

    def tick(
        self,
        now_ns: int,
        command: Command | None,
        request: RequestKind,
        missed: int = 0,
        pressed: bool = False,
        shifted_ns: int = 0,
    ) -> JointState:
        """`missed` periods and `shifted_ns`: what the clock did, for the record. `pressed`: the emergency stop. Raises
        PortError when the port is lost, ArmError when a servo does not take its torque."""
        bus = self.arm.bus
        began = self._began_ns = bus.port.now_ns()
        self._now_ns = now_ns
        bus.until_ns = began + self._period_ns * 4 // 10  # a retry must not delay the next tick
        read_first = self.safety.state == SafetyState.DISARMED or blind(self._measured)
        if read_first:
            self._measured = self.arm.read()
        d = self.safety.step(now_ns, command, request, self._measured, self.arm.telemetry, pressed)
        if self.rested is None and (d.release or d.torque is not None):
            away = np.abs(self._measured.q - np.array(self.config.rest))[:-1]  # a gripper may hold something
            self.rested = bool((away < REST_TOLERANCE).all())
        self._switch(d, now_ns, began)
        if d.goal is not None and not d.arm:
            self._drive(d, now_ns, command, read_first)
        elif not read_first:
            self._measured = self.arm.read()
        if self._late is None:
            self.telemetry()
        self.ticks += 1
        return self._said(missed, shifted_ns)

    def _switch(self, d: Decision, now_ns: int, began: int) -> None:
        """Switch the torque on, ramp it down or switch it off, as decided; `began`: of the tick, by the bus's clock."""
        bus = self.arm.bus
        if d.arm:
            bus.until_ns = None
            self.arm.torque_on()
        elif d.release:
            if not self.finished:
                bus.until_ns = began + RELEASE_NS  # the guard must not take it for a stall
                self.holding = self.arm.torque_off()
                self._releasing_ns = self._releasing_ns or now_ns
                self.finished = not self.holding or now_ns - self._releasing_ns > INSIST_NS
        elif d.torque is not None and (self._torque is None or abs(d.torque - self._torque) > 0.02):
            self.arm.set_torque(d.torque)
            self._torque = d.torque

    def _drive(self, d: Decision, now_ns: int, command: Command | None, measured: bool) -> None:
        """Send the goal of the decision, or one that a later `command` corrects; read the servos unless `measured`."""
        assert d.goal is not None
        goal = d.goal
        late = self._late() if self._late is not None else None  # deciding takes its time
        if late is not None and (revised := self.safety.revise(now_ns, late, self._measured)) is not None:
            goal, command = revised, late
        if measured:
            self.arm.write_goals(goal)
        else:
            self._measured = self.arm.exchange(goal)
        if command is not None and d.state == SafetyState.ACTIVE:
            self._book(command)
            if blind(self._measured):  # brake now, not a tick later
                self.revise(command)

    def _said(self, missed: int, shifted_ns: int) -> JointState:
        """What the tick has left behind, for everybody."""
        measured = self._measured
        state, reason = self.safety.state, self.safety.reason
        goal = self.safety.goal if state != SafetyState.DISARMED else measured.q
        return JointState(
            self._now_ns,
            measured.q.astype(np.float32),
            measured.qd.astype(np.float32),
            np.asarray(goal, np.float32),
            self.arm.current,
            self.arm.temperature,
            self.arm.voltage,
            measured.bits,
            state,
            reason,
            self._sent[2],
            self._sent[1],
            self._sent[0],
            self.ticks,
            missed,
            shifted_ns,
        )

    def telemetry(self) -> None:
        """Ask one servo how it is, if the tick leaves room for it."""
        spent_ns = self.arm.bus.port.now_ns() - self._began_ns
        room = spent_ns < self._period_ns * 6 // 10 or self.ticks % TELEMETRY_EVERY == 0
        failing = (self._measured.bits & NO_REPLY).any()  # there it would only make the next tick late
        if room and not failing:
            self.arm.read_telemetry()

    def revise(self, command: Command) -> None:
        """Correct the goal of the last tick: a command has come since, which need not wait for the next one, or nobody
        answered."""
        goal = self.safety.revise(self._now_ns, command, self._measured)
        if goal is not None:
            self.arm.write_goals(goal)
            self._book(command)

    def _book(self, command: Command) -> None:
        """Goals made for `command` have just been handed to the port."""
        if command.number != self._sent[0]:
            self._sent = (command.number, command.t_capture_ns, self.arm.bus.told_ns)
