"""The guard: parent of the motor process. Opens and locks the port, watches the heartbeat, stops the arm when it fails.

An STS3215 has no bus watchdog: it holds its last goal with torque on for ever. So when the motor process dies or stalls
(also SIGSTOP) the guard kills it and lets the torque down in a ramp itself. The motor process, in turn, lowers the arm
when the guard dies.

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

LOG = "guard.log"  # what the guard says, in the folder of the slots
START_S = 5.0
REPLUG_S = 60.0  # so long the adapter may stay away
LETTING_DOWN = "holding, then letting the torque down"


def release(port: Port, config: ArmConfig) -> list[int]:
    """Ramp the torque of every servo down from where it is and switch it off; returns ids that still hold."""
    arm = Arm(Bus(port, config.baud, protocol=config.protocol), config)
    arm.calm()
    share, steps = arm.torque_share(), 30
    for k in range(steps):
        arm.set_torque(share * (1.0 - (k + 1) / steps))
        time.sleep(config.release_s / steps)
    return arm.torque_off()


def is_armed(slots: Path) -> bool:
    """Whether the motor process had switched torque on, by the last state that it wrote."""
    try:
        got = SlotReader(slots / STATE_SLOT).read()
    except SlotError:
        return False
    return got is not None and JointState.unpack(got[0]).safety != SafetyState.DISARMED


def watch(child: subprocess.Popen[bytes], slots: Path) -> str:
    """Wait until the motor process has finished its work (empty), or has failed: why."""
    heartbeat: SlotReader | None = None
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
            if heartbeat.newest != seen:
                seen, seen_at = heartbeat.newest, time.monotonic()
        except SlotError:
            pass
        if time.monotonic() - seen_at > GUARD_STALL_S:
            return f"gave no sign for {GUARD_STALL_S} s"


def reopen(name: str, config: ArmConfig, fingerprint: str) -> Port:
    """Wait for the adapter to come back, on whatever path; raises PortError when it stays away, ArmError when it is not
    this arm."""
    deadline = time.monotonic() + REPLUG_S
    while True:
        port: Port | None = None
        try:
            port = Port.open(name, config.baud)
            arm = Arm(Bus(port, config.baud, protocol=config.protocol), config)
            arm.check()
            found = arm.fingerprint()
        except (PortError, ArmError):  # servos may need a moment more than the adapter
            if port is not None:
                port.close()  # its lock would keep out the next look
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
) -> int:
    """Run the motor process to its end; returns its exit code, or what became of the arm without it.

    When it fails, torque that it switched on is let down in a ramp; an arm that stood energised before and was not
    armed stays so. When the port is lost, the same arm is awaited on the same adapter, and then waits to be armed again
    or lowered. Raises PortError or ArmError for a port or an arm that is not as it should be, unless the arm is
    energised meanwhile.
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
            failure = watch(child, slots)
            if not failure:
                return child.returncode
            child.kill()
            child.wait()
            if child.returncode != Exit.PORT_LOST:
                break
            tell(
                f"the port was lost: a servo with torque on holds its last goal until {name} is back or its power is "
                "off"
            )
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
    """Start a guard as a session of its own: a Ctrl-C in the terminal does not reach it; it survives its caller."""
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
        *(["--core", str(core)] if core is not None else []),
    )
    with open(slots / LOG, "w") as log:
        return subprocess.Popen(command, start_new_session=True, stderr=log)


def wait_for_state(process: subprocess.Popen[bytes], slots: Path, timeout_s: float = 8.0) -> SlotReader:
    """Wait for the first JointState; raises ArmError with the guard's own sentence when it gives up."""
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
    """Wait until a guard that is still running has finished, asking for lowering. It is never killed while the arm is
    energised.

    Asked again and again because a motor process that is only starting takes what lies in the slot for an earlier
    run's. It is waited for as long as it waits for an adapter that was pulled out: what it needs to lower the arm then
    lies in the folder of this run.
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
    """Show the user what a guard said that has ended. Its errors are left out: whoever waited for its first state has
    raised them."""
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
    parser.add_argument("--by-id", type=Path, default=BY_ID, help="folder of the ports' lasting names")
    args = parser.parse_args()
    hold(args.slots)
    try:
        config = ArmConfig.from_dict(json.loads(args.arm.read_text()))
        return guard(args.port, config, args.arm, args.slots, args.priority, args.core, args.by_id)
    except (PortError, ArmError) as e:
        # Whoever waits for the first state raises what stands here; after it only what begins like the guard's other
        # lines is shown.
        tell(str(e), SAYS if (args.slots / STATE_SLOT).exists() else "error: ")
        return Exit.REFUSED


if __name__ == "__main__":
    sys.exit(main())
