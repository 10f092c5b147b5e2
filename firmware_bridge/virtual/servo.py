"""One virtual servo: registers, EEPROM lock, overload latch, shutdown, reboot, watchdog, warmth. Both protocols.

Behaviour as the vendors document it and as users measured it (docs/firmware_bridge.md lists what is unsure); the motor
itself is the `Plant`. Nothing here knows packets: `bus.py` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from firmware_bridge.codecs.feetech import MAX_PACKET, STATUS_BYTES
from firmware_bridge.servos.registers import Model, Register
from firmware_bridge.virtual.table import RANGES, end_of_table, holds, refusal

AMBIENT_C = 30.0  # deg C
# deg C over it at full load, in the end; with COOLING_S 43 % load for 28 min makes 65 (measured by a user of the
# STS3215)
HEAT_C = 213.0
COOLING_S = 600.0  # s: time constant
VOLTAGE, ENCODER, TEMPERATURE, CURRENT, OVERLOAD = 1, 2, 4, 8, 32  # Feetech's condition bits
FREE_STEPS_S = 3200.0  # a motor without load at full output
ENDLESS = 1e9  # steps: as good as for ever


class VirtualServo:
    """Registers `memory` of one servo and what its firmware does with them. Times are nanoseconds on the bus's
    clock."""

    def __init__(self, servo: int, model: Model):
        self.model = model
        self.memory = bytearray(256)
        # What `memory` is known to hold: values are asked for far more often than changed.
        self._known: dict[str, int] = {}
        self._holds = {r.name: holds(r) for r in model.registers.values()}
        for r in model.registers.values():
            self._store(r.name, servo if r.name == "id" else r.default)
        self.stored = bytes(self.memory)  # EEPROM and power-on values
        self.torque_at_power_on = 0
        self.pending: tuple[int, bytes] | None = None  # Feetech REG_WRITE
        # What the encoder says instead of the truth (steps, ns).
        self.sensor: Callable[[float, int], float] | None = None
        self.jammed = False  # takes goals and does not move
        self.keeps_torque = False  # refuses to switch its torque off
        self.latched = False  # Feetech overload: output at overload_torque until the next goal
        self.forced_bits = 0  # condition bits that a fault holds up
        self.temperature: float | None = None  # deg C; None: by the model of warmth
        self.supply_v: float | None = None  # None: as it should be, less the sag
        self.nominal_v = model.registers["present_voltage"].default / 10
        self._warmth, self._then = AMBIENT_C, 0
        self._over_since: int | None = None
        self.heard_ns = 0  # last instruction on the bus (watchdog)
        self._way = float(model.steps)  # steps from where it stood when its goal came to that goal
        self._step_to: float | None = None  # Feetech's mode 3: where its last step leads
        self._inside: dict[tuple[int, int], list[Register]] = {}  # what `_within` found
        self._phase_at = model.registers["phase"].address if "phase" in model.registers else None
        self._lift = 0  # `_turned`, as the motor was driven by it last
        self.stood = 0.0  # where the joint was when it was looked at last, steps
        self.feetech = model.protocol == "feetech"
        # Feetech: highest value of registers that take no other, by address.
        self._highest = {model.registers[name].address: high for name, (_, high) in RANGES["feetech"].items()}
        goal = model.registers["goal_position"]
        self._goal_span = goal.address, goal.address + goal.size

    def _store(self, name: str, value: int) -> None:
        """Set a register, at the end of what it can hold where `value` lies beyond."""
        if self._known.get(name) != value:
            r, (low, high) = self.model.registers[name], self._holds[name]
            value = min(max(value, low), high)
            self.memory[r.address : r.address + r.size] = self.model.encode(name, value)
            self._known[name] = value

    def put(self, name: str, value: int, keep: bool = True) -> None:
        """Set a register as if the servo had it so, for EEPROM registers also in the EEPROM."""
        self._store(name, value)
        r = self.model.registers[name]
        if r.eeprom and keep:
            self._keep(r.address, r.address + r.size)

    def get(self, name: str) -> int:
        value = self._known.get(name)
        if value is None:
            value = self._known[name] = self.model.decode(name, self.memory, self.model.registers[name].address)
        return value

    def _within(self, a: int, b: int) -> list[Register]:
        """Registers that bytes `a` to `b` touch."""
        if (a, b) not in self._inside:
            every = self.model.registers.values()
            self._inside[a, b] = [r for r in every if r.address < b and r.address + r.size > a]
        return self._inside[a, b]

    def _forget(self, a: int, b: int) -> None:
        """Bytes `a` to `b` have been written: what they hold is not known."""
        for r in self._within(a, b):
            self._known.pop(r.name, None)

    def _keep(self, a: int, b: int) -> None:
        self.stored = self.stored[:a] + bytes(self.memory[a:b]) + self.stored[b:]

    def power_on(self, position: float) -> None:
        """Brown-out, reset or reboot: RAM at its defaults, EEPROM as stored, goal at the present position."""
        self.memory[:] = self.stored
        self._known.clear()
        self.latched, self._over_since, self.pending, self._step_to = False, None, None, None
        self._store("torque_enable", self.torque_at_power_on)
        if self._has("torque_limit"):
            self._store("torque_limit", self.get(self.model.torque_cap))
        self.stood = position
        self._store("goal_position", self.shown(position))

    def shown(self, actual: float) -> int:
        """Present position register for an actual position in steps.

        An STS whose Phase bit 4 is clear says its angle within one turn (the maker's memory table, Servo Phase: 0,
        single-turn angle feedback): encoder and offset add up to 0..4095. In position mode a plant that stands outside
        the encoder's turn is read on from its end: so a joint can be put where its servo cannot be sent.
        """
        added = self._added()
        return round(actual) + added + self._turned(actual, added)

    def _turned(self, actual: float, added: int) -> int:
        """Steps, whole turns, that bring the sum of encoder and offset into the turn."""
        if self._phase_at is None or self.memory[self._phase_at] & 16:
            return 0
        steps, encoder = self.model.steps, round(actual)
        if not 0 <= encoder < steps and self.get("mode") == 0:
            encoder = 0 if encoder < 0 else steps - 1
        return -steps * ((encoder + added) // steps)

    def actual(self, shown: int) -> int:
        """Inverse of `shown` where the joint is now: a servo goes to its goal without crossing the end of its turn."""
        added = self._added()
        self._lift = self._turned(self.stood, added)
        return shown - added - self._lift

    def _added(self) -> int:
        if not self._has("homing_offset"):
            return 0
        return self.model.added(self.get("homing_offset"), self.get("mode"))

    def _has(self, name: str) -> bool:
        return name in self.model.registers

    # ---- what the bus asks -------------------------------------------------------------------------------------------
    def bits(self) -> int:
        """Condition byte of a Feetech status; alert bit of a Dynamixel one."""
        if self.feetech:
            return self.memory[65] | self.forced_bits | (OVERLOAD if self.latched else 0)
        return 0x80 if self.get("hardware_error") else 0

    def answers(self, read: bool) -> bool:
        """Whether its response level lets it answer a read, or else a write. (It answers a ping at any.)"""
        level = self.get("response_level")
        return read or level > 0 if self.feetech else level > (0 if read else 1)

    def torque(self) -> bool:
        return self.get("torque_enable") == 1 and not self.jammed

    def share(self) -> float:
        """Output that the registers allow, 0..1."""
        limit = self.get("torque_limit") / self.model.full_torque if self._has("torque_limit") else 1.0
        if not self.feetech and self.get("mode") in (0, 5) and self._has("goal_current"):
            limit = min(limit, abs(self.get("goal_current")) / max(self.get("current_limit"), 1))
        return min(limit, self.get("overload_torque") / 100) if self.latched else limit

    def limits(self) -> tuple[float, float]:
        """Between which it takes goals; multi-turn modes, and Feetech's limits of 0 and 0, know none."""
        low, high = self.get("min_position"), self.get("max_position")
        endless = high == 0 == low if self.feetech else self.get("mode") in (4, 5)
        return (-ENDLESS, ENDLESS) if endless else (low, high)

    def _follows_goals(self) -> bool:
        """Whether its mode makes a goal a position."""
        return not self._has("mode") or self.get("mode") in ((0,) if self.feetech else (3, 4, 5))

    def unlike_its_goal(self) -> bool:
        """Whether it goes to its goal in another way than as fast as it can: by a profile, or not at all."""
        pace = ("goal_speed", "goal_time", "acceleration", "profile_velocity", "profile_acceleration")
        return not self._follows_goals() or any(self.get(n) for n in pace if self._has(n))

    def drive(self, goal: float) -> tuple[float, float]:
        """Where to (actual steps) and how fast (step/s, 0: its own speed) the motor is driven for a goal within the
        limits."""
        return (goal, self._pace()) if self._follows_goals() else self._turns()

    def _pace(self) -> float:
        """Speed limit in step/s that its profile registers make of the way to the goal, 0 without one.

        A joint that speeds up and brakes by `a` gets no faster than sqrt(a way).
        """
        if self.feetech:
            speed, seconds = float(abs(self.get("goal_speed"))), abs(self.get("goal_time")) / 1000
            rate = 100.0 * self.get("acceleration") if self._has("acceleration") else 0.0
        else:
            speed, seconds, rate = self.get("profile_velocity") * self.model.speed_steps_s, 0.0, 0.0
            if self.get("drive_mode") & 4:  # time-based: milliseconds to the goal
                speed, seconds = 0.0, self.get("profile_velocity") / 1000
            else:
                rate = self.get("profile_acceleration") * 214.577 / 3600 * self.model.steps
        limits = (speed, self._way / seconds if seconds else 0.0, math.sqrt(rate * self._way))
        return min((v for v in limits if v), default=0.0)

    def _turns(self) -> tuple[float, float]:
        """The same of a servo whose mode makes a goal no position."""
        here, mode = float(self.actual(self.get("present_position"))), self.get("mode")
        if self.feetech and mode == 3:
            return here if self._step_to is None else self._step_to, self._pace()
        if mode == 1:
            rate: float = self.get("goal_speed") * (1.0 if self.feetech else self.model.speed_steps_s)
        elif self.feetech:
            rate = FREE_STEPS_S * self.get("goal_time") / 1000
        elif mode == 16:
            rate = FREE_STEPS_S * self.get("torque_limit") / self.model.full_torque
        else:
            rate = FREE_STEPS_S * self.share() * (1 if self.get("goal_current") >= 0 else -1)
        return here + math.copysign(ENDLESS, rate) if rate else here, abs(rate)

    def read(self, address: int, size: int) -> bytes | None:
        """Bytes of the table, None where it gives none: a Dynamixel answers beyond its table with an access error
        (e-manual, protocol 2.0), a Feetech keeps silent when its answer does not fit into a packet, and reads 0 where
        it has no register."""
        if size > MAX_PACKET - STATUS_BYTES if self.feetech else address + size > end_of_table(self.model):
            return None
        return bytes(self.memory[address : address + size]).ljust(size, b"\0")

    def keep_for_later(self, address: int, data: bytes) -> int:
        """Reg write: what an action is to write; returns the Dynamixel error number."""
        error = 0 if self.feetech else self._refuses(address, data)
        if not error:
            self.pending = (address, data)
        return error

    def _refuses(self, address: int, data: bytes) -> int:
        return refusal(self.model, self._within(address, address + len(data)), self.get, address, data)

    def write(self, address: int, data: bytes) -> int:
        """Write registers; returns the Dynamixel error number (0: done). Feetech acknowledges what it does not take:
        its status holds conditions, no errors."""
        end = address + len(data)
        goal = address < self._goal_span[1] and end > self._goal_span[0]
        if self.feetech:
            self._write_feetech(address, data)
            if goal:
                self._take_goal()
            if goal and self.latched:  # a fresh goal ends the overload latch
                self.latched, self._over_since = False, None
            return 0
        error = self._refuses(address, data)
        if error:
            return error
        if goal and self.get("hardware_error"):
            return 0  # after a shutdown goals are taken and do nothing
        before = self.get("torque_enable")
        self.memory[address:end] = data
        self._forget(address, end)
        if goal:
            self._take_goal()
        if self.get("torque_enable") and self.get("hardware_error"):
            self._store("torque_enable", 0)
        if before and not self.get("torque_enable") and self.keeps_torque:
            self._store("torque_enable", before)
        if address < 64:
            self._keep(address, min(end, 64))
        return 0

    def _take_goal(self) -> None:
        self._way = float(abs(self.get("goal_position") - self.get("present_position")))
        if self.feetech and self._has("mode") and self.get("mode") == 3:
            self._step_to = float(self.actual(self.get("present_position") + self.get("goal_position")))

    def _write_feetech(self, address: int, data: bytes) -> None:
        m, before = self.memory, self.memory[40]
        unlocked = self._has("lock") and self.get("lock") == 0
        for k, byte in enumerate(data):
            at = address + k
            if 56 <= at < 71 or at < 5 or at >= len(m):
                continue  # read-only: accepted and ignored
            if byte > self._highest.get(at, 255):
                continue
            m[at] = byte
            if at < 40 and unlocked:
                self._keep(at, at + 1)
        self._forget(address, address + len(data))
        if before and not m[40] and self.keeps_torque:
            self._store("torque_enable", before)
        if (
            address <= 40 < address + len(data) and m[40] == 128 and self._has("homing_offset")
        ):  # take the present position as the middle
            shown = self.get("present_position")
            self.put("homing_offset", max(-2047, min(2047, self.get("homing_offset") + shown - self.model.steps // 2)))
            self._store("torque_enable", 0)

    # ---- what time does ----------------------------------------------------------------------------------------------
    def refresh(self, now_ns: int, position: float, velocity: float, load: float, sag_v: float) -> bool:
        """Present registers from the truth; returns whether the drive has to be told something new."""
        m = self.model
        load = max(-1.0, min(1.0, load))
        added = self._added()
        turned, crossed = self._turned(position, added), False
        if turned != self._lift:  # it was turned across the end of its turn: the same goal lies elsewhere
            self._lift, crossed = turned, True
        self.stood = position
        wrong = self.sensor(position, now_ns) - position if self.sensor is not None else 0.0
        self._store("present_position", round(round(position) + added + turned + wrong))
        speed = round(velocity / m.speed_steps_s)
        self._store("present_speed", speed)
        if self._has("present_load"):
            self._store("present_load", int(1000 * load))
        if m.current_a:
            self._store("present_current", int(1.2 * load / m.current_a))
        dt = max(now_ns - self._then, 0) * 1e-9
        self._then = now_ns
        self._warmth += (HEAT_C * load * load - (self._warmth - AMBIENT_C)) * min(dt / COOLING_S, 1.0)
        warm = self._warmth if self.temperature is None else self.temperature
        self._store("present_temperature", min(int(warm + 0.5), 255))
        volt = self.nominal_v - sag_v if self.supply_v is None else self.supply_v
        self._store("present_voltage", round(volt * 10))
        if self.feetech:
            self._store("moving", int(abs(speed) > 2))
            low, high = self.get("min_voltage") / 10, self.get("max_voltage") / 10
            hot = warm >= self.get("max_temperature")
            self._store("status", (0 if low <= volt <= high else VOLTAGE) | (TEMPERATURE if hot else 0))
            return self._overload(now_ns, load) or crossed
        return self._shutdown(now_ns, load, warm, volt)

    def _overload(self, now_ns: int, load: float) -> bool:
        if not self._has("overload_threshold") or abs(load) * 100 <= self.get("overload_threshold"):
            self._over_since = None
        elif self._over_since is None:
            self._over_since = now_ns
        elif not self.latched and now_ns - self._over_since > self.get("overload_time") * 10_000_000:
            self.latched = True
            return True
        return False

    def _shutdown(self, now_ns: int, load: float, warm: float, volt: float) -> bool:
        """Dynamixel: hardware errors, and the shutdown that they cause until a reboot; the bus watchdog."""
        error = self.get("hardware_error")
        low, high = self.get("min_voltage") / 10, self.get("max_voltage") / 10
        error |= (0 if low <= volt <= high else 1) | (4 if warm >= self.get("max_temperature") else 0)
        if abs(load) > 0.95:
            self._over_since = self._over_since if self._over_since is not None else now_ns
            error |= 32 if now_ns - self._over_since > 1_000_000_000 else 0
        else:
            self._over_since = None
        self._store("hardware_error", error)
        if error & self.get("shutdown") and self.get("torque_enable"):
            self._store("torque_enable", 0)
            return True
        watchdog = self.get("watchdog")
        if watchdog > 0 and self.get("torque_enable") and now_ns - self.heard_ns > watchdog * 20_000_000:
            self._store("watchdog", -1)
            if self.model.watchdog_stops:
                self._store("goal_position", self.get("present_position"))
            return True
        return False
