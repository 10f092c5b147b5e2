"""The motor process: `MotorLoop.tick` on an absolute clock, between slots and the serial port.

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
MOTOR_CODE_SLOT = "motor-code.slot"  # the exit code, for whoever is not the parent of the motor process
SAYS = "guard: "  # lines of standard error, the guard's log, that the front door shows begin so
LOOK_EVERY = 10  # ticks between looks for new slots
ROOM_NS = 700_000  # before a tick: a goal that is corrected later than this might still be on the wire
CLEAR_NS = 2_000_000  # before a tick: commands should come before this, for now and then one is late
PHASE_STEP_NS = 500_000  # by so much a tick the clock moves out of the commands' way


def tell(sentence: str, beginning: str = SAYS) -> None:
    """Write a sentence for the user to standard error, the guard's log. One that cannot be written (its disk is full)
    is lost: it must not stop a release, nor wait in a buffer and spoil the exit code."""
    with contextlib.suppress(OSError):
        os.write(2, f"{beginning}{sentence}\n".encode())


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


def exit_of(loop: MotorLoop, asked: bool) -> Exit:
    """The exit code of a loop that has finished; `asked`: it was told to lower the arm, and did not stop by itself."""
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
        stamps.write(loop.ticks, now, began, goal)
        if loop.finished:
            return exit_of(loop, asked)
        if request == RequestKind.LOWER and state.safety == SafetyState.DISARMED and not energised:
            return Exit.REST
        between.spend()
        if narrator is not None:  # in the time in which nothing may be sent any more
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
