"""One arm in radians, converted from servo steps by `ArmConfig`. The servos' EEPROM is compared, never written."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np

from firmware_bridge.bus.answers import Reply
from firmware_bridge.bus.master import Bus
from firmware_bridge.motion import before_torque
from firmware_bridge.motion.config import ArmConfig, ArmError
from firmware_bridge.motion.measurement import DOUBTED, NO_REPLY, TWIN, Measurement, Telemetry
from firmware_bridge.servos.models import MODELS
from firmware_bridge.servos.xseries import conditions as dxl_conditions

TWIN_RAD = 0.2  # two servos of one joint that differ by more get the TWIN bit
JUMP_RAD = 0.12  # a position may change by this, plus what the joint can move in the time, before it is doubted


class Arm:
    """Reads and writes the whole arm through one bus. Not thread-safe: the motor process owns it."""

    def __init__(self, bus: Bus, config: ArmConfig):
        self.bus, self.config = bus, config
        n = len(config.ids)
        self.models = [MODELS[m] for m in config.model_names]
        self.model = self.models[0]  # register addresses are the same for all models of one servo family
        bus.sync = self.model.sync_read
        joint = np.array([*range(n), *(s[1] for s in config.shadows)])
        self._ids = (*config.ids, *(s[0] for s in config.shadows))  # every servo; second servos of a joint last
        self._joint = joint
        sign = np.array([*config.direction, *(s[2] for s in config.shadows)], float)
        gear = np.array(config.gear or (1.0,) * n)[joint]
        unit = np.array([self.models[j].rad_per_step for j in joint])
        self._zero = np.array([*config.zero_step, *(s[3] for s in config.shadows)], float)
        self._rad_per_step = sign * unit / gear  # joint radians per servo step
        self._speed = self._rad_per_step * np.array([self.models[j].speed_steps_s for j in joint])
        self._top_speed = np.array(config.max_velocity) * 1.5  # rad/s; a faster change of position is doubted
        order = self.model.registers["present_position"].address > self.model.registers["present_speed"].address
        first, last = ("present_speed", "present_position") if order else ("present_position", "present_speed")
        self._state = self.model.span(first, last)
        ends, words = "<" if self.model.byteorder == "little" else ">", "ii" if order else "HH"
        self._pair = struct.Struct(ends + words)  # position and speed of one servo
        before, behind = bus.codec.DATA_AT, bus.codec.STATUS_BYTES - bus.codec.DATA_AT
        # position and speed of all servos, in the bytes of their status packets
        self._block = struct.Struct(ends + f"{before}x{words}{behind}x" * len(self._ids))
        self._words: tuple[int, ...] = (0, 0) * len(self._ids)  # newest position and speed words, by servo
        self._top = 1 << 32 if order else 0x8000  # words from here on are negative (sign and magnitude)
        self._no_bits: np.ndarray = np.zeros(len(self._ids), np.uint8)  # no servo reports a condition
        self._no_bits.flags.writeable = False
        self._goal = self.model.registers["goal_position"]
        self._rows = struct.Struct(ends + ("Bi" if self._goal.size == 4 else "BH") * len(self._ids))
        zeros, units = self._zero.tolist(), self._rad_per_step.tolist()
        self._goal_scale = list(zip(self._ids, joint.tolist(), units, zeros, strict=True))
        # per servo: its index, the indices of its position and speed in `_words`, zero step, rad per step, rad/s per
        # unit of speed
        rows = [
            (k, 2 * k + order, 2 * k + (not order), *scale)
            for k, scale in enumerate(zip(zeros, units, self._speed.tolist(), strict=True))
        ]
        self._first_servos, self._second_servos = rows[:n], rows[n:]
        self._numbers = struct.Struct(f"{2 * n}d")
        self._now_ns = 0
        self._last = Measurement(np.zeros(n), np.zeros(n), np.full(n, NO_REPLY, np.uint8))
        self._position = [0.0] * n  # `_last.q` as a list
        self.watchful = False  # True while torque is on: a position that jumps gets the DOUBTED bit
        self.current, self.temperature, self.voltage = (np.zeros(n, np.float32) for _ in range(3))
        self.limp: np.ndarray = np.zeros(n, bool)
        nothing = [0.0] * len(self._ids)
        # telemetry by servo; the public arrays above are by joint
        self._servo_a, self._servo_deg_c, self._servo_v = nothing.copy(), nothing.copy(), nothing.copy()
        self._servo_limp = [False] * len(self._ids)
        self._servos_of = [[k for k, of in enumerate(joint) if of == j] for j in range(n)]  # by joint
        self._caps: dict[int, int] = {}  # torque_limit that each servo's EEPROM allows; only servos that answered
        self._errors: np.ndarray = np.zeros(len(self._ids), np.uint8)  # Dynamixel: hardware errors, as condition bits
        self._alerted = False  # a servo has set its alert flag: from then on cleared flags are looked for too
        self._errors_read = [False] * len(self._ids)  # whether register 70 was read since the servo set its flag
        self._turn = 0  # counts calls of `read_telemetry`

    @property
    def telemetry(self) -> Telemetry:
        return Telemetry(self.current, self.temperature, self.voltage, self.limp)

    def to_steps(self, rad: np.ndarray) -> np.ndarray:
        """Steps of every servo, int[S], second servos last, for joint angles `rad` float[J]."""
        return np.rint(np.asarray(rad, float)[self._joint] / self._rad_per_step + self._zero).astype(int)

    def name(self, servo: int) -> str:
        return self.config.joints[self.joint_of(servo)]

    # ---- before anything moves ---------------------------------------------------------------------------------------
    @property
    def ids(self) -> tuple[int, ...]:
        """Every servo id; second servos of a joint last."""
        return self._ids

    def joint_of(self, servo: int) -> int:
        return int(self._joint[self._ids.index(servo)])

    def check(self, to_move: bool = True) -> None:
        """Compare the servos with the robot file; only reads.

        Raises ArmError when a servo does not answer, two servos share an id, the model is another one, a register
        differs from the file, or a setting would change the motion. With `to_move` also when a joint stands outside the
        range of its goal positions.
        """
        before_torque.check_servos(self)
        held = before_torque.read_settings(self)
        before_torque.check_file(self, held)
        before_torque.check_settings(self, held)
        if to_move:
            before_torque.poses(self, held)

    def fingerprint(self) -> str:
        """SHA-256 over every EEPROM register except baud rate and return delay: equal for the same, unchanged arm."""
        known = [r for r in self.model.registers.values() if r.eeprom and r.name not in ("baud", "return_delay")]
        digest = hashlib.sha256()
        for i in self._ids:
            for r in known:
                reply = self.bus.read(i, r.address, r.size, retries=3)
                digest.update(f"{i} {r.name} {'' if reply is None else reply.data.hex()}\n".encode())
        return digest.hexdigest()

    # ---- every tick --------------------------------------------------------------------------------------------------
    def read(self) -> Measurement:
        """Positions and velocities in one sync read; a silent servo keeps its last values and gets the NO_REPLY bit."""
        return self._measure(self.bus.exchange(b"", self._ids, *self._state))

    def exchange(self, rad: np.ndarray) -> Measurement:
        """Write goals `rad` float64[J], then read all servos, in one write to the port: saves one USB transfer."""
        return self._measure(self.bus.exchange(self._goals(rad), self._ids, *self._state))

    def _measure(self, got: bytes | dict[int, Reply]) -> Measurement:
        """Convert the servos' answers. `got`: all status packets as bytes, or one Reply per servo that answered.

        One plain loop and few arrays: every tick starts after a sleep, with cold CPU caches.
        """
        now = self.bus.sent_ns
        if isinstance(got, bytes):  # every servo has answered, without a transmission error
            words, partial = self._block.unpack(got), False
            flags = got[self.bus.codec.DATA_AT - 1 :: self.bus.codec.STATUS_BYTES + self._state[1]]
            bits = (
                np.array([self._bits(k, b) for k, b in enumerate(flags)], np.uint8)
                if any(flags) or self._alerted
                else self._no_bits
            )
        else:
            held, partial = list(self._words), len(got) < len(self._ids)
            for k, i in enumerate(self._ids):
                if i in got:
                    held[2 * k : 2 * k + 2] = self._pair.unpack(got[i].data)
            words = tuple(held)
            bits = np.array(
                [self._bits(k, got[i].bits) if i in got else NO_REPLY for k, i in enumerate(self._ids)], np.uint8
            )
        self._words = words
        top, jumped, before = self._top, False, self._position
        position, velocity = [], []
        for k, p, v, zero, unit, rate in self._first_servos:
            step, speed = words[p], words[v]
            at = ((step if step < top else 0x8000 - step) - zero) * unit
            if not -JUMP_RAD <= at - before[k] <= JUMP_RAD:
                jumped = self.watchful
            position.append(at)
            velocity.append((speed if speed < top else 0x8000 - speed) * rate)
        if self._second_servos:
            bits = self._twins(bits, words, position)
        both = np.frombuffer(self._numbers.pack(*position, *velocity))  # ten times cheaper than np.array of a list
        q, qd = both[: len(position)], both[len(position) :]
        if not partial and not jumped:
            self._now_ns, self._position = now, position
            self._last = Measurement(q, qd, bits)
        else:
            self._last = self._trust(now, q, qd, bits, jumped)
            self._position = self._last.q.tolist()
        return self._last

    def _twins(self, bits: np.ndarray, words: Sequence[int], position: Sequence[float]) -> np.ndarray:
        """Status bits by joint, uint8[J]: those of both servos, and TWIN where their positions differ."""
        joined = bits[: len(position)].copy()
        for k, p, _, zero, unit, _ in self._second_servos:
            j, step = int(self._joint[k]), words[p]
            at = ((step if step < self._top else 0x8000 - step) - zero) * unit
            joined[j] |= bits[k] | (TWIN if abs(at - position[j]) > TWIN_RAD else 0)
        return joined

    def _trust(self, now: int, q: np.ndarray, qd: np.ndarray, bits: np.ndarray, jumped: bool) -> Measurement:
        """Keep the last good values of joints that did not answer, or that moved faster than a motor can."""
        stale = (bits & NO_REPLY) > 0
        if jumped:
            dt = min(max(now - self._now_ns, 0) * 1e-9, 0.1)  # capped: a long wait must not make a jump acceptable
            doubt = ~stale & (np.abs(q - self._last.q) > self._top_speed * dt + JUMP_RAD)
            bits = bits | np.where(doubt, DOUBTED, 0).astype(np.uint8)
            stale = stale | doubt
        if not stale.any():
            self._now_ns = now
        return Measurement(np.where(stale, self._last.q, q), np.where(stale, self._last.qd, qd), bits)

    def _bits(self, k: int, error: int) -> int:
        """Condition bits of the k-th servo from the error byte of its reply.

        A Dynamixel only sets its alert flag there; the next `read_telemetry` reads which error it is (register 70).
        """
        if not self.bus.dynamixel:
            return error & ~(TWIN | DOUBTED | NO_REPLY)
        if error & 0x80 and not self._errors_read[k]:
            self._turn, self._alerted = 2 * k, True
        elif not error & 0x80:
            self._errors[k], self._errors_read[k] = 0, False
        return int(self._errors[k])

    def read_telemetry(self) -> None:
        """Torque state, voltage, temperature and current of one servo per call; a silent one keeps its last values."""
        turn, n = self._turn, len(self._ids)
        self._turn += 1
        if not self.bus.dynamixel:
            self._read_block(turn % n, "torque_enable", "present_current" if self.model.current_a else "status")
            return
        k = turn // 2 % n  # a Dynamixel's registers lie apart: two short reads instead of one long read
        if turn % 2 == 0:
            self._errors_read[k] = True  # even without an answer, else the other servos would never be read
            self._read_block(k, "torque_enable", "watchdog")
        else:
            current = self.models[self._joint[k]].current_a
            self._read_block(k, "present_current" if current else "present_load", "present_temperature")

    def _read_block(self, k: int, first: str, last: str) -> None:
        """Read the registers from `first` to `last` of the k-th servo and update the telemetry of its joint."""
        m = self.models[int(self._joint[k])]
        address, size = m.span(first, last)
        reply = self.bus.read(self._ids[k], address, size, retries=0)
        if reply is None:
            return

        def value(name: str) -> int | None:
            r = m.registers.get(name)
            inside = r is not None and address <= r.address and r.address + r.size <= address + len(reply.data)
            return m.decode(name, reply.data, r.address - address) if r is not None and inside else None

        torque, volt, warm = value("torque_enable"), value("present_voltage"), value("present_temperature")
        current, error = value("present_current"), value("hardware_error")
        if torque is not None:
            self._servo_limp[k] = torque != 1 or value("watchdog") == -1  # after a watchdog error goals are refused
        if volt is not None:
            self._servo_v[k] = volt / 10
        if warm is not None:
            self._servo_deg_c[k] = warm
        if current is not None:
            self._servo_a[k] = current * m.current_a
        if error is not None:
            self._errors[k] = dxl_conditions(error)
        j = int(self._joint[k])
        own = self._servos_of[j]
        self.current[j], self.limp[j] = self._servo_a[j], any(self._servo_limp[i] for i in own)
        self.temperature[j] = max(self._servo_deg_c[i] for i in own)
        self.voltage[j] = min((self._servo_v[i] for i in own if self._servo_v[i]), default=0.0)

    def write_goals(self, rad: np.ndarray) -> None:
        """Goal positions of all joints, float64[J] rad, in one sync write."""
        self.bus.send(self._goals(rad))

    def _goals(self, rad: np.ndarray) -> bytes:
        """The packet of `write_goals`."""
        goals = rad.tolist()
        wide = self._goal.size == 4
        rows: list[int] = []
        for i, j, unit, zero in self._goal_scale:
            s = round(goals[j] / unit + zero)
            rows += (i, s if wide or s >= 0 else 0x8000 - s)
        return self.bus.codec.sync_write_rows(self._goal.address, self._goal.size, self._rows.pack(*rows))

    # ---- torque ------------------------------------------------------------------------------------------------------
    def _write_all(self, name: str, value: int) -> None:
        r = self.model.registers[name]
        self.bus.sync_write(r.address, dict.fromkeys(self._ids, self.model.encode(name, value)))

    def _read_all(self, name: str, retries: int = 2) -> dict[int, int]:
        r = self.model.registers[name]
        got = self.bus.sync_read(self._ids, r.address, r.size, retries)
        return {i: self.model.decode(name, reply.data) for i, reply in got.items()}

    def read_span(self, first: str, last: str) -> dict[int, dict[str, int]]:
        """All registers from `first` to `last` of every servo that answers, by servo id and register name."""
        address, size = self.model.span(first, last)
        got = self.bus.sync_read(self._ids, address, size, retries=2)
        return {
            i: {
                r.name: m.decode(r.name, reply.data, r.address - address)
                for r in m.registers.values()
                if address <= r.address and r.address + r.size <= address + size
            }
            for i, reply in got.items()
            for m in (self.models[self.joint_of(i)],)
        }

    def read_steps(self) -> dict[int, int]:
        """Present position in steps of every servo that answers, by servo id."""
        return self._read_all("present_position", retries=3)

    def energised(self) -> bool:
        """Whether any servo has its torque on."""
        return any(v == 1 for v in self._read_all("torque_enable").values())

    def _read_caps(self) -> None:
        """Read once how much torque each servo's EEPROM allows; for an SO-101's gripper often half, against
        overheating."""
        if len(self._caps) < len(self._ids):
            self._caps.update(self._read_all(self.model.torque_cap))

    def full(self, servo: int) -> int:
        """The highest torque_limit that the servo's EEPROM allows; the model's highest where that was not read."""
        most = self.model.full_torque
        return min(self._caps.get(servo, most), most)

    def torque_on(self) -> None:
        """Hold the arm where it is: set each goal to the present position, then switch the torque on.

        Registers that another program may have changed (`LEFT_OVERS`) get their normal values first, and the torque
        limit is what each servo's EEPROM allows. An arm whose torque is already on keeps it throughout. The bus
        watchdog of a Dynamixel is set to 200 ms as a second protection.

        Raises ArmError before any torque is on when a servo does not answer, has a setting that would change the
        motion, stands outside the range of its goal positions, or does not keep a written value; and afterwards when
        the torque of a servo stays off.
        """
        held = before_torque.read_settings(self)
        before_torque.check_settings(self, held)
        goals = before_torque.poses(self, held)
        self._caps = {i: held[i][self.model.torque_cap] for i in self._ids}
        self.watchful = False
        self.read()
        if self.bus.dynamixel:
            self._write_all("watchdog", 0)
        before_torque.clear_left_overs(self, held, goals)
        self._write_all("torque_enable", 1)
        on = self._read_all("torque_enable")
        limp = [i for i in self._ids if on.get(i) != 1]
        if limp:
            raise ArmError(
                f"servo {', '.join(map(str, limp))} did not switch its torque on: power the arm off and on, then try "
                "again."
            )
        if self.bus.dynamixel:
            self._write_all("watchdog", 10)
        self.limp[:] = False
        self._servo_limp = [False] * len(self._ids)
        self.watchful = True

    def calm(self) -> None:
        """Make Dynamixel servos accept goals again after their master died, and set the goal to the present position.

        A bus watchdog error makes the goal position read-only; writing 0 to the watchdog clears it.
        """
        if self.bus.dynamixel:
            self._write_all("watchdog", 0)
            measured = self.read()
            if not (measured.bits & NO_REPLY).any():
                self.write_goals(measured.q)

    def set_torque(self, share: float) -> None:
        """Torque limit of all servos, 0..1 of what their EEPROM allows.

        A sync write, which no servo acknowledges: one servo that refuses does not delay the others.
        """
        share = min(max(share, 0.0), 1.0)
        limits = {i: self.model.encode("torque_limit", int(self.full(i) * share)) for i in self._ids}
        self.bus.sync_write(self.model.registers["torque_limit"].address, limits)

    def torque_share(self) -> float:
        """The highest present torque limit of all servos, 0..1 of what the EEPROM allows; 1 when no servo answers."""
        self._read_caps()
        shares = (v / max(self.full(i), 1) for i, v in self._read_all("torque_limit").items())
        return min(max(shares, default=1.0), 1.0)

    def torque_off(self) -> list[int]:
        """Switch the torque of every servo off, first all together, then one by one those that still hold.

        Returns the ids whose torque may be on. Stops at the bus's `until_ns`: a longer tick would look like a stall.
        """
        self.watchful = False
        enable = self.model.registers["torque_enable"]
        if self.bus.dynamixel:
            self._write_all("watchdog", 0)
        holding: list[int] = []
        for _ in range(3):
            self._write_all("torque_enable", 0)
            off = self._read_all("torque_enable", retries=1)
            holding = [i for i in self._ids if off.get(i) != 0]
            if not holding or self.bus.time_is_up():
                break
            for i in holding:
                if self.bus.time_is_up():
                    break
                self.bus.write(i, enable.address, b"\x00")
        if not holding and len(self._caps) == len(self._ids) and not self.bus.time_is_up():
            self.set_torque(1.0)  # the ramp ended at 0, which would leave the next program an arm without torque
        return holding
