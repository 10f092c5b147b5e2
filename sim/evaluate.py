"""Evaluation: seeded episodes in virtual time, in several processes, one row per episode.

Bundle, steps, motor tick and servo bytes are those of a real robot; only the clock is virtual. All policies start from
the same seeds, so that results are paired. Each row is appended to a file when its episode ends; episodes that are in
the file are not run again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import Mendable
from firmware_bridge.motion.messages import Expert
from runtime.bundle import Bundle, sha256
from runtime.contracts import Observation
from runtime.policies import FastStep, SlowStep, kind_of, mode_of, open_policy
from runtime.policies import harmowam as ours
from runtime.policies.finish import Finish, finish_of
from runtime.robot import load_robot
from sim.disturbance import Disturber, reaction_ms
from sim.expert import plan
from sim.jaw import reversals
from sim.phases import gate_score
from sim.plant import virtual_motor
from sim.score import Score
from sim.tasks import ARM, DISTURBED, REST_S, TASKS, Layout, sample_layout
from sim.true_future import TrueFutureStep
from sim.virtual_time import START, Episode, Schedule, run_episode
from sim.workers import spawned
from sim.world import World

OURS = (
    "gated",
    "reactive",
    "predictive",
    "average",
    "oracle",
    "true_future",
)  # modes of a bundle of kind harmowam
# behaviour cloning on task data, and on task and play data; each needs its own bundle
BASELINES = ("bc", "bc_play")
POLICIES = (*OURS, *BASELINES)
ACTS_AS = {"oracle": "gated", "true_future": "reactive"}  # mode of the fast loop for a policy that has none of its own
STARTS = ("home", "near")
# Last number of every seed. Collecting demonstrations uses 1. So no start of a demonstration is evaluated, and no start
# used in development is reported.
SPLITS = {"development": 2, "test": 3}
# After this long a change of the commands is no reaction to a displacement.
REACTION_S = 3.0
LIMIT_S = 12.0  # demonstrations take 4 to 7 s, so there is time for a second try


class EvaluationError(Mendable):
    """An evaluation that cannot be run or continued; one sentence and the next step."""


@dataclass(frozen=True)
class Job:
    """One episode, as sent to a worker. `bundle`: folder of the policy's bundle; `engine`: runs its networks."""

    bundle: str
    digest: str
    policy: str
    environment: str
    task: str
    instructions: tuple[str, ...]
    seed: int
    split: str = "development"
    start: str = "home"
    schedule: Schedule = field(default_factory=Schedule)
    engine: str = "cpu"

    @property
    def key(self) -> str:
        """Identifies an episode: equal keys are the same episode."""
        s = self.schedule
        latency = f"{s.camera_hz:g}/{s.slow_hz:g}/{s.world_model_ms:g}/{s.predictive_ms:g}/{s.fast_ms:g}"
        latency += "" if s.rest_s == REST_S else f"/{s.rest_s:g}"
        asked = self.task if len(self.instructions) > 1 else self.instructions[0]
        parts = (self.digest, self.policy, self.environment, asked, self.split, self.seed, self.start, latency)
        return " ".join(map(str, parts if self.engine == "cpu" else (*parts, self.engine)))


def digest(path: Path) -> str:
    """First 12 hexadecimal digits of the manifest's hash, which covers every file of the bundle."""
    return sha256(Path(path) / "manifest.json")[:12]


_cache: dict[str, Any] = {}


def _prepare(job: Job) -> tuple[World, SlowStep, FastStep, Finish | None]:
    """World, steps and finish watch, built once per process and reused."""
    if "world" not in _cache:
        _cache["world"] = World(0)
    world: World = _cache["world"]
    own = f"{job.engine} steps of {job.bundle}"
    if own not in _cache:
        bundle = Bundle.load(Path(job.bundle))
        cameras = {name: world.camera(name) for name in ("front", "wrist")}
        opened = open_policy(bundle, next(iter(bundle.manifest.tasks)), cameras, engine=job.engine)
        _cache[own] = opened, finish_of(bundle)
    opened, finish = _cache[own]
    slow, fast = opened.slow, opened.fast
    if job.policy == "true_future":
        if "replica" not in _cache:
            _cache["replica"] = World(0)
        slow = TrueFutureStep(slow, world, _cache["replica"])
    return world, slow, fast, finish


def _drive_as(policy: str, fast: FastStep, oracle: Callable[[], float]) -> None:
    """Set how `fast` chooses between experts; without effect for a policy that has no experts."""
    if isinstance(fast, ours.FastStep):
        fast.policy = ACTS_AS.get(policy, policy)
        fast.other_gate = oracle if policy == "oracle" else None
        fast.uses_pictures = fast.policy != "predictive"


def _code(job: Job) -> list[int]:
    """The seed of a job's start."""
    return [job.seed, list(TASKS).index(job.task), 0, SPLITS[job.split]]


def start_of(world: World, job: Job) -> Layout:
    """The layout drawn from a job's seed, equal for every policy. "near": the tool starts above the first subgoal,
    where the descent of a demonstration begins."""
    rng = np.random.default_rng(_code(job))
    text = job.instructions[int(rng.integers(len(job.instructions)))]
    layout = sample_layout(rng, text, environment=job.environment)
    if job.start == "near":
        world.reset(layout)
        hover = plan(world, rng)[0].goal
        layout = dataclasses.replace(layout, start=hover[:5], jaw=float(hover[5]))
    return layout


def run_job(job: Job) -> dict[str, Any]:
    """Run one episode; returns its row. After a displacement it is run once more without, for the reaction time."""
    row, episode, _ = run_and_keep(job)
    if job.environment == DISTURBED:
        since_ns = None if row["displaced_s"] is None else START + round(row["displaced_s"] * 1e9)
        row["reaction_ms"] = None
        if since_ns is not None:
            until_ns = since_ns + round(REACTION_S * 1e9)
            twin = _play(job, lambda now_ns, _: "compared" if now_ns > until_ns else "", disturbed=False).episode
            row["reaction_ms"] = reaction_ms(since_ns, episode.commands, twin.commands)
    return row


@dataclasses.dataclass
class Played:
    """An episode with what was watched in it. `hopeless`: why it could no longer succeed, ""; `tells_done`: whether the
    policy says when it is done."""

    episode: Episode
    score: Score
    disturb: Disturber | None
    hopeless: str
    tells_done: bool


def _play(job: Job, look: Callable[[int, Observation], str], disturbed: bool) -> Played:
    """Run one episode. `look` is called at every frame; the text that it returns ends the episode, unless it is ""."""
    world, slow, fast, finish = _prepare(job)
    world.reset(start_of(world, job))
    slow.set_task(world.instruction)
    score = Score(world)
    _drive_as(job.policy, fast, score.oracle)
    disturb = Disturber(world, score, np.random.default_rng([*_code(job), 1])) if disturbed else None
    hopeless = ""

    def watch(now_ns: int, obs: Observation) -> str:
        nonlocal hopeless
        if told := look(now_ns, obs):
            return told
        why = score.watch(now_ns)
        hopeless = hopeless or why
        # A policy that says when it is done may say it here, too: that is a false finish. Where nothing moves, pictures
        # and what it says of them stay the same.
        return why if finish is None or why == "stuck" else ""

    limit_s = LIMIT_S + (0.0 if finish is None else finish.for_ns * 1e-9)
    motor = virtual_motor(world)
    episode = run_episode(world, slow, fast, motor, job.schedule, limit_s, watch, disturb, finish)
    return Played(episode, score, disturb, hopeless, finish is not None)


def run_and_keep(
    job: Job, look: Callable[[int, Observation], None] | None = None
) -> tuple[dict[str, Any], Episode, World]:
    """Run one episode; returns its row, the recorded episode, and the world at its end.

    `look` is called at every frame with the time (ns) and the observation; its pictures are empty in most frames of a
    policy that does not use them.
    """

    def see(now_ns: int, obs: Observation) -> str:
        if look is not None:
            look(now_ns, obs)
        return ""

    played = _play(job, see, job.environment == DISTURBED)
    episode, score, disturb = played.episode, played.score, played.disturb
    world: World = _cache["world"]
    experts = [t.expert for t in episode.ticks if t.expert != Expert.NONE]
    row: dict[str, Any] = {
        "key": job.key,
        "policy": job.policy,
        "environment": job.environment,
        "task": job.task,
        "seed": job.seed,
        "split": job.split,
        "start": job.start,
        "instruction": world.instruction,
        "success": episode.success,
        "seconds": round(episode.seconds, 2),
        "ended": episode.ended,
        "transit": score.transit(episode.success),
        "failure": "" if episode.success else _failure(played),
        "switches": sum(a != b for a, b in zip(experts, experts[1:], strict=False)),
        "jaw_reversals": jaw_reversals(world, episode),
    }
    if played.tells_done:
        row |= {"said_done": episode.ended == "done", "ever": episode.ever}
    if job.policy == "gated":
        row["gate_right"], row["gate_frames"] = gate_score(score.pose, episode.ticks, job.schedule.camera_hz)
    if disturb is not None:
        moved = disturb.happened
        row["displaced_s"] = None if moved is None else (moved.at_ns - START) / 1e9
        row["displaced"] = None if moved is None else moved.body
        row["displaced_at"] = None if moved is None else "contact" if moved.late else "transit"
        row["displaced_m"] = None if moved is None else round(moved.moved_m, 4)
    return row, episode, world


def jaw_reversals(world: World, episode: Episode) -> list[int]:
    """How often the jaw's goal turned back in each of its events; see `sim.jaw.reversals`."""
    goals = np.array([c.q_rad for _, c in episode.commands], float).reshape(-1, len(world.family.JOINTS))
    return reversals(np.array([at for at, _ in episode.commands]), world.family.forward(goals)[:, -1])


def _failure(played: Played) -> str:
    """The kind of failure of an episode without success at its end."""
    episode = played.episode
    if episode.ever:
        return "undone again" if episode.ended == "done" else "done and did not say so"
    return played.score.failure(played.hopeless or episode.ended)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run, without a last line that was cut off. Raises EvaluationError when another line is not a
    row."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for i, line in enumerate(lines):
        try:
            if line:
                row = json.loads(line)
                rows.append(row | {"key": str(row["key"])})
        except (ValueError, KeyError, TypeError) as e:
            if i < len(lines) - 1:
                raise EvaluationError(
                    f"{path} line {i + 1} is no row of an evaluation: name another file with --rows."
                ) from e
    return rows


def _open_rows(path: Path) -> Any:
    """Open the file for appending, after removing a half-written last line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        f = open(path, "ab+")  # noqa: SIM115  (the caller closes it)
    except OSError as e:
        raise EvaluationError(f"{path} cannot be written ({e.strerror}): name another file with --rows.") from e
    f.seek(0)
    data = f.read()
    f.truncate(data.rfind(b"\n") + 1)
    return f


def _check_bundle(policy: str, path: Path, shared: bool, texts: Sequence[str]) -> None:
    """Raises as `jobs_for` does unless the bundle at `path` can run as `policy` and knows the instructions `texts`.

    `shared`: whether it is the bundle given for all policies, which cannot be a baseline's.
    """
    if policy in BASELINES and shared:
        raise EvaluationError(
            f"policy '{policy}' needs its own bundle: train one with `harmowam train --baseline act`, and evaluate it "
            "by itself."
        )
    bundle = Bundle.load(path)
    own = load_robot(f"sim_{ARM.NAME}")
    bundle.check_arm(own.arm, own.path)
    kind_of(bundle)
    for text in texts:
        bundle.task(text)
    if policy in BASELINES:
        return
    mode_of(bundle, ACTS_AS.get(policy, policy))
    if policy in ACTS_AS and bundle.manifest.policy.kind != "harmowam":
        raise EvaluationError(
            f"policy '{policy}' is a way to drive a bundle of kind harmowam, {path} is another: leave --policy out."
        )


def jobs_for(
    bundle: Path,
    policies: Sequence[str],
    environments: Sequence[str],
    tasks: Sequence[str],
    seeds: Sequence[int],
    *,
    split: str = "development",
    starts: Sequence[str] = ("home",),
    schedule: Schedule = Schedule(),
    baselines: dict[str, Path] | None = None,
    engine: str = "cpu",
) -> list[Job]:
    """All episodes of an evaluation. `tasks`: names of tasks, or instructions; `baselines`: bundles by baseline.

    Raises BundleError for an instruction that a bundle does not know, EvaluationError for a baseline without its own
    bundle or a task that the simulator does not have, PolicyError for a mode that a bundle's policy does not have.
    """
    opened = Bundle.load(bundle)
    out = []
    chosen: list[tuple[str, tuple[str, ...]]] = []
    for task in tasks:
        if task in TASKS:
            known = tuple(t for t in TASKS[task].instructions if t in opened.manifest.tasks)
            chosen.append((task, known or tuple(TASKS[task].instructions)))
        else:
            name = next((n for n, t in TASKS.items() if task in t.instructions), "")
            opened.task(task)
            if not name:
                raise EvaluationError(
                    f"the simulator has no task '{task}': choose one of docs/tasks.md, nothing else can be played."
                )
            chosen.append((name, (task,)))
    for _, texts in chosen:
        opened.task(texts[0])
    own = {}
    for policy in policies:
        path = (baselines or {}).get(policy, bundle)
        _check_bundle(policy, path, path == bundle, [texts[0] for _, texts in chosen])
        own[policy] = (str(path), digest(path))
    # Seeds are the outermost loop, so that an interrupted run has the same number of episodes in every cell.
    for seed in seeds:
        for task, texts in chosen:
            for environment in environments:
                for start in starts:
                    out += [
                        Job(p, d, policy, environment, task, texts, seed, split, start, schedule, engine)
                        for policy, (p, d) in own.items()
                    ]
    return out


def run_jobs(jobs: list[Job], rows: Path | None = None, workers: int | None = None) -> list[dict[str, Any]]:
    """Rows of all `jobs`. Rows that are in the file `rows` are read; the other episodes are run and appended to it."""
    done = {r["key"]: r for r in read_rows(rows)} if rows else {}
    left = [j for j in jobs if j.key not in done]
    workers = max(1, min(workers or os.cpu_count() or 1, len(left)))
    file = _open_rows(rows) if rows else None
    right = 0
    try:
        if left:
            about = {"total": len(jobs), "initial": len(jobs) - len(left), "unit": "episode", "smoothing": 0.05}
            with tqdm(**about, disable=None) as bar:  # None: where nobody watches a terminal
                for row in spawned(run_job, left, workers):
                    done[row["key"]] = row
                    if file is not None:
                        file.write((json.dumps(row) + "\n").encode())
                        file.flush()
                    right += row["success"]
                    bar.update()
                    bar.set_postfix(success=right, refresh=False)
    finally:
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
            file.close()
    return [done[j.key] for j in jobs]
