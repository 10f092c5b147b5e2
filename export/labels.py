"""Training targets that are derived in hindsight from demonstrations: futures, chunks, phases, places, words, and the
parts of play that are worth imitating."""

from __future__ import annotations

import math

import numpy as np

from calibration.camera import Camera
from export.config import Config
from export.data import Demonstrations
from export.text import Encoder, encoder_of
from runtime.policies.decode import heatmap_cell, proprio, relative_chunk
from sim.phases import interaction
from sim.tasks import ARM, CLOSED, INSTRUCTIONS, OPEN, TASKS

JAW_S = 0.3  # time that the SO-101's jaw needs to close on something,
HELD_RAD = CLOSED + 0.05  # and its least opening then


class Labels:
    """All training targets, computed once from the demonstrations."""

    def __init__(self, data: Demonstrations, cfg: Config, encode: Encoder | None = None):
        encode = encode or encoder_of(cfg)
        n = len(data.pose)
        rows = np.arange(n)
        ahead = [np.minimum(rows + round(h * data.rate_hz), data.last) for h in cfg.horizon_s]
        self.future = np.stack([*ahead, data.next_event], 1)
        steps = np.minimum(rows[:, None] + np.arange(1, cfg.chunk + 1), data.last[:, None])
        stride = cfg.chunk_dt_s * data.rate_hz
        if abs(stride - 1) > 1e-6:
            raise ValueError("the chunk's time step must be the dataset's")
        self.chunk = relative_chunk(data.pose.astype(float), data.target[steps].astype(float), ARM)
        self.proprio = proprio(data.pose)
        event_pose = data.pose[data.next_event]
        self.cell = heatmap_cell(data.cameras["front"], event_pose[:, :3], cfg.heatmap).astype(np.float32)
        self.reach = event_pose[:, 2:5].astype(np.float32)
        rule = (cfg.gate_window_s, cfg.gate_height_m, cfg.gate_radius_m)
        self.gate = interaction(data.pose, data.events, data.last, data.rate_hz, *rule).astype(np.float32)
        self.jaw_open = (data.target[:, 5] > 0.5 * (OPEN + CLOSED)).astype(np.float32)
        self.text = np.stack([encode(s) for s in data.instructions])[data.episode]
        # After the last event there is nothing to aim at. "Stay where you are" as a target would keep an arm at rest at
        # rest.
        self.aims = np.isin(data.next_event, data.events)
        told, throughout = hindsight(data)
        asked = sorted({t for t in told if t})
        self.asked = np.stack([encode(t) for t in [*asked, ""]])
        # Of each episode of play: the row of `asked` that its first part fulfils (-1: none); whether all of it does.
        self.told, self.throughout = np.array([asked.index(t) if t else -1 for t in told]), np.array(throughout)
        self.other = self.told[data.episode]
        self.taken = taken = grasps(data)
        begun = data.next_event > taken[data.episode]
        whole = np.array(throughout)[data.episode]
        over = data.play & ~self.aims  # after a task the arm goes home, after play it does not
        self.other[(begun & ~whole) | over] = -1
        # What a robot would have been told here.
        self.said = np.where((self.other >= 0)[:, None], self.asked[self.other], self.text)
        # Rows in which the instruction decides what comes next: several things could be meant, and none is held yet.
        several = np.array([s in TASKS and len(TASKS[s].instructions) > 1 for s in data.scenes])[data.episode]
        pressing = np.array([s == "press" for s in data.scenes])[data.episode] & (~data.play | whole)
        self.ambiguous = several & (pressing | ~begun) & (~data.play | (self.other >= 0))
        fits = np.array([bool(t) for t in told])
        self.skilled, self.taught = self._skilled(data, cfg, taken, pressing, fits, np.array(throughout))
        # The jaw has come to rest on something: its opening then is the width of that thing.
        rest = round(JAW_S * data.rate_hz)
        self.holds = (data.pose[:, 5] > HELD_RAD) & (rows - rest >= np.searchsorted(data.episode, data.episode))
        self.holds &= (data.target[np.maximum(rows - rest, 0), 5] < 0.5 * (OPEN + CLOSED)) & (self.jaw_open < 0.5)
        # Where in the wrist view the gripper acts next. Not where play carries a thing: nothing in the picture shows
        # exactly where to.
        self.contact, inside = contact_cell(data.pose, event_pose, data.cameras["wrist"], cfg)
        verb = np.array([p.partition(" ")[0] for p in data.instructions])[data.episode]
        careless = (verb == "take") & data.play & begun
        self.in_view = inside & ~careless & self.aims
        # Nor does the picture tell the gate that such a place is near.
        self.gate_told = (
            ~careless | interaction(data.pose, data.events, data.last, data.rate_hz, *rule[:2], 0.0) | (self.gate < 0.5)
        )
        # Not where play touches or puts down beside: the heading is arbitrary there.
        turn = event_pose[:, 4] - data.pose[:, 4]
        self.turn = turn_bin(turn, cfg)
        takes = (verb == "drop") | ((verb != "touch") & ~begun)
        self.turns = self.in_view & (np.abs(turn) < cfg.heading_range) & (takes | ~data.play)

    def _skilled(
        self,
        data: Demonstrations,
        cfg: Config,
        taken: np.ndarray,
        pressing: np.ndarray,
        fits: np.ndarray,
        whole: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows bool[N] whose actions are an example, and which steps bool[N, chunk] of their chunks are.

        All rows of a task are. Of play, those that a task could have asked for (`fits`): taking and lifting a thing, if
        it was lifted; and up to the end where the task asks for the rest too (`whole`): putting it where it belongs, or
        pressing both buttons. Carrying things elsewhere in play is no example.
        """
        rows = np.arange(len(data.pose))
        until = np.full(len(taken), -1)  # the row of each episode up to which play is an example

        def risen(event: int) -> int:
            """The row in which the tool has risen after `event`."""
            after = rows[event : data.last[event] + 1]
            high = np.flatnonzero(data.pose[after, 2] >= cfg.gate_height_m)
            return int(after[high[0]] if len(high) else after[-1])

        for e in np.flatnonzero(fits & (taken >= 0)):
            end = int(data.last[taken[e]])
            last = int(data.events[np.searchsorted(data.events, end, side="right") - 1])
            if data.scenes[e] == "press":
                until[e] = risen(last if pressing[last] else taken[e])
                continue
            at_rest = min(taken[e] + round(JAW_S * data.rate_hz), end)
            held = data.pose[at_rest, 5] >= HELD_RAD  # otherwise the jaw closed on nothing
            # otherwise the thing was lost on the way
            kept = whole[e] and last > taken[e] and data.pose[last, 5] >= HELD_RAD
            until[e] = taken[e] if not held else risen(last if kept else taken[e])
        until = until[data.episode]
        steps = rows[:, None] + np.arange(1, cfg.chunk + 1)
        skilled = ~data.play | ((self.gate > 0.5) & (rows < until))
        return skilled, ~data.play[:, None] | (steps <= until[:, None])


def turn_bin(turn: np.ndarray, cfg: Config) -> np.ndarray:
    """How far the tool turns until its next event, float32[N] in bins, from angles [N] (rad)."""
    return ((turn / cfg.heading_range + 1) * cfg.headings / 2 - 0.5).astype(np.float32)


def wrist_mount(wrist: Camera, cfg: Config) -> np.ndarray:
    """Pose of the wrist camera on the tool, `T_tool_from_cam` float64[4, 4]: the hand-eye calibration (`harmowam
    calibrate hand-eye --mount arm`) if there is one, otherwise `cfg.wrist_mount`."""
    if wrist.T_tool_from_cam is not None:
        return wrist.T_tool_from_cam
    forward, up, tilt = cfg.wrist_mount
    T = np.eye(4)
    T[:3, :3] = [[0.0, -math.sin(tilt), math.cos(tilt)], [-1.0, 0.0, 0.0], [0.0, -math.cos(tilt), -math.sin(tilt)]]
    T[:3, 3] = forward, 0.0, up
    return T


def contact_cell(pose: np.ndarray, then: np.ndarray, wrist: Camera, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Where the poses `then` [N, 6] lie on the contact map when the wrist camera looks from `pose` [N, 6]: cells
    float32[N, 2] (column, row), and bool[N], which of them lie on the map."""
    T = wrist_mount(wrist, cfg)
    right, down, depth = (
        (relative_chunk(pose.astype(float), then[:, None].astype(float), ARM)[:, 0, :3] - T[:3, 3]) @ T[:3, :3]
    ).T
    K = wrist.scaled(cfg.contact_map, cfg.contact_map).K
    ahead = np.maximum(depth, 0.01)
    cell = np.stack([K[0, 2] + K[0, 0] * right / ahead, K[1, 2] + K[1, 1] * down / ahead], 1)
    inside = (depth > 0.03) & (cell > -0.5).all(1) & (cell < cfg.contact_map - 0.5).all(1)
    return cell.astype(np.float32), inside


def grasps(data: Demonstrations) -> np.ndarray:
    """Row int64[episodes] in which each episode first takes or touches something with the jaw shut; -1 where none
    does."""
    out = np.full(len(data.instructions), -1)
    shut = data.target[data.events, 5] < 0.5 * (OPEN + CLOSED)
    for e in data.events[shut][::-1]:
        out[data.episode[e]] = e
    return out


def hindsight(data: Demonstrations) -> tuple[list[str], list[bool]]:
    """For each episode of play, an instruction that its first part fulfils, or "", and whether the episode fulfils all
    of it (hindsight relabelling: Andrychowicz et al. 2017).

    Reaching for the ring is the same whether the ring is then hung on the post or only taken away. Dropping it onto the
    post goes to the same place as hanging it there.
    """
    texts, throughout = [], []
    for e, (text, scene) in enumerate(zip(data.instructions, data.scenes, strict=True)):
        verb, rest = text.partition(" ")[0], text.split()[2:]
        ends = [rest.index(w) for w in ("to", "onto", "and") if w in rest] + ([len(rest) - 1] if verb == "take" else [])
        name = "_".join(rest[: ends[0]] if ends else rest)
        known = scene in TASKS and text not in INSTRUCTIONS and (verb in ("take", "put", "drop") or scene == "press")
        fitting = [t for t, roles in TASKS[scene].instructions.items() if roles[0] == name] if known else []
        # the word before the thing that the episode acted on last
        last = {"drop": "onto", "touch": "then"}.get(verb, "")
        goal = "_".join(rest[rest.index(last) + 2 :]) if last in rest else ""
        same = [t for t in fitting if TASKS[scene].instructions[t][1] == goal]
        texts.append((same or fitting)[e % len(same or fitting)] if fitting else "")
        throughout.append(bool(same))
    return texts, throughout
