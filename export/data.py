"""Demonstrations and play: collecting them with the scripted expert, and loading them for training.

A dataset is a LeRobotDataset v3 folder (`export.lerobot`). A row is both views as the pre-processing kernel gives
them (96x96), the measured joint positions, and the joint goals of the expert's plan without its noise. The label is
`rate_hz` rows a second; `record_script` says when it is not what is recorded. Task demonstrations are
kept only when they succeed. Play is always kept, with a text that describes in hindsight what was done.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from calibration.camera import Camera, policy_camera
from export.config import Config
from export.lerobot import (
    CHUNK_SIZE,
    DataError,
    Dataset,
    Episode,
    common_note,
    finish,
    load,
    part_exists,
    write_json,
    write_part,
)
from firmware_bridge.arms.family import Family
from runtime.preprocess import Warp
from sim.expert import Follower, joints_for, plan, plan_play
from sim.phases import find_events, next_events
from sim.tasks import ARM, CLOSED, TASKS, Layout, sample_layout
from sim.trace import sample_start
from sim.workers import spawned
from sim.world import World

CONTROL_HZ = 50.0
PER_PART = 25
VIEWS = ("front", "wrist")
ASKED = "meta/collect.json"  # what was asked of the folder: the numbers of its parts follow from it
# How often play uses each task's things: most where models chose places worst (docs/notebook.md).
PLAYED = {"plate": 0.10, "stack": 0.11, "peg": 0.17, "slot": 0.12, "ring": 0.23, "press": 0.27}
MISSED = 0.2  # share of demonstrations that begin after a failure: the policy must learn to try again


def simulated_warps(world: World) -> dict[str, Warp]:
    """One uint8 warp per view, from the simulated camera to the training geometry."""
    return {
        c: Warp(world.camera(c), policy_camera(world.camera(c)), mean=(0, 0, 0), std=(1, 1, 1), dtype="uint8")
        for c in VIEWS
    }


def after_a_miss(layout: Layout, rng: np.random.Generator) -> Layout:
    """The same start after a failure. For an item: the gripper shut beside it, as after a failed grasp. For two
    buttons: the first one lit, the gripper near it or at rest, as after a policy that forgot the second."""
    task = TASKS[layout.task]
    x, y, _ = layout.places[layout.roles[0]]
    start = layout.start.copy()
    if task.name == "press":
        if rng.random() < 0.5:
            start[:3] = *(np.array([x, y]) + rng.normal(0, 0.015, 2)), rng.uniform(0.05, 0.09)
        return dataclasses.replace(layout, start=start, pressed=layout.roles[:1])
    start[:2] = np.array([x, y]) + rng.normal(0, 0.015, 2)
    start[2] = rng.uniform(max(0.045, task.grasp_z + 0.03), 0.085)
    return dataclasses.replace(layout, start=start, jaw=CLOSED)


class Script(Protocol):
    """A script of tool poses and jaw [6]: `clean()` is the plan; `step(dt)` advances it and returns the executed
    target, and whether the script is over."""

    def clean(self) -> np.ndarray: ...

    def step(self, dt: float) -> tuple[np.ndarray, bool]: ...


def record_episode(
    world: World,
    warps: Mapping[str, Warp],
    rng: np.random.Generator,
    layout: Layout,
    rate_hz: float,
    play: bool = False,
) -> tuple[Episode, bool]:
    """Play one episode on `world` from `layout`; returns its rows, and whether the instruction was fulfilled."""
    world.reset(layout)
    segments, text = plan_play(world, rng) if play else (plan(world, rng), layout.instruction)
    return record_script(world, warps, Follower(world, segments, rng), joints_for, rate_hz, text, play)


def record_script(
    world: World,
    warps: Mapping[str, Warp],
    script: Script,
    joints: Callable[[np.ndarray], np.ndarray],
    rate_hz: float,
    text: str,
    play: bool = False,
    control_hz: float = CONTROL_HZ,
) -> tuple[Episode, bool]:
    """Let the arm of `world` follow `script` to its end; `joints` gives joint goals [J] (rad) for a tool pose. Returns
    the rows, and whether the instruction was fulfilled.

    Rows are a whole number of control steps apart. 50 steps and 20 rows a second make two steps: such rows are 40 ms of
    simulated time apart, and a dataset that is labelled `rate_hz` says 50 ms."""
    layout, every, dt = world.layout, round(control_hz / rate_hz), 1.0 / control_hz
    images: dict[str, list[np.ndarray]] = {c: [] for c in VIEWS}
    state: list[np.ndarray] = []
    action: list[np.ndarray] = []
    tick, done, success = 0, False, False
    while not done:
        if tick % every == 0:
            for c in VIEWS:
                images[c].append(warps[c](world.render(c)).transpose(1, 2, 0).copy())
            state.append(world.measured)
            action.append(joints(script.clean()))
        executed, done = script.step(dt)
        world.set_goals(joints(executed))
        world.advance(dt)
        success = success or world.success()
        tick += 1
    extra: dict[str, float | int | str] = {"task": layout.task, "play": int(play), "environment": layout.environment}
    pictures = {c: np.stack(p) for c, p in images.items()}
    return Episode(pictures, np.array(state, np.float32), np.array(action, np.float32), text, extra), success


@dataclass(frozen=True)
class Part:
    """The episodes of one file: of one task's things, or of play in all scenes (`task` None)."""

    number: int
    task: str | None
    episodes: int
    play: bool


def parts_of(episodes: int, play: int, more: Mapping[str, int]) -> list[Part]:
    """The parts that hold `episodes` demonstrations of each task, `play` episodes of play, and for every task in `more`
    that many more demonstrations and play episodes."""
    out: list[Part] = []
    on_top = [(t, n, played) for t, n in more.items() for played in (False, True)]
    for task, count, played in [*((t, episodes, False) for t in TASKS), (None, play, True), *on_top]:
        starts = range(0, count, PER_PART)
        out += [Part(len(out) + i, task, min(PER_PART, count - n), played) for i, n in enumerate(starts)]
    return out


def _hold_to(folder: Path, asked: dict[str, int | float | str]) -> None:
    """Note what `folder` is asked to hold; raises DataError where it was asked for something else or is not ours."""
    path = folder / ASKED
    if path.exists():
        try:
            before = json.loads(path.read_text())
            if "more" in asked:  # folders without an entry for `more`
                before = {"more": "nothing", **before}
        except ValueError as e:
            raise DataError(f"{path} cannot be read ({e}): collect into a new folder.") from e
        if before != asked:
            was = ", ".join(f"{k} {v}" for k, v in before.items() if asked.get(k) != v)
            raise DataError(f"{folder} was begun with {was}: repeat that, or collect into a new folder.")
    elif folder.exists() and any(folder.iterdir()):
        common_note(folder)  # a dataset of ours without this note
    write_json(path, asked)


def _worker(args: tuple[Part, int, str, float, str]) -> tuple[int, int]:
    """Collect and write one part; returns how many episodes were kept and tried."""
    part, seed, folder, rate_hz, environment = args
    world = World(0)
    warps = simulated_warps(world)
    kept: list[Episode] = []
    tried = 0
    while len(kept) < part.episodes:
        rng = np.random.default_rng([seed, part.number, tried, 1])  # different parts never share a seed
        tried += 1
        task = part.task or str(rng.choice(list(PLAYED), p=list(PLAYED.values())))
        layout = sample_layout(rng, task=task, environment="play" if part.play else environment)
        if part.play and rng.random() < 0.3:  # some starts have the jaws shut
            layout = dataclasses.replace(layout, jaw=CLOSED)
        elif not part.play and rng.random() < MISSED:
            layout = after_a_miss(layout, rng)
        episode, success = record_episode(world, warps, rng, layout, rate_hz, play=part.play)
        if success or part.play:
            kept.append(episode)
    world.close()
    write_part(Path(folder), part.number, kept, rate_hz, ARM.JOINTS)
    return len(kept), tried


def collect(
    folder: Path,
    episodes: int,
    play: int,
    seed: int = 0,
    workers: int | None = None,
    rate_hz: float = Config.rate_hz,
    environment: str = "seen",
    more: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Collect `episodes` demonstrations of each task and `play` episodes of play into `folder`.

    Existing parts are kept, so the same call continues an interrupted collection. `more`: task -> additional
    demonstrations of that task, and as many additional play episodes with its things. Tasks are shown in `environment`:
    training sees "seen" only, the others are for measuring (`analyses/november_2026/bottleneck.py`). Returns how many
    episodes were kept and tried. Raises DataError when the folder holds something else or cannot hold that many.
    """
    folder = Path(folder)
    more = more or {}
    parts = parts_of(episodes, play, more)
    if len(parts) > CHUNK_SIZE:
        raise DataError(
            f"{len(parts) * PER_PART:,} episodes are more than a dataset holds here ({CHUNK_SIZE * PER_PART:,}): ask "
            "for fewer."
        )
    asked: dict[str, int | float | str] = {"episodes": episodes, "play": play, "seed": seed, "rate_hz": rate_hz}
    asked |= {"environment": environment, "more": " ".join(f"{t}={n}" for t, n in more.items()) or "nothing"}
    return gather(folder, asked, _worker, [(p, seed, str(folder), rate_hz, environment) for p in parts], workers)


def gather(
    folder: Path,
    asked: dict[str, int | float | str],
    worker: Callable[[Any], tuple[int, int]],
    everything: Sequence[tuple[Any, ...]],
    workers: int | None,
    arm: Family = ARM,
) -> dict[str, int]:
    """Run `worker` on those of `everything` that are not written yet (a `Part` and further arguments, one file each),
    then complete the dataset for `arm`. Returns and raises as `collect`."""
    _hold_to(folder, asked)
    jobs = [job for job in everything if not part_exists(folder, job[0].number)]
    if not jobs and (folder / "meta/info.json").exists():
        return {"kept": 0, "tried": 0}
    kept = tried = 0
    with (
        tqdm(total=sum(j[0].episodes for j in jobs), unit="episode") as bar,
    ):
        for n, m in spawned(worker, jobs, workers):
            kept, tried = kept + n, tried + m
            bar.update(n)
    world = World(layout=sample_start(np.random.default_rng(0), arm), family=arm)
    cameras = {c: policy_camera(world.camera(c)) for c in VIEWS}
    finish(folder, float(asked["rate_hz"]), arm.LEROBOT[0], arm.JOINTS, cameras)
    world.close()
    return {"kept": kept, "tried": tried}


@dataclass(frozen=True)
class Demonstrations:
    """All N rows of a dataset, one episode after the other. Poses are [x, y, z, pitch, roll, jaw] in the base frame."""

    front: np.ndarray  # uint8[N,3,96,96]
    wrist: np.ndarray
    pose: np.ndarray  # float32[N,6], measured
    target: np.ndarray  # float32[N,6], commanded
    next_event: np.ndarray  # int32[N]: row of the next event of the episode, or its last row
    events: np.ndarray  # int32[E]
    episode: np.ndarray  # int32[N]
    last: np.ndarray  # int32[N]: last row of the same episode
    instructions: list[str]  # one per episode
    scenes: list[str]  # task whose things stand on the table, one per episode; "" when the dataset does not say
    play: np.ndarray  # bool[N]
    cameras: dict[str, Camera]
    rate_hz: float
    state: np.ndarray  # float32[N,J], measured joint angles (rad, the maker's)
    action: np.ndarray  # float32[N,J], commanded
    arm: Family = ARM
    weight: np.ndarray | None = None  # float32[N]: how often a row is drawn, as a share of all draws; None: all alike
    uncalibrated: tuple[str, ...] = ()  # views whose geometry is not known

    @property
    def views(self) -> tuple[str, ...]:
        """The views that the dataset has; pictures of another one are black."""
        return tuple(v for v in VIEWS if v in self.cameras)

    def draw(self, rng: np.random.Generator, rows: np.ndarray, count: int) -> np.ndarray:
        """`count` of the rows int64[n], by weight."""
        if self.weight is None:
            return rows[rng.integers(len(rows), size=count)]
        share = np.cumsum(self.weight[rows].astype(float))
        return rows[np.minimum(np.searchsorted(share / share[-1], rng.random(count)), len(rows) - 1)]

    @property
    def task_instructions(self) -> list[str]:
        """The instructions of the demonstrations, each text once; hindsight texts of play are left out."""
        played = set(self.episode[self.play].tolist())
        return sorted({text for i, text in enumerate(self.instructions) if i not in played})


def load_demonstrations(
    folder: Path, cache: Path | None = None, rate_hz: float = Config.rate_hz, arm: Family | None = ARM
) -> Demonstrations:
    """Read a dataset that this project wrote (`export.lerobot.load`), of `arm` (None: of the arm that it names); raises
    DataError when it cannot be used."""
    return demonstrations(load(folder, VIEWS, fps=rate_hz, cache=cache, arm=arm))


def demonstrations(data: Dataset, weight: np.ndarray | None = None) -> Demonstrations:
    """The rows of a dataset with tool poses and events."""
    pose, target = (data.arm.forward(x).astype(np.float32) for x in (data.state, data.action))
    events = find_events(pose, target, data.last, data.fps)
    scenes = [str(t) for t in data.extra.get("task", [""] * len(data.tasks))]
    play = data.extra.get("play", np.zeros(len(data.tasks), int)).astype(bool)[data.episode]
    black = np.broadcast_to(
        np.zeros((1, 3, Config.image, Config.image), np.uint8), (len(pose), 3, *(Config.image,) * 2)
    )
    return Demonstrations(
        data.images.get("front", black),
        data.images.get("wrist", black),
        pose,
        target,
        next_events(events, data.last),
        events,
        data.episode,
        data.last,
        data.tasks,
        scenes,
        play,
        data.cameras,
        data.fps,
        data.state,
        data.action,
        data.arm,
        weight,
        data.uncalibrated,
    )
