"""Lowering: joint way-points from any pose to the rest pose, along a path that stays above the table.

The path has four parts: up until every part of the arm is `CLEAR_M` above the table (the tool straight up where the
joints allow it), to the posture above the rest pose, then turn the base joint, then down the reverse of the path that
leads up from the rest pose. The table is the plane z = 0 of the arm's base frame. An arm whose family is not known
(`firmware_bridge.arms`) goes straight to rest.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator

import numpy as np

from firmware_bridge.arms import FAMILIES, Family
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.motion.limits import Limiter

# The path up, from the measured pose and from the rest pose.
CLEAR_M = 0.09  # height of the lowest part over the table at which the path up ends
RISE_M = 0.01  # one step moves the tool straight up by this
TURN_RAD = 0.06  # where it cannot, one step turns each raising joint by this or not at all
STEPS = 60  # most steps
MOST_RAD = 2.0  # longest path: sum over the steps of the largest joint movement
BEND_RAD = 0.03  # a pose closer than this to the straight line between its neighbours is no way-point
POINTS = 6  # most way-points
MARGIN_M = 0.004  # least distance between parts of the arm
# The path over the table, between the ends of the two paths up.
SAG_M = 0.002  # the distance between parts of the arm may be this much less than on the path up
DIP_M = 0.01  # the lowest part may be this much lower than at the ends
SAMPLE_RAD = 0.1  # distance between the poses that are checked
# The motion to rest.
NEAR_RAD = 0.2  # an arm closer to rest than this in every joint goes straight down
REST_TOLERANCE = 0.06  # rad: an arm closer to rest than this in every joint but the jaw is at rest
REST_TIMEOUT_S = 6.0  # s: least time limit for the last segment
REST_SHARE = 1.5  # the time limit is at least this many times the duration at lowering speed
REACHED_RAD = 1e-6  # rad: goals closer to a way-point than this have reached it
SETTLE_S = 0.5  # s: longest wait for the arm at a way-point that its goals have reached


Way = list[np.ndarray]
Slices = Generator[None, None, Way]  # plans one slice per `next`, because a tick has little spare time


def plan(config: ArmConfig, q: np.ndarray) -> Way:
    """Way-points float64[J] (rad) from the measured pose `q` [J]; the last one is the rest pose with the jaw as in `q`.

    The segments are straight in joint space: all joints must arrive together (`travel_s`).
    """
    return _all_of(_planned(config, q))


def raised(config: ArmConfig, q: np.ndarray) -> Way:
    """Way-points float64[J] (rad), the first is `q` [J], up to where every part is `CLEAR_M` above the table, or as
    high as the arm gets. Only `q` for an arm that is high enough, or whose family is not known."""
    family = family_of(config)
    q = np.clip(q, config.lower, config.upper)
    return [q] if family is None else _all_of(_raised(config, family, q))


def _all_of(slices: Slices) -> Way:
    while True:
        try:
            next(slices)
        except StopIteration as planned:
            return list(planned.value)


def _planned(config: ArmConfig, q: np.ndarray) -> Slices:
    q = np.clip(q, config.lower, config.upper)
    rest = np.append(np.array(config.rest)[:-1], q[-1])
    family = family_of(config)
    if family is None or bool((np.abs(q - rest) < NEAR_RAD).all()):
        return [rest]
    up = yield from _raised(config, family, q)
    down = yield from _raised(config, family, rest)
    over = yield from _over(family, up[-1], down[-1])
    return [*up[1:], *over, *down[-2::-1]]


def family_of(config: ArmConfig) -> Family | None:
    """Kinematics and shape of the arm; None where its family is not known."""
    family = FAMILIES.get(config.family)
    return family if family is not None and len(family.JOINTS) == len(config.joints) else None


def _raised(config: ArmConfig, family: Family, q: np.ndarray) -> Slices:
    way = [q]
    height, travel = float(family.lowest(q)), 0.0
    while height < CLEAR_M and travel < MOST_RAD and len(way) <= STEPS:
        step = _step_up(config, family, way[-1], height)
        if step is None:
            break
        travel += float(np.abs(step - way[-1]).max())
        height = float(family.lowest(step))
        way.append(step)
        yield
    bend = BEND_RAD
    while len(thin := _thinned(way, bend)) > POINTS:
        bend *= 1.5
    return thin


def travel_s(speed: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """Duration in s from `start` to `end` (float64[J] rad) when no joint is faster than `speed` (rad/s)."""
    return float((np.abs(end - start) / speed).max(initial=0.0))


def longest_s(config: ArmConfig) -> float:
    """Upper bound, in s, on the motion to rest from any pose within the limits, with the waits at the way-points."""
    lower, upper, rest = (np.array(v)[:-1] for v in (config.lower, config.upper, config.rest))
    slow, family = _slow(config)[:-1], family_of(config)

    def longest_move_s(to: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(lower - to), np.abs(upper - to)) / slow

    if family is None:
        return max(REST_TIMEOUT_S, REST_SHARE * float(longest_move_s(rest).max()))
    raising = list(family.RAISING)
    posture = longest_move_s(rest)
    posture[raising] = ((upper - lower) / slow)[raising]
    climb = (MOST_RAD + 2 * TURN_RAD) / float(slow.min())
    upright = float(longest_move_s(family.UPRIGHT[:-1])[raising].max())
    over = upright + float(posture.max()) + float(longest_move_s(rest)[family.PAN])
    segments = 2 * (POINTS - 1) + 3
    planning = (2 * STEPS + 12) / config.motor_hz
    return planning + 2 * climb + over + (segments - 1) * SETTLE_S + max(REST_TIMEOUT_S, REST_SHARE * climb)


def _slow(config: ArmConfig) -> np.ndarray:
    """The speed of lowering, float64[J] rad/s."""
    return np.minimum(config.max_velocity, config.lower_speed)


class Descent:
    """Follows the way-points of `plan` to rest, through the limiter that already makes the goals.

    Make it when the goals stand still; it plans from `measured` float64[J] (rad), one slice per tick. The jaw keeps its
    goal: the gripper keeps what it holds and does not squeeze harder.
    """

    def __init__(self, config: ArmConfig, limiter: Limiter, measured: np.ndarray):
        self._config, self._limiter, self._slow = config, limiter, _slow(config)
        self._planning = _planned(config, measured)
        self._way: Way = []

    def _set_out(self, now_ns: int) -> None:
        """Start towards the next way-point."""
        seconds = REST_SHARE * travel_s(self._slow[:-1], self._limiter.ahead[:-1], self._way[0][:-1])
        self._give_up_ns = now_ns + int(max(REST_TIMEOUT_S, seconds) * 1e9)  # used for the last way-point only
        self._reached_ns = 0  # when the goals reached the way-point; 0 before

    def step(self, now_ns: int, measured: np.ndarray) -> np.ndarray | None:
        """Goal of this tick, float64[J] rad; None when the arm is at rest or the time limit has passed.

        `measured`: present position, float64[J] rad.
        """
        if not self._way:
            try:
                next(self._planning)
                return self._limiter.brake()
            except StopIteration as planned:
                jaw = self._limiter.goal[-1]
                ends = self._config.lower, self._config.upper
                self._way = [np.clip(np.append(target[:-1], jaw), *ends) for target in planned.value]
                self._set_out(now_ns)
        there = bool((np.abs(measured - self._way[0])[:-1] < REST_TOLERANCE).all())
        if len(self._way) == 1:
            if there or now_ns >= self._give_up_ns:
                return None
        elif bool((np.abs(self._limiter.ahead - self._way[0]) < REACHED_RAD).all()):
            self._reached_ns = self._reached_ns or now_ns
            if there or now_ns - self._reached_ns >= SETTLE_S * 1e9:
                self._way.pop(0)
                self._set_out(now_ns)
        away = np.abs(self._way[0] - self._limiter.ahead)
        seconds = max(float((away / self._slow).max()), self._limiter.dt)
        return self._limiter.step(self._way[0], away / seconds)  # all joints arrive together: a straight segment


@functools.cache
def _turns(joints: int, raising: tuple[int, ...]) -> np.ndarray:
    """Every combination of -TURN_RAD, 0 and TURN_RAD of the raising joints, float64[3^n - 1, joints] rad."""
    turns = np.array([t for t in itertools.product((-1, 0, 1), repeat=len(raising)) if any(t)], float) * TURN_RAD
    out = np.zeros((len(turns), joints))
    out[:, raising] = turns
    return out


def _step_up(config: ArmConfig, family: Family, q: np.ndarray, height: float) -> np.ndarray | None:
    """The pose one step above `q` float64[J] (rad), whose lowest part is at `height` (m); None when no step raises it.

    The tool goes straight up if that raises the lowest part too, else the step is the one that raises it most.
    """
    enough = min(float(family.room(q)), MARGIN_M) - 1e-3

    def gains(steps: np.ndarray) -> np.ndarray:
        allowed = ((steps >= config.lower) & (steps <= config.upper)).all(-1) & (family.room(steps) > enough)
        return np.where(allowed, family.lowest(steps) - height, -np.inf)

    straight = q + _straight_up(family, q)
    if gains(straight[None])[0] > 0.5 * RISE_M:
        return straight
    steps = q + _turns(len(q), family.RAISING)
    gain = gains(steps)
    return steps[int(gain.argmax())] if gain.max() > 1e-4 else None


def _straight_up(family: Family, q: np.ndarray) -> np.ndarray:
    """Change of joint angles, float64[J] rad, that lifts the tool by `RISE_M` with as little sideways movement and
    pitch as the joints allow (least squares)."""
    raising, small = list(family.RAISING), 1e-4
    near = np.tile(q, (len(raising) + 1, 1))
    near[range(1, len(near)), raising] += small
    poses = family.forward(near)[:, :4]  # x, y, z, pitch
    change = np.linalg.lstsq((poses[1:] - poses[0]).T / small, np.array([0, 0, RISE_M, 0]), rcond=1e-3)[0]
    out = np.zeros(len(q))
    out[raising] = change * min(1.0, 2 * TURN_RAD / max(float(np.abs(change).max()), 1e-9))
    return out


def _over(family: Family, start: np.ndarray, end: np.ndarray) -> Slices:
    """Way-points from `start` (left out) to `end`, both clear of the table: the posture of the end, then the base turn.

    Where that comes too close to the table or to the arm itself, through the upright posture; where every path does,
    the one with the most room.
    """
    posture, upright, turned = end.copy(), start.copy(), end.copy()
    posture[family.PAN] = start[family.PAN]
    raising = list(family.RAISING)
    upright[raising] = turned[raising] = family.UPRIGHT[raising]
    best, most = [end], -np.inf
    for way in ([posture, end], [upright, posture, end], [upright, turned, end]):
        spare = np.inf
        for a, b in itertools.pairwise([start, *way]):
            spare = min(spare, _spare_m(family, a, b, (start, end)))
            yield
        if spare > most:
            best, most = way, spare
        if spare >= 0:
            break
    return best


def _spare_m(family: Family, a: np.ndarray, b: np.ndarray, ends: tuple[np.ndarray, np.ndarray]) -> float:
    """Least spare distance in m, to the table and between parts of the arm, on the straight segment from `a` to `b`.

    Negative where a pose comes closer than allowed; no pose has to be further away than both `ends` are.
    """
    poses = np.linspace(a, b, 2 + int(np.abs(b - a).max() / SAMPLE_RAD))
    low, close = (
        min(family.lowest(np.array(ends)).min(), CLEAR_M) - DIP_M,
        min(family.room(np.array(ends)).min(), MARGIN_M) - SAG_M,
    )
    return min(float(family.lowest(poses).min() - low), float(family.room(poses).min() - close))


def _thinned(way: list[np.ndarray], bend: float) -> list[np.ndarray]:
    """`way` without the poses within `bend` (rad) of the straight line between those that are kept (Douglas and
    Peucker, 1973)."""
    if len(way) < 3:
        return way
    first, along, inner = way[0], way[-1] - way[0], np.array(way[1:-1])
    share = np.clip((inner - first) @ along / max(float(along @ along), 1e-12), 0, 1)
    off = np.abs(inner - first - share[:, None] * along).max(-1)
    if off.max() < bend:
        return [way[0], way[-1]]
    k = int(off.argmax()) + 1
    return _thinned(way[: k + 1], bend)[:-1] + _thinned(way[k:], bend)
