"""`harmowam bus`: find servos, watch them, check their settings, set an id, and run the fault campaign."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firmware_bridge.servos import sts3215, xseries
from harmowam.hints import as_given
from harmowam.options import UserError, errors, json_option, robot_option, to_be_written, write_json, write_text

if TYPE_CHECKING:
    from serial.tools.list_ports_common import ListPortInfo

    from firmware_bridge.motion.arm import Arm
    from firmware_bridge.motion.measurement import Measurement
    from firmware_bridge.service import Found
    from runtime.robot import Robot


@click.group()
def bus() -> None:
    """The servo bus: scan, monitor, check, set-id, campaign."""


def adapters(ports: Iterable[ListPortInfo]) -> dict[str, str]:
    """The serial adapters among `ports`: descriptions by the names that survive unplugging."""
    from firmware_bridge.bus.port import lasting_name

    real = [p for p in ports if p.vid is not None or not p.name.startswith("ttyS")]  # ttyS: a PC's own, mostly unused
    return {lasting_name(p.device): p.description for p in real}


def choice(ports: Iterable[ListPortInfo]) -> str:
    """The serial adapters among `ports` in a sentence; where there is none, what to do."""
    found = ", ".join(f"{name} ({description})" for name, description in adapters(ports).items())
    return f"plugged in: {found}" if found else "none is plugged in: plug the adapter in, and look again"


def port_or_choice(ctx: click.Context, param: click.Parameter, port: str | None) -> str | None:
    """The port that was named, None where a robot file names it; else the adapters to choose from, as a UserError."""
    from serial.tools.list_ports import comports

    if port is None and not ctx.params.get("robot"):
        raise UserError(f"name the servo adapter's port with --port; {choice(sorted(comports()))}.")
    return port


def rates() -> str:
    """The baud rates that are tried, in words."""
    makes = (("Feetech", sts3215.BAUDS), ("Dynamixel", xseries.BAUDS))
    return "; ".join(f"{name} {', '.join(map(str, bauds))}" for name, bauds in makes)


port_option = click.option(
    "--port",
    callback=port_or_choice,
    help="Serial port, best by its name under /dev/serial/by-id. Left out: lists the adapters that are plugged in.",
)
baud_option = click.option(
    "--baud",
    type=click.IntRange(min=1),
    multiple=True,
    help=f"Only this baud rate. Default: all that a servo can be set to ({rates()}).",
)
protocol_option = click.option(
    "--protocol",
    type=click.Choice(["feetech", "dynamixel", "both"]),
    help="Makes of servo to look for (default: both).",
)


def protocols(name: str | None) -> tuple[str, ...]:
    return ("feetech", "dynamixel") if name in (None, "both") else (name,)


def progress(line: str) -> None:
    """One line of what is being tried."""
    click.echo(f"  {line}", err=True)


def id_range(text: str) -> list[int]:
    try:
        first, _, last = text.partition("-")
        ids = list(range(int(first), int(last or first) + 1))
    except ValueError as e:
        raise UserError(f"--ids {text} is not understood: write for example 0-20.") from e
    if not ids or ids[0] < 0 or ids[-1] > 252:
        raise UserError(f"--ids {text} is outside 0..252: write for example 0-20.")
    return ids


def table(rows: list[list[Any]], head: list[str]) -> list[str]:
    """Lines of a table with right-aligned columns."""
    cells = [[str(c) for c in r] for r in [head, *rows]]
    widths = [max(len(r[k]) for r in cells) for k in range(len(head))]
    return ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in cells]


@bus.command()
@click.option("--robot", is_eager=True, help="Robot file to take port, baud rate and make of servo from.")
@port_option
@baud_option
@protocol_option
@click.option("--ids", default="0-20", show_default=True, help="Range of ids to ask, at most 0-252.")
@json_option
@errors
def scan(
    robot: str | None, port: str, baud: tuple[int, ...], protocol: str | None, ids: str, json_path: Path | None
) -> None:
    """List every servo that answers, at every baud rate that a servo can be set to (see --baud), or at the robot
    file's. Only reads; the arm is not touched. "?" stands for what a servo did not tell."""
    from firmware_bridge.service import scan

    if robot is not None:
        described = with_port(robot, port)
        port, baud = port or described.port, baud or (described.arm.baud,)
        protocol = protocol or described.arm.protocol
    found = scan(port, id_range(ids), protocols(protocol), baud, progress)
    if not found:
        tried = ", ".join(map(str, baud)) or rates()
        raise UserError(
            f"no servo answers on {port} as {ids} (tried: {tried}): check the arm's power supply, the cable, and --ids."
        )
    for line in table([scan_row(f) for f in found], SCANNED):
        click.echo(line.rstrip())
    for i in sorted({f.servo for f in found if f.double}):
        mend = as_given("connect one servo at a time, and give each an id of its own with `harmowam bus set-id`")
        click.echo(f"{two_servos(i)}: {mend}", err=True)
    write_json(json_path, {"servos": [scanned(f) for f in found]})


SCANNED = ["id", "model", "baud", "fw", "torque", "position", "V", "C", "offset", "limits", "reports", ""]
TORQUE = {0: "off", 1: "on", 2: "damping"}


def two_servos(servo: int) -> str:
    return f"two servos answer as {servo} (or one whose answers are all damaged)"


def scanned(f: Found) -> dict[str, Any]:
    """A found servo as JSON, with the registers that were read."""
    told = {"id": f.servo, "model": f.number, "protocol": f.protocol, "baud": f.baud, "double": f.double}
    return {**told, "conditions": list(f.conditions), **f.values}


def scan_row(f: Found) -> list[Any]:
    """A found servo's row under `SCANNED`."""
    v = f.values
    volt, torque = v.get("present_voltage"), v.get("torque_enable")
    has_offset = f.model is None or "homing_offset" in f.model.registers
    return [
        f.servo,
        f.name,
        f.baud,
        v.get("firmware", v.get("firmware_major", "?")),
        "?" if torque is None else TORQUE.get(torque, torque),
        v.get("present_position", "?"),
        "?" if volt is None else volt / 10,
        v.get("present_temperature", "?"),
        v.get("homing_offset", "?" if has_offset else "-"),
        f"{v.get('min_position', '?')}..{v.get('max_position', '?')}",
        ", ".join(f.conditions) or "nothing",
        f"two servos answer as {f.servo}" if f.double else "",
    ]


WRONG = ("joint", "servo", "register", "holds", "must hold", "why")
robot_port_option = click.option("--port", help="Serial port (default: the robot file's).")


def with_port(robot: str, port: str | None) -> Robot:
    """The robot of a file, which must name a serial port where `port` does not. Raises RobotError and UserError."""
    from runtime.robot import load_robot

    described = load_robot(robot)
    if described.simulated and port is None:
        raise UserError(
            "the simulated robot has no serial port: name your arm's file with --robot, or a port with --port."
        )
    return described


@contextlib.contextmanager
def arm_on(robot: str, port: str | None) -> Iterator[Arm]:
    """The arm of a robot file on its port, as long as it is used. An adapter that echoes is told of at the end."""
    from firmware_bridge.bus import echo
    from firmware_bridge.bus.master import Bus
    from firmware_bridge.bus.port import Port
    from firmware_bridge.motion.arm import Arm

    described = with_port(robot, port)
    config = described.arm
    opened = Port.open(port or described.port, config.baud)
    try:
        arm = Arm(Bus(opened, config.baud, protocol=config.protocol), config)
        yield arm
        if arm.bus.echoing:
            progress(echo.TOLD.format(opened.path))
    finally:
        opened.close()


@bus.command()
@robot_option
@robot_port_option
@click.option("--seconds", type=float, help="Stop after this time (default: at Ctrl-C).")
@errors
def monitor(robot: str, port: str | None, seconds: float | None) -> None:
    """Live table of every joint. Only reads; works with the torque off while the arm is moved by hand. Written to a
    file, it goes on with the rows that have changed."""
    end = time.monotonic() + (seconds if seconds is not None else 1e9)
    drawn: list[str] = []
    ticks, began, screen = 0, time.monotonic(), sys.stdout.isatty()
    with arm_on(robot, port) as arm, contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() < end:
            m = arm.read()
            arm.read_telemetry()
            ticks += 1
            if ticks % 10 == 0:
                lines = table(monitor_rows(arm, m), WATCHED)
                lines.append(f"{ticks / (time.monotonic() - began):.0f} readings a second; Ctrl-C ends")
                if drawn and screen:
                    click.echo(f"\x1b[{len(drawn)}A", nl=False)
                for line in lines if screen else [x for x in lines[: -1 if drawn else None] if x not in drawn]:
                    click.echo(f"\x1b[K{line}" if screen else line)
                drawn = lines
            time.sleep(0.01)


WATCHED = ["joint", "id", "rad", "deg", "rad/s", "A", "V", "C", "torque", "errors", "state"]


def monitor_rows(arm: Arm, m: Measurement) -> list[list[Any]]:
    """The arm's joints under `WATCHED`; "?" stands for what a servo does not tell now, or has not told yet."""
    import numpy as np

    from firmware_bridge.motion.measurement import NO_REPLY
    from firmware_bridge.servos.sts3215 import conditions

    torque, rows = arm.read_span("torque_enable", "torque_enable"), []
    for k, (name, servo) in enumerate(zip(arm.config.joints, arm.config.ids, strict=True)):
        bits = int(m.bits[k])
        silent, told = bool(bits & NO_REPLY), arm.voltage[k] > 0 and not bits & NO_REPLY
        measures = told and arm.models[k].current_a
        on = torque.get(servo, {}).get("torque_enable")
        rows.append(
            [
                name,
                servo,
                "?" if silent else f"{m.q[k]:+.3f}",
                "?" if silent else f"{np.degrees(m.q[k]):+6.1f}",
                "?" if silent else f"{m.qd[k]:+.2f}",
                f"{arm.current[k]:+.2f}" if measures else "?",
                f"{arm.voltage[k]:.1f}" if told else "?",
                f"{arm.temperature[k]:.0f}" if told else "?",
                "?" if on is None else TORQUE.get(on, on),
                sum(n for (i, _), n in arm.bus.errors.items() if i == servo),
                "no reply" if silent else ", ".join(conditions(bits)) or "ok",
            ]
        )
    return rows


@bus.command()
@robot_option
@robot_port_option
@click.option(
    "--fix",
    is_flag=True,
    help="Write the required settings to the EEPROM of servos that differ. Torque must be off.",
)
@json_option
@errors
def check(robot: str, port: str | None, fix: bool, json_path: Path | None) -> None:
    """List servo settings that would change the arm's motion, with the reason. Only reads, unless --fix is given."""
    from firmware_bridge import service
    from firmware_bridge.motion import before_torque

    with arm_on(robot, port) as arm:
        before_torque.check_servos(arm)
        held = before_torque.read_settings(arm)
        wrong = service.mend(arm) if fix else before_torque.wrong_settings(arm, held)
        rows = [[arm.name(w.servo), w.servo, w.setting.register, w.value, w.setting.must, w.setting.why] for w in wrong]
        write_json(json_path, {"fixed": fix, "wrong": [dict(zip(WRONG, r, strict=True)) for r in rows]})
        for line in table(rows, list(WRONG)) if rows else []:
            click.echo(line)
        if rows and not fix:
            raise UserError(
                f"{len(rows)} setting{'s' * (len(rows) > 1)} would change the arm's motion: `harmowam bus check "
                f"--fix` sets {'them' if len(rows) > 1 else 'it'} right, with the torque off."
            )
        if rows:
            again = as_given("`harmowam calibrate joints`")
            click.echo(f"set right; what its steps mean may have changed: calibrate the joints again ({again})")
        before_torque.check_file(arm, held)
        before_torque.poses(arm, before_torque.read_settings(arm))
        click.echo(f"{len(arm.ids)} servos hold what they must, and stand where they can be held")


@bus.command("set-id")
@port_option
@baud_option
@protocol_option
@click.option("--to", "new", type=click.IntRange(0, 252), prompt="New id", help="The servo's new id.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@errors
def set_id(port: str, baud: tuple[int, ...], protocol: str | None, new: int, yes: bool) -> None:
    """Give one servo a new id: connect it alone, and confirm. To be sure that it is alone, every id is asked at every
    baud rate, which takes most of a minute; --protocol and --baud shorten it."""
    from firmware_bridge import service
    from firmware_bridge.bus.master import Bus
    from firmware_bridge.bus.port import Port

    if not yes:
        click.pause("Connect the one servo that shall get a new id, and nothing else; then press a key.")
    found: list[Found] = []
    for _ in range(2):  # a lost answer is no proof of a missing supply
        found = found or service.scan(port, range(253), protocols(protocol), baud, progress, enough=2, attempts=1)
    if not found:
        raise UserError(f"no servo answers on {port}: switch its power on, and check its cable and --baud.")
    if len(found) > 1:
        raise UserError(f"more than one servo answers on {port}: connect one servo at a time.")
    (servo,) = found
    if servo.double:
        raise UserError(f"{two_servos(servo.servo)} on {port}: connect one servo at a time; nothing was written.")
    if not yes and not click.confirm(
        f"{servo.name} with id {servo.servo} at {servo.baud} baud: write id {new} to its EEPROM?"
    ):
        return
    opened = Port.open(port, servo.baud)
    try:
        service.set_id(Bus(opened, servo.baud, protocol=servo.protocol), servo, new)
    finally:
        opened.close()
    click.echo(f"{servo.name}: id {servo.servo} is now {new}")


@bus.command()
@click.option("--only", default="", help="Only faults whose name contains this.")
@click.option("--virtual", is_flag=True, help="Leave out faults that need processes and ports.")
@click.option(
    "--markdown",
    type=click.Path(readable=False, path_type=Path, dir_okay=False),
    callback=to_be_written,
    help="Write the table of docs/firmware_bridge.md to this file.",
)
@json_option
@errors
def campaign(only: str, virtual: bool, markdown: Path | None, json_path: Path | None) -> None:
    """Inject every known fault into a moving (virtual) arm: what it was detected as, and how soon the arm was safe."""
    from firmware_bridge.virtual.campaign_bus import campaign_bus, campaign_port
    from firmware_bridge.virtual.campaign_dead import campaign
    from firmware_bridge.virtual.campaign_live import campaign_live
    from firmware_bridge.virtual.campaign_start import campaign_start

    rows = campaign(only) + campaign_start(only) + campaign_bus(only)
    if not virtual:
        with tempfile.TemporaryDirectory(prefix="harmowam-") as folder:
            rows += campaign_live(Path(folder), only) + campaign_port(Path(folder), only)
    rows.sort(key=lambda r: (r["group"], r["name"]))
    if not rows:
        raise UserError(f"no fault's name contains '{only}': leave --only out to see all.")
    head = ["group", "fault", "safe after ms", "limit ms", "state", "torque", "recovery", "", "detected as"]
    cells = [
        [
            r["group"],
            r["name"],
            r["time_to_safe_ms"],
            r["limit_ms"],
            r["final_state"],
            r["torque"],
            r["recovery"],
            "ok" if r["safe"] else "NOT SAFE",
            r["detected_as"],
        ]
        for r in rows
    ]
    for line in table([c[:-1] for c in cells], head[:-1]):
        click.echo(line)
    write_json(json_path, {"faults": rows})
    if markdown is not None:
        lines = ["| " + " | ".join(head[:7] + head[8:]) + " |", "|" + "---|" * 8]
        lines += ["| " + " | ".join(str(x) for x in c[:7] + c[8:]) + " |" for c in cells]
        write_text(markdown, "\n".join(lines) + "\n")
    unsafe = [r for r in rows if not r["safe"]]
    click.echo(f"{len(rows)} faults in {len({r['group'] for r in rows})} groups, {len(unsafe)} not safe")
    if unsafe:
        sys.exit(1)
