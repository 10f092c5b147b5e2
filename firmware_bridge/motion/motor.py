"""The motor process: runs `MotorLoop.tick` at absolute times, with slots on one side and the serial port on the other.

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

import numpy as np

from common.clock import Ticker, real_time
from common.logger import Logger
from common.run_folder import hold
from common.slots import SlotWriter
from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port, PortError
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmConfig, ArmError
from firmware_bridge.motion.endings import Exit
from firmware_bridge.motion.estop import EStop, EStopError
from firmware_bridge.motion.incoming import Incoming, Latest, as_command, as_request
from firmware_bridge.motion.messages import JOINT_STATE_BYTES, Command, RequestKind, SafetyState
from firmware_bridge.motion.motor_loop import MotorLoop
from firmware_bridge.motion.narrator import LOG_FILE, Narrator
from firmware_bridge.motion.stamps import StampWriter

STATE_SLOT = "state.slot"
COMMAND_SLOT = "command.slot"
REQUEST_SLOT = "request.slot"
MOTOR_CODE_SLOT = "motor-code.slot"  # the exit code, for processes that are not the parent of the motor process
SAYS = "guard: "  # prefix of the lines in the guard's log that are shown to the user
LOOK_EVERY = 10  # ticks between checks for new slots
ROOM_NS = 700_000  # before a tick: a goal sent later than this may still be on the wire when the tick begins
CLEAR_NS = 2_000_000  # before a tick: commands should arrive earlier than this, to leave room for a late one
PHASE_STEP_NS = 500_000  # one shift of the ticks to a later time, to leave time for commands


def tell(sentence: str, beginning: str = SAYS) -> None:
    """Write a sentence for the user to standard error, which is the guard's log.

    When it cannot be written (disk full) it is dropped: an error must not stop a release, and text left in a buffer
    would change the exit code.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"{beginning}{sentence}\n".encode())


class Between:
    """Uses the rest of each period, after the tick has written its state.

    A command that arrives in that time corrects the goal of the tick. When commands arrive while none can be sent, the
    ticks are shifted to a later time. `now_ns`: the clock of `ticker` and `commands`.
    """

    def __init__(
        self,
        loop: MotorLoop,
        ticker: Ticker,
        commands: Incoming,
        pressed: Callable[[], bool],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ):
        self._loop, self._ticker, self._commands, self._pressed, self._now_ns = loop, ticker, commands, pressed, now_ns
        self._on_time = 0  # `newest` of `commands` when the last wait ended: these commands arrived early enough

    def _active(self) -> bool:
        return self._loop.safety.state == SafetyState.ACTIVE

    def _correct(self, until_ns: int = 0) -> None:
        """Correct the goal for commands that have come since the tick, or come until `until_ns`."""
        while self._active() and (self._commands.fresh or self._commands.wait(until_ns)):
            command = as_command(self._commands.take())
            if command is not None and not self._pressed():
                self._loop.revise(command)
            if command is None or self._now_ns() >= until_ns:  # None: a value that cannot be read stays fresh
                return

    def spend(self) -> None:
        """Work until `ROOM_NS` before the next tick."""
        self._correct()
        self._loop.telemetry()
        if self._active() and self._commands.newest_version != self._on_time:
            # A command arrived when none could be sent: shortly before the tick, or while servos answered. Shift the
            # ticks until commands arrive between them; only to later times, for the limits assume a whole period.
            self._ticker.shift(PHASE_STEP_NS)
        self._correct(self._ticker.next_ns - CLEAR_NS)
        self._on_time = self._commands.newest_version
        self._correct(self._ticker.next_ns - ROOM_NS)


def still_holds(servos: list[int]) -> str:
    """The message for servos whose torque could not be switched off."""
    return f"servo {', '.join(map(str, servos))} still holds: switch the arm's power off."


def exit_of(loop: MotorLoop, asked: bool) -> Exit:
    """The exit code of a finished loop; `asked`: it was told to lower the arm before it stopped by itself."""
    if loop.holding:
        tell(still_holds(loop.holding))
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
    """Run until the arm has been lowered or has stopped; returns the exit code.

    When its `guard` (a process id) has died it lowers the arm, for no process would then act if this one failed; it
    also lowers the arm after SIGTERM. Raises PortError, ArmError, EStopError.
    """
    told: list[int] = []  # not empty: SIGTERM came, or the guard has died
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
    goal: np.ndarray | None = None  # of the previous tick, with its corrections
    asked = False  # whether it was asked to lower the arm before it stopped by itself

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
        stamps.write(loop.ticks, now, began, goal)
        if loop.finished:
            return exit_of(loop, asked)
        if request == RequestKind.LOWER and state.safety == SafetyState.DISARMED and not energised:
            return Exit.REST
        between.spend()
        if narrator is not None:  # here, because too little of the period is left to send another goal
            narrator.tick(state, loop.safety.rejected, loop.arm.bus.errors, loop.safety.cut())
        goal = loop.safety.goal if state.safety in (SafetyState.HOLD, SafetyState.ACTIVE) else None


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
    code_slot = SlotWriter(args.slots / MOTOR_CODE_SLOT, 1)  # made at the start, in case the disk is full at the end
    code = run_from_arguments(config, args)
    code_slot.write(bytes([code]))
    return code


def run_from_arguments(config: ArmConfig, args: argparse.Namespace) -> int:
    """`run` with the port of the command line; an error of port, arm or e-stop is told and becomes an exit code."""
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
