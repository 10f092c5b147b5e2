"""Register tables of the Dynamixel X series (protocol 2.0), and the differences between its models.

Source: ROBOTIS e-manual, control tables of XL330, XL430, XC330, XC430, XM430, XM540, XH540.
"""

from __future__ import annotations

import dataclasses

from firmware_bridge.servos.registers import Model, Register

# What the register "baud" stands for, from 0 on. Delivered with 1; the smallest models do not know the last.
BAUDS = (9_600, 57_600, 115_200, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 4_500_000)
_SPEED = 0.229 / 60 * 4096  # step/s per unit of speed, 0.229 rpm

_X = (
    Register("model", 0, 2, 0, False, True),
    Register("firmware", 6, 1, 52, False, True),
    Register("id", 7, 1, 1, True, True),
    Register("baud", 8, 1, 1, True, True),
    Register("return_delay", 9, 1, 250, True, True),
    Register("drive_mode", 10, 1, 0, True, True),
    Register("mode", 11, 1, 3, True, True),
    Register("secondary_id", 12, 1, 255, True, True),
    Register("homing_offset", 20, 4, 0, True, True, signed=True),
    Register("max_temperature", 31, 1, 80, True, True),
    Register("max_voltage", 32, 2, 160, True, True),
    Register("min_voltage", 34, 2, 60, True, True),
    Register("pwm_limit", 36, 2, 885, True, True),
    Register("current_limit", 38, 2, 1193, True, True),
    Register("velocity_limit", 44, 4, 200, True, True),
    Register("max_position", 48, 4, 4095, True, True),
    Register("min_position", 52, 4, 0, True, True),
    Register("startup", 60, 1, 0, True, True),
    Register("shutdown", 63, 1, 52, True, True),
    Register("torque_enable", 64, 1),
    Register("led", 65, 1),
    Register("response_level", 68, 1, 2),
    Register("hardware_error", 70, 1, 0, False),
    Register("d_gain", 80, 2, 0),
    Register("i_gain", 82, 2, 0),
    Register("p_gain", 84, 2, 800),
    Register("feedforward_2nd", 88, 2),
    Register("feedforward_1st", 90, 2),
    Register("watchdog", 98, 1, 0, signed=True),
    Register("torque_limit", 100, 2, 885, signed=True),
    Register("goal_current", 102, 2, 1193, signed=True),
    Register("goal_speed", 104, 4, 0, signed=True),
    Register("profile_acceleration", 108, 4),
    Register("profile_velocity", 112, 4),
    Register("goal_position", 116, 4, 2048, signed=True),
    Register("tick_ms", 120, 2, 0, False),
    Register("moving", 122, 1, 0, False),
    Register("present_pwm", 124, 2, 0, False, signed=True),
    Register("present_current", 126, 2, 0, False, signed=True),
    Register("present_speed", 128, 4, 0, False, signed=True),
    Register("present_position", 132, 4, 2048, False, signed=True),
    Register("present_voltage", 144, 2, 120, False),
    Register("present_temperature", 146, 1, 30, False),
)


def _model(
    name: str,
    number: int,
    current_a: float = 0.0,
    volt: int = 120,
    watchdog_stops: bool = True,
    gains: tuple[int, int, int] = (800, 0, 0),
    current: int = 0,
) -> Model:
    """One model. `volt`: supply voltage in 0.1 V. `gains` (P, I, D) and `current` (the current limit): factory values.

    `current_a` 0: register 126 holds the load (0.1 %), and there is neither a current limit nor a goal current.
    """
    change = {"model": number, "present_voltage": volt, "shutdown": 53 if volt < 80 else 52}
    change.update(zip(("p_gain", "i_gain", "d_gain"), gains, strict=True), current_limit=current, goal_current=current)
    if volt < 80:
        change.update(max_voltage=70, min_voltage=35, max_temperature=70)
    rows = [dataclasses.replace(r, default=change.get(r.name, r.default)) for r in _X]
    if not current_a:
        rows = [
            dataclasses.replace(r, name="present_load") if r.name == "present_current" else r
            for r in rows
            if r.name not in ("current_limit", "goal_current")
        ]
    return Model(
        name,
        number,
        "dynamixel",
        {r.name: r for r in rows},
        speed_steps_s=_SPEED,
        current_a=current_a,
        full_torque=885,
        torque_cap="pwm_limit",
        offset_sign=1,
        watchdog_stops=watchdog_stops,
    )


# Servos of size 330: a watchdog error does not stop the motor (forum.robotis.com/t/4814, firmware 51).
XSERIES = (
    _model("XL330-M077", 1190, 0.001, 50, False, (400, 400, 0), 1750),
    _model("XL330-M288", 1200, 0.001, 50, False, (400, 0, 0), 1750),
    _model("XC330-T288", 1220, 0.001, 120, False, (900, 0, 0), 910),
    _model("XL430-W250", 1060, gains=(640, 0, 4000)),
    _model("XC430-W150", 1070, gains=(460, 0, 0)),
    _model("XM430-W350", 1020, 0.00269, current=1193),
    _model("XM540-W270", 1120, 0.00269, current=2047),
    _model("XH540-W150", 1110, 0.00269, current=2047),
)

_LIKE_FEETECH = {0: 0, 2: 2, 3: 1, 4: 3, 5: 5}


def conditions(hardware_error: int) -> int:
    """Hardware Error Status (register 70) of a Dynamixel in the layout of Feetech's condition bits."""
    return sum(1 << to for bit, to in _LIKE_FEETECH.items() if hardware_error >> bit & 1)
