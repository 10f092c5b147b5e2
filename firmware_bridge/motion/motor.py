"""The motor process: decide, write, read, on an absolute clock. `MotorLoop.tick` is the same in virtual time.

python -m firmware_bridge.motion.motor --help
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from common.clock import Ticker, real_time
from common.logger import Logger
from common.run_folder import hold
from common.slots import SlotError, SlotReader, SlotWriter
from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port, PortError
from firmware_bridge.motion.arm import NO_REPLY, Arm, Measurement
from firmware_bridge.motion.config import ArmConfig, ArmError
from firmware_bridge.motion.endings import Exit
from firmware_bridge.motion.estop import EStop, EStopError
from firmware_bridge.motion.lowering import REST_TOLERANCE
from firmware_bridge.motion.messages import JOINT_STATE_BYTES, Command, JointState, RequestKind, SafetyState
from firmware_bridge.motion.narrator import LOG_FILE, Narrator
from firmware_bridge.motion.safety import INSIST_S, Safety, blind
from firmware_bridge.motion.stamps import StampWriter

STATE_SLOT = "state.slot"
COMMAND_SLOT = "command.slot"
REQUEST_SLOT = "request.slot"
MOTOR_CODE_SLOT = "motor-code.slot"  # the exit code, for whoever is not the parent of the motor process
SAYS = "guard: "  # lines of standard error, the guard's log, that the front door shows begin so
RELEASE_NS = 100_000_000
INSIST_NS = int(INSIST_S * 1e9)
LOOK_EVERY = 10  # ticks between looks for new slots
TELEMETRY_EVERY = 10  # ticks: it waits for one with room, but no longer than this (nine servos that dawdle leave none)
ROOM_NS = 700_000  # before a tick: a goal that is corrected later than this might still be on the wire
CLEAR_NS = 2_000_000  # before a tick: commands should come before this, for now and then one is late
PHASE_STEP_NS = 500_000  # by so much a tick the clock moves out of the commands' way


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
        if d.goal is not None and not d.arm:
            goal = d.goal
            late = self._late() if self._late is not None else None  # deciding takes its time
            if late is not None and (revised := self.safety.revise(now_ns, late, self._measured)) is not None:
                goal, command = revised, late
            if read_first:
                self.arm.write_goals(goal)
            else:
                self._measured = self.arm.exchange(goal)
            if command is not None and d.state == SafetyState.ACTIVE:
                self._book(command)
                if blind(self._measured):  # brake now, not a tick later
                    self.revise(command)
        elif not read_first:
            self._measured = self.arm.read()
        measured = self._measured
        if self._late is None:
            self.telemetry()
        self.ticks += 1
        state, reason = self.safety.state, self.safety.reason
        goal = self.safety.goal if state != SafetyState.DISARMED else measured.q
        return JointState(
            now_ns,
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


# What a record that cannot be decoded stands for: a command that the safety machine rejects.
UNREADABLE = Command(0, 1 << 62, np.full(0, np.nan, np.float32), np.full(0, np.nan, np.float32))


def tell(sentence: str, beginning: str = SAYS) -> None:
    """Write a sentence for the user to standard error, the guard's log. One that cannot be written (its disk is full)
    is lost: it must not stop a release, nor wait in a buffer and spoil the exit code."""
    with contextlib.suppress(OSError):
        os.write(2, f"{beginning}{sentence}\n".encode())


def opened(path: Path) -> SlotReader | None:
    try:
        return SlotReader(path)
    except SlotError:
        return None


class Latest:
    """Newest value of a slot whose writer may come late or come again. What already lay there is an earlier run's: not
    read."""

    def __init__(self, path: Path):
        self.path = path
        self._reader = opened(path)
        self._earlier = self._reader.newest if self._reader is not None else 0

    def look(self) -> None:
        """Open the slot when its writer has come, and again when another writer took its place."""
        if self._reader is None or self._reader.replaced:
            self._reader, self._earlier = opened(self.path) or self._reader, 0

    def read(self) -> bytes | None:
        if self._reader is None or self._reader.newest == self._earlier:
            return None
        got = self._reader.read()
        return got[0] if got is not None else None

    @property
    def newest(self) -> int:
        """Number of the newest value, 0 without a writer."""
        return self._reader.newest if self._reader is not None else 0

    @property
    def fresh(self) -> bool:
        """Whether there is a value that `read` has not given yet."""
        return self._reader is not None and self._reader.newest not in (self._earlier, self._reader.given)

    def take(self) -> bytes | None:
        """The newest value where `read` has not given it yet; None where it has, or where it cannot be read."""
        if self._reader is None or not self.fresh:
            return None
        given, raw = self._reader.given, self.read()
        return raw if self._reader.given != given else None

    def wait(self, until_ns: int) -> bool:
        """Whether a value comes until then (monotonic) that `read` has not given yet; returns as soon as it does."""
        while (rest := until_ns - time.monotonic_ns()) > 0:
            if self._reader is None:
                time.sleep(rest * 1e-9)
            elif self._reader.wait(self._reader.given, rest):
                return True
        return False


class Incoming(Protocol):
    """The newest command: `Latest` is one."""

    @property
    def newest(self) -> int: ...

    @property
    def fresh(self) -> bool: ...

    def take(self) -> bytes | None: ...

    def wait(self, until_ns: int) -> bool: ...


class Between:
    """What is left of each period when the tick's state is out: commands that come meanwhile correct its goal, and the
    clock moves out of the way of those that come when nothing can be sent. `now_ns`: the clock of `ticker` and
    `commands`."""

    def __init__(
        self,
        loop: MotorLoop,
        ticker: Ticker,
        commands: Incoming,
        pressed: Callable[[], bool],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ):
        self._loop, self._ticker, self._commands, self._pressed, self._now_ns = loop, ticker, commands, pressed, now_ns
        self._waited = 0  # number of the newest command that came in good time

    def _active(self) -> bool:
        return self._loop.safety.state == SafetyState.ACTIVE

    def _correct(self, until_ns: int = 0) -> None:
        """Commands that have come since the tick, or come until then, need not wait for the next."""
        while self._active() and (self._commands.fresh or self._commands.wait(until_ns)):
            command = as_command(self._commands.take())
            if command is not None and not self._pressed():
                self._loop.revise(command)
            if command is None or self._now_ns() >= until_ns:  # one that cannot be read would stay new for ever
                return

    def spend(self) -> None:
        """Until shortly before the next tick."""
        self._correct()
        self._loop.telemetry()
        if self._active() and self._commands.newest != self._waited:
            # A command came while nothing could be written: about when the tick began, or while servos answered. Ticks
            # move to where commands fall between them; only ever later, for the limits are made for a whole period.
            self._ticker.shift(PHASE_STEP_NS)
        self._correct(self._ticker.next_ns - CLEAR_NS)
        self._waited = self._commands.newest
        self._correct(self._ticker.next_ns - ROOM_NS)


def still_holds(servos: list[int]) -> str:
    """The sentence about servos that did not let go."""
    return f"servo {', '.join(map(str, servos))} still holds: switch the arm's power off."


def as_command(raw: bytes | None) -> Command | None:
    """The command in a slot's bytes; UNREADABLE when they are none, so that it is rejected and never raises here."""
    try:
        return Command.unpack(raw) if raw is not None else None
    except ValueError:
        return UNREADABLE


def as_request(raw: bytes | None) -> RequestKind:
    """The request in a slot's bytes; an unknown one holds the arm."""
    try:
        return RequestKind(raw[0]) if raw else RequestKind.NONE
    except ValueError:
        return RequestKind.HOLD


def exit_of(loop: MotorLoop, asked: bool) -> Exit:
    """The exit code of a loop that has finished; `asked`: it was told to lower the arm, and did not stop by itself."""
    if loop.holding:
        return Exit.HOLDING
    if loop.safety.state == SafetyState.FAULT:
        return Exit.FAULT
    if not loop.rested:
        return Exit.DROPPED
    return Exit.REST if asked else Exit.SAFE_STOP


def run(
    port: Port,
    config: ArmConfig,
    slots: Path,
    priority: int = 0,
    core: int | None = None,
    guard: int | None = None,
    energised: bool = False,
    log: Logger | None = None,
) -> int:
    """Serve until the arm has been lowered or has stopped; returns the exit code.

    Without its `guard` (a process id), or told by SIGTERM, it lowers the arm by itself: nobody would catch its own
    death.
    """
    told: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    stop = EStop.open(config.estop) if config.estop else None
    commands, requests = Latest(slots / COMMAND_SLOT), Latest(slots / REQUEST_SLOT)

    def late() -> Command | None:
        """A command that has not been read yet."""
        return as_command(commands.take())

    loop = MotorLoop(Arm(Bus(port, config.baud, protocol=config.protocol), config), energised, late)
    states = SlotWriter(slots / STATE_SLOT, JOINT_STATE_BYTES)
    stamps = StampWriter(loop.arm, slots, config.motor_hz)
    ticker = Ticker(config.motor_hz)
    narrator = Narrator(log, config.joints) if log is not None else None
    real_time(priority, core)
    goal: np.ndarray | None = None  # of the tick before, corrections included
    asked = False  # to lower, before it stopped by itself

    def pressed() -> bool:
        return stop is not None and stop.pressed()

    between = Between(loop, ticker, commands, pressed)
    while True:
        now = ticker.wait()
        began = time.monotonic_ns()
        if loop.ticks % LOOK_EVERY == 0:
            commands.look()
            requests.look()
            if guard is not None and os.getppid() != guard and not told:
                told.append(0)
                tell("the guard is gone: lowering the arm")
        request = RequestKind.LOWER if told else as_request(requests.read())
        asked = asked or (request == RequestKind.LOWER and loop.safety.state != SafetyState.SAFE_STOP)
        state = loop.tick(now, as_command(commands.read()), request, ticker.missed, pressed(), ticker.shifted_ns)
        states.write(state.pack())
        driven = state.safety in (SafetyState.HOLD, SafetyState.ACTIVE)
        stamps.write(loop.ticks, now, began, goal)
        if loop.finished:
            if loop.holding:
                tell(still_holds(loop.holding))
            return exit_of(loop, asked)
        if request == RequestKind.LOWER and state.safety == SafetyState.DISARMED and not energised:
            return Exit.REST
        between.spend()
        if narrator is not None:  # in the time in which nothing may be sent any more
            narrator.tick(state, loop.safety.rejected, loop.arm.bus.errors, loop.safety.cut())
        goal = loop.safety.goal if driven else None


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Motor process: follows the command slot, writes the state slot. Normally started by the guard."
    )
    parser.add_argument("--arm", type=Path, required=True, help="ArmConfig as JSON")
    parser.add_argument("--slots", type=Path, required=True, help="folder of the slots")
    parser.add_argument("--port", required=True, help="serial port (its name only, when --fd is given)")
    parser.add_argument("--fd", type=int, help="open and locked descriptor inherited from the guard")
    parser.add_argument("--guard", type=int, help="process id of the guard; when it is gone the arm is lowered")
    parser.add_argument("--priority", type=int, default=0, help="SCHED_FIFO priority, 0 for none")
    parser.add_argument("--core", type=int, help="pin to this core")
    parser.add_argument("--energised", action="store_true", help="the arm holds a pose after its port was lost")
    args = parser.parse_args()
    config = ArmConfig.from_dict(json.loads(args.arm.read_text()))
    hold(args.slots)
    left = SlotWriter(args.slots / MOTOR_CODE_SLOT, 1)  # made while there is room for it
    code = served(config, args)
    left.write(bytes([code]))
    return code


def served(config: ArmConfig, args: argparse.Namespace) -> int:
    """`run` on the port of the command line; what keeps it from serving is told, and returned as an exit code."""
    try:
        port = Port(args.fd, args.port) if args.fd is not None else Port.open(args.port, config.baud)
        if args.fd is not None:
            os.set_blocking(args.fd, False)
        with Logger(args.slots / LOG_FILE, logging.DEBUG, console=False) as log:
            return run(port, config, args.slots, args.priority, args.core, args.guard, args.energised, log)
    except PortError as e:
        tell(str(e))
        return Exit.PORT_LOST
    except (ArmError, EStopError) as e:
        tell(str(e))
        return Exit.REFUSED


if __name__ == "__main__":
    sys.exit(main())
