"""The motor process: read, decide, write, on an absolute clock. `MotorLoop.tick` is the same in virtual time.

python -m firmware_bridge.motor --help
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

from firmware_bridge.arm import Arm, ArmConfig, ArmError, Measurement
from firmware_bridge.bus import Bus
from firmware_bridge.clock import Ticker, real_time
from firmware_bridge.messages import JOINT_STATE_BYTES, Command, JointState, RequestKind, SafetyState
from firmware_bridge.port import Port, PortError
from firmware_bridge.safety import Safety
from firmware_bridge.slots import SlotError, SlotReader, SlotWriter

STATE_SLOT, COMMAND_SLOT, REQUEST_SLOT = "state.slot", "command.slot", "request.slot"
EXIT_SAFE_STOP, EXIT_FAULT = 3, 4
LOOK_EVERY = 10  # ticks between looks for new slots


class MotorLoop:
    """One arm, one safety machine. `tick(now, command, request)` does one period's work and says what was done."""

    def __init__(self, arm: Arm):
        self.arm, self.config = arm, arm.config
        self.safety = Safety(arm.config)
        self.ticks = 0
        self.finished = False
        self._jump_limit = np.array(arm.config.max_velocity) * 1.5 / arm.config.motor_hz + 0.12
        self._doubted = 0
        self._trusted: Measurement | None = None
        self._torque: float | None = None
        self._sent = (0, 0, 0)  # newest command on the wire: sequence, capture time, first time on the wire

    def _measure(self) -> Measurement:
        """The newest measurement; a jump that no motor can make is disbelieved up to three times running."""
        m = self.arm.read()
        if self._trusted is not None and self._doubted < 3:
            jump = np.abs(m.q - self._trusted.q) > self._jump_limit
            if jump.any():
                self._doubted += 1
                return Measurement(self._trusted.q, self._trusted.qd, m.bits)
        self._doubted, self._trusted = 0, m
        return m

    def tick(self, now_ns: int, command: Command | None, request: RequestKind, missed: int = 0) -> JointState:
        measured = self._measure()
        d = self.safety.step(now_ns, command, request, measured, self.arm.temperature)
        if d.arm:
            self.arm.torque_on()
        elif d.release:
            if not self.finished:
                self.arm.torque_off()
            self.finished = True
        else:
            if d.torque is not None and (self._torque is None or abs(d.torque - self._torque) > 0.02):
                self.arm.set_torque(d.torque)
                self._torque = d.torque
            if d.goal is not None:
                self.arm.write_goals(d.goal)
                if command is not None and d.state == SafetyState.ACTIVE and command.seq != self._sent[0]:
                    self._sent = (command.seq, command.t_capture_ns, self.arm.bus.port.now_ns())
        self.arm.read_telemetry()
        self.ticks += 1
        goal = self.safety.goal if d.state != SafetyState.DISARMED else measured.q
        return JointState(
            now_ns, measured.q.astype(np.float32), measured.qd.astype(np.float32), np.asarray(goal, np.float32), self.arm.current,
            self.arm.temperature, self.arm.voltage, measured.bits, d.state, d.reason,
            self._sent[2], self._sent[1], self._sent[0], self.ticks, missed,
        )  # fmt: skip


def read_command(slot: SlotReader | None) -> Command | None:
    got = slot.read() if slot is not None else None
    return Command.unpack(got[0]) if got is not None else None


def reopened(slot: SlotReader | None, path: Path) -> SlotReader | None:
    """The slot as it is now: opened when its writer has come, opened again when another writer took its place."""
    if slot is not None and not slot.replaced:
        return slot
    try:
        return SlotReader(path)
    except SlotError:
        return slot


def run(port: Port, config: ArmConfig, slots: Path, priority: int = 0, core: int | None = None) -> int:
    """Serve until the arm has been lowered or has stopped; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop = MotorLoop(Arm(Bus(port, config.baud), config))
    states = SlotWriter(slots / STATE_SLOT, JOINT_STATE_BYTES)
    commands: SlotReader | None = None
    requests: SlotReader | None = None
    ticker = Ticker(config.motor_hz)
    real_time(priority, core)
    while True:
        now = ticker.wait()
        if loop.ticks % LOOK_EVERY == 0:  # writers may come, and come again after a crash
            commands = reopened(commands, slots / COMMAND_SLOT)
            requests = reopened(requests, slots / REQUEST_SLOT)
        asked = requests.read() if requests is not None else None
        request = RequestKind(asked[0][0]) if asked is not None else RequestKind.NONE
        state = loop.tick(now, read_command(commands), request, ticker.missed)
        states.write(state.pack())
        if loop.finished:
            if request == RequestKind.LOWER:
                return 0
            return EXIT_FAULT if state.safety == SafetyState.FAULT else EXIT_SAFE_STOP
        if request == RequestKind.LOWER and state.safety == SafetyState.DISARMED:
            return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Motor process: follows the command slot, writes the state slot. Normally started by the guard."
    )
    parser.add_argument("--arm", type=Path, required=True, help="ArmConfig as JSON")
    parser.add_argument("--slots", type=Path, required=True, help="folder of the slots")
    parser.add_argument("--port", required=True, help="serial port (its name only, when --fd is given)")
    parser.add_argument("--fd", type=int, help="open and locked descriptor inherited from the guard")
    parser.add_argument("--priority", type=int, default=0, help="SCHED_FIFO priority, 0 for none")
    parser.add_argument("--core", type=int, help="pin to this core")
    args = parser.parse_args()
    config = ArmConfig.from_dict(json.loads(args.arm.read_text()))
    try:
        port = Port(args.fd, args.port) if args.fd is not None else Port.open(args.port, config.baud)
        if args.fd is not None:
            os.set_blocking(args.fd, False)
        return run(port, config, args.slots, args.priority, args.core)
    except (PortError, ArmError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
