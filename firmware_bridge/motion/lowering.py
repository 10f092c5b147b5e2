"""The way down: joint way-points from wherever the arm is to its rest pose, over the table and not across it.

First up until every part is `CLEAR_M` above the table (straight up where the arm can, else as its joints let it), then
to the posture above the rest pose, then round to it, then down the way that leads up from it. The table is the plane z
= 0 of the arm's base. An arm whose family is not known (`firmware_bridge.arms`) goes straight to rest.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator

import numpy as np

from firmware_bridge.arms import FAMILIES, Family
from firmware_bridge.motion.config import ArmConfig
from firmware_bridge.motion.limits import Limiter

CLEAR_M = 0.09  # of the lowest part, over the table, while the arm goes over
RISE_M = 0.01  # a step of the way up: the tool, straight up
TURN_RAD = 0.06  # or, where it cannot, one joint
STEPS = 60  # a way up has no more of them
MOST_RAD = 2.0  # a way up is no longer: the sum, over its steps, of the turn of the joint that turns most
NEAR_RAD = 0.2  # nearer to rest than this in every joint: straight down
BEND_RAD = 0.03  # a pose nearer than this to the straight way between its neighbours is no way-point
MARGIN_M = 0.004  # so far the arm's parts keep apart on the way up
SAG_M = 0.002  # and so much less will do over the table
DIP_M = 0.01  # over the table a way may lead so much lower than its ends
SAMPLE_RAD = 0.1  # between the poses of such a way that are looked at
POINTS = 6  # way-points that a way up has at most
REST_TOLERANCE = 0.06  # rad: nearer than this in every joint but the jaw, the arm is at rest
REST_TIMEOUT_S = 6.0  # s: the last way may take this long at least
REST_SHARE = 1.5  # and, where that is longer, so many times what it takes at the speed of lowering
REACHED_RAD = 1e-6  # rad: nearer than this the goals have reached a way-point
SETTLE_S = 0.5  # s: so long the arm is waited for at a way-point that its goals have reached


Way = list[np.ndarray]
Slices = Generator[None, None, Way]  # a way that is planned a slice at a time: a tick has little time to spare


def plan(config: ArmConfig, q: np.ndarray) -> Way:
    """Way-points float64[J] (rad) from the measured pose `q` [J] to the rest pose, the last of them; the jaw stays
    where it is in `q`.

    The ways between them are straight in joint space: the joints have to move together (`travel_s`).
    """
    return _all_of(_planned(config, q))


def raised(config: ArmConfig, q: np.ndarray) -> Way:
    """Way-points float64[J] (rad) from `q` [J], the first of them, to where every part is `CLEAR_M` above the table, or
    as high as a way up leads. Only `q` for an arm that is clear already, or whose family is not known."""
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
    """What is known of the arm's family, if anything."""
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
    """How long it takes from `start` to `end` (rad) when no joint is faster than `speed` (rad/s)."""
    return float((np.abs(end - start) / speed).max(initial=0.0))


def longest_s(config: ArmConfig) -> float:
    """The longest that the way to rest can take from anywhere within the limits, in s, waiting for the arm included."""
    lower, upper, rest = (np.array(v)[:-1] for v in (config.lower, config.upper, config.rest))
    slow, family = _slow(config)[:-1], family_of(config)

    def furthest(to: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(lower - to), np.abs(upper - to)) / slow

    if family is None:
        return max(REST_TIMEOUT_S, REST_SHARE * float(furthest(rest).max()))
    raising = list(family.RAISING)
    posture = furthest(rest)
    posture[raising] = ((upper - lower) / slow)[raising]
    climb = (MOST_RAD + 2 * TURN_RAD) / float(slow.min())
    upright = float(furthest(family.UPRIGHT[:-1])[raising].max())
    over = upright + float(posture.max()) + float(furthest(rest)[family.PAN])
    ways = 2 * (POINTS - 1) + 3
    planning = (2 * STEPS + 12) / config.motor_hz
    return planning + 2 * climb + over + (ways - 1) * SETTLE_S + max(REST_TIMEOUT_S, REST_SHARE * climb)


def _slow(config: ArmConfig) -> np.ndarray:
    """The speed of lowering, float64[J] rad/s."""
    return np.minimum(config.max_velocity, config.lower_speed)


class Descent:
    """An arm on its way to rest: what `plan` says, one way-point after the other, through the limiter that made the
    goals until now.

    It begins when the goals stand still, and plans from the pose measured then, a slice a tick. The jaw keeps its goal:
    what is held is carried along, and nothing is squeezed harder than it was.
    """

    def __init__(self, config: ArmConfig, limiter: Limiter, measured: np.ndarray):
        self._config, self._limiter, self._slow = config, limiter, _slow(config)
        self._planning = _planned(config, measured)
        self._way: Way = []

    def _set_out(self, now_ns: int) -> None:
        """To the next way-point."""
        seconds = REST_SHARE * travel_s(self._slow[:-1], self._limiter.ahead[:-1], self._way[0][:-1])
        self._give_up_ns = now_ns + int(max(REST_TIMEOUT_S, seconds) * 1e9)  # the last one
        self._came_ns = 0  # where the goals have reached it: since when

    def step(self, now_ns: int, measured: np.ndarray) -> np.ndarray | None:
        """The tick's goal, float64[J] rad; None when the arm is at rest, or has not come there in time."""
        if not self._way:
            try:
                next(self._planning)
                return self._limiter.brake()
            except StopIteration as planned:
                jaw = self._limiter.goal[-1]
                ends = self._config.lower, self._config.upper  # the goals never go beyond
                self._way = [np.clip(np.append(target[:-1], jaw), *ends) for target in planned.value]
                self._set_out(now_ns)
        there = bool((np.abs(measured - self._way[0])[:-1] < REST_TOLERANCE).all())
        if len(self._way) == 1:
            if there or now_ns >= self._give_up_ns:
                return None
        elif bool((np.abs(self._limiter.ahead - self._way[0]) < REACHED_RAD).all()):
            self._came_ns = self._came_ns or now_ns
            if there or now_ns - self._came_ns >= SETTLE_S * 1e9:
                self._way.pop(0)
                self._set_out(now_ns)
        away = np.abs(self._way[0] - self._limiter.ahead)
        seconds = max(float((away / self._slow).max()), self._limiter.dt)
        return self._limiter.step(self._way[0], away / seconds)  # all joints arrive together: a straight way


@functools.cache
def _turns(joints: int, raising: tuple[int, ...]) -> np.ndarray:
    """Steps of the raising joints, each to either side or not at all, float64[3^n - 1, joints] rad."""
    turns = np.array([t for t in itertools.product((-1, 0, 1), repeat=len(raising)) if any(t)], float) * TURN_RAD
    out = np.zeros((len(turns), joints))
    out[:, raising] = turns
    return out


def _step_up(config: ArmConfig, family: Family, q: np.ndarray, height: float) -> np.ndarray | None:
    """The pose a step higher than `q`, whose lowest part is at `height` (m): tool straight up if that raises the lowest
    part too, else the step that raises it most; None when none does."""
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
    """Change of joint angles that lifts the tool by `RISE_M`, without moving it sideways or pitching it, as far as the
    joints can."""
    raising, small = list(family.RAISING), 1e-4
    near = np.tile(q, (len(raising) + 1, 1))
    near[range(1, len(near)), raising] += small
    poses = family.forward(near)[:, :4]  # x, y, z, pitch
    change = np.linalg.lstsq((poses[1:] - poses[0]).T / small, np.array([0, 0, RISE_M, 0]), rcond=1e-3)[0]
    out = np.zeros(len(q))
    out[raising] = change * min(1.0, 2 * TURN_RAD / max(float(np.abs(change).max()), 1e-9))
    return out


def _over(family: Family, start: np.ndarray, end: np.ndarray) -> Slices:
    """Way-points from `start` to `end`, both clear of the table: first the posture of the end, then round to it; by way
    of the upright posture where the arm itself or the table is in the way of that."""
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
    """By how much more than it must (m) the straight way from `a` to `b` keeps clear of the table, and the arm of
    itself, at the worst of the poses looked at; as clear as `ends` is enough."""
    poses = np.linspace(a, b, 2 + int(np.abs(b - a).max() / SAMPLE_RAD))
    low, close = (
        min(family.lowest(np.array(ends)).min(), CLEAR_M) - DIP_M,
        min(family.room(np.array(ends)).min(), MARGIN_M) - SAG_M,
    )
    return min(float(family.lowest(poses).min() - low), float(family.room(poses).min() - close))


def _thinned(way: list[np.ndarray], bend: float) -> list[np.ndarray]:
    """Without the poses that lie within `bend` (rad) of the straight way between those that stay (Douglas and Peucker
    1973)."""
    if len(way) < 3:
        return way
    first, along, inner = way[0], way[-1] - way[0], np.array(way[1:-1])
    share = np.clip((inner - first) @ along / max(float(along @ along), 1e-12), 0, 1)
    off = np.abs(inner - first - share[:, None] * along).max(-1)
    if off.max() < bend:
        return [way[0], way[-1]]
    k = int(off.argmax()) + 1
    return _thinned(way[: k + 1], bend)[:-1] + _thinned(way[k:], bend)
