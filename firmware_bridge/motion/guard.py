"""The guard, the parent of the motor process: opens and locks the port, watches the state slot, stops the arm when the
motor process fails.

An STS3215 has no bus watchdog: it holds its last goal with torque on for ever. So when the motor process dies or stalls
(also by SIGSTOP) the guard kills it and ramps the torque down itself. The motor process, in turn, lowers the arm when
the guard dies.

    python -m firmware_bridge.motion.guard --help
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from common.python import module_command
from common.run_folder import hold
from common.slots import SlotError, SlotReader, SlotWriter
from common.timing import GUARD_STALL_S
from firmware_bridge.bus import echo
from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import BY_ID, Port, PortError, lasting_name
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmConfig, ArmError
from firmware_bridge.motion.endings import BY_MOTOR, Exit
from firmware_bridge.motion.messages import JointState, RequestKind, SafetyState
from firmware_bridge.motion.motor import MOTOR_CODE_SLOT, REQUEST_SLOT, SAYS, STATE_SLOT, still_holds, tell

LOG = "guard.log"  # standard error of guard and motor process, in the folder of the slots
START_S = 5.0  # time that the motor process has until its first state
REPLUG_S = 60.0  # time to plug the adapter in again
LETTING_DOWN = "holding, then letting the torque down"
LOST = "the port was lost: a servo with torque on holds its last goal until {} is back or its power is off"


def release(port: Port, config: ArmConfig) -> list[int]:
    """Ramp the torque of every servo down from its present limit, then switch it off; returns ids that still hold."""
    arm = Arm(Bus(port, config.baud, protocol=config.protocol), config)
    arm.calm()
    share, steps = arm.torque_share(), 30
    for k in range(steps):
        arm.set_torque(share * (1.0 - (k + 1) / steps))
        time.sleep(config.release_s / steps)
    return arm.torque_off()


def is_armed(slots: Path) -> bool:
    """Whether the arm was armed according to the last state that the motor process wrote."""
    try:
        got = SlotReader(slots / STATE_SLOT).read()
    except SlotError:
        return False
    return got is not None and JointState.unpack(got[0]).safety != SafetyState.DISARMED


def ask_to_lower(slots: Path, request: SlotReader | None = None) -> SlotReader:
    """Write the request to lower the arm, unless the slot holds it already: in `request`, which an earlier call
    returned. Another process that writes a request replaces the slot. Raises SlotError where the disk is full."""
    lower, path = bytes([RequestKind.LOWER]), slots / REQUEST_SLOT
    if request is None or request.replaced or request.read() != (lower, 1):
        SlotWriter(path, 16).write(lower)
        request = SlotReader(path)
    return request


def watch(child: subprocess.Popen[bytes], slots: Path, starter: int | None = None) -> str:
    """Wait for the end of the motor process; returns "" when it released the arm itself, else what went wrong.

    When the process `starter` is gone before the arm was armed, the motor process is told to end: nobody will arm the
    arm, and the port must become free. (An armed arm is held and lowered by the motor process itself.)
    """
    heartbeat: SlotReader | None = None
    request: SlotReader | None = None  # what `ask_to_lower` has written
    seen, seen_at = 0, time.monotonic() + START_S
    while True:
        time.sleep(0.02)
        code = child.poll()
        if code in BY_MOTOR:
            return ""
        if code is not None:
            refused = code == Exit.REFUSED
            return "refused" if refused else f"died ({f'signal {-code}' if code < 0 else f'code {code}'})"
        try:
            heartbeat = heartbeat or SlotReader(slots / STATE_SLOT)
            if heartbeat.newest_version != seen:
                seen, seen_at = heartbeat.newest_version, time.monotonic()
            # After the first state: a motor process that is starting ignores what lies in the slot.
            if starter is not None and os.getppid() != starter and not is_armed(slots):
                request = ask_to_lower(slots, request)
        except SlotError:
            pass
        if time.monotonic() - seen_at > GUARD_STALL_S:
            return f"gave no sign for {GUARD_STALL_S} s"


def reopen(name: str, config: ArmConfig, fingerprint: str) -> Port:
    """Wait up to `REPLUG_S` for the port `name` with the arm of this `fingerprint`; returns the open port.

    Raises PortError when the adapter stays away, ArmError when its servos are not as expected or another arm answers.
    """
    deadline = time.monotonic() + REPLUG_S
    while True:
        port: Port | None = None
        try:
            port = Port.open(name, config.baud)
            arm = Arm(Bus(port, config.baud, protocol=config.protocol), config)
            arm.check()
            found = arm.fingerprint()
        except (PortError, ArmError):  # servos may need longer than the adapter until they answer
            if port is not None:
                port.close()  # else its lock would refuse the next attempt
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
            continue
        if found == fingerprint:
            return port
        port.close()
        raise ArmError(f"another arm answers on {name}: plug the first one in again, or start anew for this one.")


def guard(
    port_path: str,
    config: ArmConfig,
    arm_file: Path,
    slots: Path,
    priority: int = 0,
    core: int | None = None,
    by_id: Path = BY_ID,
    starter: int | None = None,
) -> int:
    """Run the motor process to its end; returns its exit code, or the code for the state of the arm when it failed.

    When the motor process fails, the torque that it switched on is ramped down. Torque that was on before, on an arm
    that was not armed, stays on. When the port is lost, the guard waits until the same arm answers on the same adapter,
    then starts another motor process, which waits to be armed or lowered.

    Raises PortError or ArmError when the port or the arm is not as the robot file says; while the arm is energised it
    tells the user and returns ADRIFT instead.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    port = Port.open(port_path, config.baud)
    name = lasting_name(port_path, by_id)
    arm = Arm(Bus(port, config.baud, protocol=config.protocol), config)
    arm.check()
    fingerprint = arm.fingerprint()
    if arm.bus.echoing:
        tell(echo.TOLD.format(name))
    found_energised, left_energised = arm.energised(), False
    try:
        while True:
            child = start_motor(port, port_path, arm_file, slots, priority, core, left_energised)
            failure = watch(child, slots, starter)
            if not failure:
                return child.returncode
            child.kill()
            child.wait()
            if child.returncode != Exit.PORT_LOST:
                break
            tell(LOST.format(name))
            left_energised = left_energised or is_armed(slots)
            port.close()
            port = reopen(name, config, fingerprint)
            arm = Arm(Bus(port, config.baud, protocol=config.protocol), config)
            left_energised = left_energised and arm.energised()
            tell("the same arm is back: arm it again, or lower it")
        refused = child.returncode == Exit.REFUSED and not (left_energised or is_armed(slots))
        if found_energised and not is_armed(slots):
            tell(f"motor process {failure}: the arm is energised as it was found")
            return Exit.REFUSED if refused else Exit.ADRIFT
        tell(f"motor process {failure}: {'seeing to it that no servo holds' if refused else LETTING_DOWN}")
        holding = release(port, config)
    except (PortError, ArmError) as e:
        if not (found_energised or left_energised or is_armed(slots)):
            raise
        tell(str(e))
        return Exit.ADRIFT
    if holding:
        tell(still_holds(holding))
        return Exit.HOLDING
    return Exit.REFUSED if refused else Exit.GUARD


def start_motor(
    port: Port, path: str, arm_file: Path, slots: Path, priority: int, core: int | None, energised: bool
) -> subprocess.Popen[bytes]:
    """Start a motor process that inherits the open port."""
    for slot in (STATE_SLOT, MOTOR_CODE_SLOT):
        (slots / slot).unlink(missing_ok=True)
    os.set_inheritable(port.fd, True)
    command = module_command(
        "firmware_bridge.motion.motor",
        "--fd",
        str(port.fd),
        "--port",
        path,
        "--arm",
        str(arm_file),
        "--slots",
        str(slots),
        "--guard",
        str(os.getpid()),
        "--priority",
        str(priority),
        *(["--core", str(core)] if core is not None else []),
        *(["--energised"] if energised else []),
    )
    return subprocess.Popen(command, pass_fds=[port.fd])


def start(
    port: str, config: ArmConfig, slots: Path, priority: int = 0, core: int | None = None, by_id: Path = BY_ID
) -> subprocess.Popen[bytes]:
    """Start a guard in a process session of its own: Ctrl-C in the terminal does not reach it, and it outlives its
    caller."""
    slots.mkdir(parents=True, exist_ok=True)
    arm_file = slots / "arm.json"
    arm_file.write_text(json.dumps(config.to_dict()))
    for slot in (STATE_SLOT, MOTOR_CODE_SLOT):
        (slots / slot).unlink(missing_ok=True)
    command = module_command(
        "firmware_bridge.motion.guard",
        "--port",
        port,
        "--arm",
        str(arm_file),
        "--slots",
        str(slots),
        "--priority",
        str(priority),
        "--by-id",
        str(by_id),
        "--starter",
        str(os.getpid()),
        *(["--core", str(core)] if core is not None else []),
    )
    with open(slots / LOG, "w") as log:
        return subprocess.Popen(command, start_new_session=True, stderr=log)


def wait_for_state(process: subprocess.Popen[bytes], slots: Path, timeout_s: float = 8.0) -> SlotReader:
    """Wait for the first JointState; raises ArmError, with the guard's own message, when the guard ends before it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = (slots / LOG).read_text().strip().splitlines()
            said = "\n".join(line.removeprefix("error: ").removeprefix(SAYS) for line in lines)
            raise ArmError(
                said
                or f"the guard ended with code {process.returncode} before the arm was ready: run it by hand to see "
                "why."
            )
        try:
            reader = SlotReader(slots / STATE_SLOT)
            got = reader.read()
            if got is not None:
                JointState.unpack(got[0])
                return reader
        except SlotError:
            pass
        time.sleep(0.005)
    raise ArmError(
        f"the motor process gave no sign within {timeout_s:.0f} s: check the load of this machine and try again."
    )


def end(process: subprocess.Popen[bytes], slots: Path, tell_s: float = 12.0) -> None:
    """Ask a running guard to lower the arm, and wait until it has ended. It is not killed, for the arm may be
    energised.

    The request is written every 0.1 s: a motor process that is starting ignores what an earlier run left in the slot.
    After `tell_s` the user is told what to do. The wait ends after `tell_s + REPLUG_S`: the guard may be waiting for an
    adapter that was unplugged, and needs the folder of this run until the arm is lowered.
    """
    if process.poll() is not None:
        return
    requests = SlotWriter(slots / REQUEST_SLOT, 16)
    began, told = time.monotonic(), False
    while process.poll() is None and (waited := time.monotonic() - began) < tell_s + REPLUG_S:
        requests.write(bytes([RequestKind.LOWER]))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
        if waited > tell_s and not told:
            told = True
            tell("the guard does not end: plug the servo adapter in, or switch the arm's power off.", "error: ")


def tell_log(slots: Path) -> None:
    """Show the user the messages of a guard that has ended, without its errors: `wait_for_state` has raised those."""
    for line in (slots / LOG).read_text().splitlines():
        if line.startswith(SAYS):
            tell(line, "")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Guard: locks the serial port, runs the motor process and stops the arm if that fails."
    )
    parser.add_argument("--port", required=True)
    parser.add_argument("--arm", type=Path, required=True, help="ArmConfig as JSON")
    parser.add_argument("--slots", type=Path, required=True, help="folder of the slots")
    parser.add_argument("--priority", type=int, default=0, help="SCHED_FIFO priority of the motor process, 0 for none")
    parser.add_argument("--core", type=int, help="core of the motor process")
    parser.add_argument("--by-id", type=Path, default=BY_ID, help="folder of port names that survive replugging")
    parser.add_argument("--starter", type=int, help="process that arms the arm; without it, an unarmed arm is left")
    args = parser.parse_args()
    hold(args.slots)
    try:
        config = ArmConfig.from_dict(json.loads(args.arm.read_text()))
        return guard(args.port, config, args.arm, args.slots, args.priority, args.core, args.by_id, args.starter)
    except (PortError, ArmError) as e:
        # `wait_for_state` raises this text before the first state; after that, `tell_log` shows lines that begin with
        # SAYS.
        tell(str(e), SAYS if (args.slots / STATE_SLOT).exists() else "error: ")
        return Exit.REFUSED


if __name__ == "__main__":
    sys.exit(main())
