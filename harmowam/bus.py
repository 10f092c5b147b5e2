"""`harmowam bus`: find servos, watch them, check their settings, set an id, and run the fault campaign."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harmowam.options import UserError, errors, json_option, robot_option, to_be_written, write_json, write_text

if TYPE_CHECKING:
    from firmware_bridge.bus.port import Port
    from firmware_bridge.motion.arm import Arm


@click.group()
def bus() -> None:
    """The servo bus: scan, monitor, check, set-id, campaign."""


port_option = click.option("--port", required=True, help="Serial port, best by its name under /dev/serial/by-id.")
baud_option = click.option(
    "--baud", type=int, multiple=True, help="Only this baud rate (default: all that servos have)."
)
protocol_option = click.option(
    "--protocol",
    type=click.Choice(["feetech", "dynamixel", "both"]),
    default="both",
    show_default=True,
    help="Makes of servo to look for.",
)


def protocols(name: str) -> tuple[str, ...]:
    return ("feetech", "dynamixel") if name == "both" else (name,)


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
@port_option
@baud_option
@protocol_option
@click.option("--ids", default="0-20", show_default=True, help="Range of ids to ask, at most 0-252.")
@json_option
@errors
def scan(port: str, baud: tuple[int, ...], protocol: str, ids: str, json_path: Path | None) -> None:
    """List every servo that answers. Only reads; the arm is not touched."""
    from firmware_bridge.service import scan

    found = scan(port, id_range(ids), protocols(protocol), baud, lambda line: click.echo(f"  {line}", err=True))
    rows = []
    for f in found:
        v = f.values
        rows.append(
            [
                f.servo,
                f.model.name if f.model else f"model {f.number}",
                f.baud,
                v.get("firmware", v.get("firmware_major", "?")),
                "on" if v.get("torque_enable") else "off",
                v.get("present_position", "?"),
                v.get("present_voltage", 0) / 10,
                v.get("present_temperature", "?"),
                v.get("homing_offset", "-"),
                f"{v.get('min_position', '?')}..{v.get('max_position', '?')}",
                "two servos share this id" if f.double else "",
            ]
        )
    if not rows:
        raise UserError(f"no servo answers on {port}: check the arm's power supply, the cable, and --ids.")
    for line in table(rows, ["id", "model", "baud", "fw", "torque", "position", "V", "C", "offset", "limits", ""]):
        click.echo(line.rstrip())
    write_json(
        json_path,
        {
            "servos": [
                {
                    "id": f.servo,
                    "model": f.number,
                    "protocol": f.protocol,
                    "baud": f.baud,
                    "double": f.double,
                    **f.values,
                }
                for f in found
            ]
        },
    )


WRONG = ("joint", "servo", "register", "holds", "must hold", "why")
robot_port_option = click.option("--port", help="Serial port (default: the robot file's).")


def open_arm(robot: str, port: str | None) -> tuple[Arm, Port]:
    """The arm of a robot file on its port, which the caller closes."""
    from firmware_bridge.bus.master import Bus
    from firmware_bridge.bus.port import Port
    from firmware_bridge.motion.arm import Arm
    from runtime.robot import load_robot

    described = load_robot(robot)
    if described.simulated and port is None:
        raise UserError(
            "the simulated robot has no serial port: name your arm's file with --robot, or a port with --port."
        )
    config = described.arm
    opened = Port.open(port or described.port, config.baud)
    return Arm(Bus(opened, config.baud, protocol=config.protocol), config), opened


@bus.command()
@robot_option
@robot_port_option
@click.option("--seconds", type=float, help="Stop after this time (default: at Ctrl-C).")
@errors
def monitor(robot: str, port: str | None, seconds: float | None) -> None:
    """Live table of every joint. Only reads; works with the torque off while the arm is moved by hand."""
    import numpy as np

    from firmware_bridge.motion.measurement import NO_REPLY
    from firmware_bridge.servos.sts3215 import conditions

    arm, opened = open_arm(robot, port)
    config = arm.config
    end = time.monotonic() + (seconds if seconds is not None else 1e9)
    drawn, ticks, began = 0, 0, time.monotonic()
    try:
        while time.monotonic() < end:
            m = arm.read()
            arm.read_telemetry()
            ticks += 1
            if ticks % 10 == 0:
                rows = []
                for k, name in enumerate(config.joints):
                    bits = int(m.bits[k])
                    said = "no reply" if bits & NO_REPLY else " ".join(conditions(bits)) or "ok"
                    lost = sum(n for (i, _), n in arm.bus.errors.items() if i == config.ids[k])
                    rows.append(
                        [
                            name,
                            config.ids[k],
                            f"{m.q[k]:+.3f}",
                            f"{np.degrees(m.q[k]):+.1f}",
                            f"{m.qd[k]:+.2f}",
                            f"{arm.current[k]:+.2f}",
                            f"{arm.voltage[k]:.1f}",
                            f"{arm.temperature[k]:.0f}",
                            "off" if arm.limp[k] else "on",
                            lost,
                            said,
                        ]
                    )
                lines = table(rows, ["joint", "id", "rad", "deg", "rad/s", "A", "V", "C", "torque", "errors", "state"])
                lines.append(f"{ticks / (time.monotonic() - began):.0f} readings a second; Ctrl-C ends")
                if drawn and sys.stdout.isatty():
                    click.echo(f"\x1b[{drawn}A", nl=False)
                click.echo("\n".join(f"\x1b[K{line}" if sys.stdout.isatty() else line for line in lines))
                drawn = len(lines)
            time.sleep(0.01)
    except KeyboardInterrupt:
        pass
    finally:
        opened.close()


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

    arm, opened = open_arm(robot, port)
    try:
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
                f"--robot {robot} --fix` sets {'them' if len(rows) > 1 else 'it'} right, with the torque off."
            )
        if rows:
            click.echo(
                "set right; what its steps mean may have changed: calibrate the joints again (`harmowam calibrate "
                "joints`)"
            )
        before_torque.check_file(arm, held)
        before_torque.poses(arm, before_torque.read_settings(arm))
        click.echo(f"{len(arm.ids)} servos hold what they must, and stand where they can be held")
    finally:
        opened.close()


@bus.command("set-id")
@port_option
@baud_option
@protocol_option
@click.option("--to", "new", type=click.IntRange(0, 252), prompt="New id", help="The servo's new id.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@errors
def set_id(port: str, baud: tuple[int, ...], protocol: str, new: int, yes: bool) -> None:
    """Give one servo a new id: connect it alone, and confirm."""
    from firmware_bridge import service
    from firmware_bridge.bus.master import Bus
    from firmware_bridge.bus.port import Port

    if not yes:
        click.pause("Connect the one servo that shall get a new id, and nothing else; then press a key.")
    found = service.scan(port, range(253), protocols(protocol), baud, lambda line: click.echo(f"  {line}", err=True), 2)
    if len(found) != 1 or found[0].double:
        many = "more than one servo answers" if found else "no servo answers"
        raise UserError(f"{many} on {port}: connect the one servo alone, and switch its power on.")
    (servo,) = found
    name = servo.model.name if servo.model else f"model {servo.number}"
    if not yes and not click.confirm(
        f"{name} with id {servo.servo} at {servo.baud} baud: write id {new} to its EEPROM?"
    ):
        return
    opened = Port.open(port, servo.baud)
    try:
        service.set_id(Bus(opened, servo.baud, protocol=servo.protocol), servo, new)
    finally:
        opened.close()
    click.echo(f"{name}: id {servo.servo} is now {new}")


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
    from firmware_bridge.virtual.campaign_dead import campaign
    from firmware_bridge.virtual.campaign_live import campaign_live
    from firmware_bridge.virtual.campaign_start import campaign_start

    rows = campaign(only) + campaign_start(only)
    if not virtual:
        with tempfile.TemporaryDirectory(prefix="harmowam-") as folder:
            rows += campaign_live(Path(folder), only)
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
