"""Distillation: a student that predicts futures in one Euler step and chunks in one or two, from a teacher with many.

Three stages train world model and expert separately (naive joint distillation of both streams collapses: Flash-WAM,
91 % to 24-36 %):

* world: one Euler step of the student ends where N steps of the teacher end from the same noise (pseudo-Huber loss),
  also in the features of the reactive expert's stem; a tenth of the loss keeps it near the true future and the
  teacher's tokens;
* shift: the predictive expert learns on the student's tokens, by flow matching with the time shifted to high noise,
  where few steps begin;
* predictive: few steps of the expert end where N of its steps end, with a small term of flow matching.

Compare the student with its control, the teacher's weights with the student's steps: a bundle of `Plan(TEACHER,
world_steps=1, action_steps=1)`.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.augment import augment, displace
from export.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from export.data import Demonstrations
from export.labels import Labels
from export.models import HarmoWam, PredictiveExpert, flow_parts
from export.rows import images
from export.schedule import Stage
from export.text import encoder_of
from export.train import check_rate
from export.world_loop import WorldLoop

STAGES = ("world", "shift", "predictive")
HUBER = (
    0.1  # where the pseudo-Huber loss turns from quadratic to linear, in standard deviations of a latent or an action
)
# weights of the terms that keep the student near the data and near the teacher's tokens
TRUTH, TOKENS, ANCHOR = 0.1, 0.1, 0.1
TEST_ROWS = 256


@dataclass(frozen=True)
class DistilPlan:
    """Steps, batch and peak learning rate of each stage; how many Euler steps the teacher and the student's expert
    take.

    `alpha`: noise level s of flow matching becomes alpha s / (1 + (alpha - 1) s). The other fields are as in `Plan`.
    """

    world: Stage = (1500, 64, 2e-4)
    shift: Stage = (600, 96, 2e-4)
    predictive: Stage = (1000, 96, 2e-4)
    teacher_steps: int = 8
    action_steps: int = 1
    alpha: float = 4.0
    seed: int = 0
    shards: int = 2
    bf16: bool | None = None


def pseudo_huber(difference: Tensor) -> Tensor:
    return torch.sqrt(difference**2 + HUBER**2) - HUBER


def shifted_time(uniform: Tensor, alpha: float) -> Tensor:
    """Flow times (0 is noise, 1 is data) of uniform numbers, concentrated near the noise; alpha 1 keeps them
    uniform."""
    noise = alpha * uniform / (1 + (alpha - 1) * uniform)
    return 1 - noise


class Distiller(WorldLoop):
    """`teacher` is not changed; model and moving average start from the teacher's weights and become the student."""

    stages = STAGES

    def __init__(self, data: Demonstrations, run: Path, plan: DistilPlan, teacher: HarmoWam, labels: Labels):
        self.plan = plan
        student = copy.deepcopy(teacher)
        student.cfg = dataclasses.replace(teacher.cfg, world_steps=1, action_steps=plan.action_steps)
        schedule = {s: getattr(plan, s) for s in STAGES}
        super().__init__(
            run,
            student,
            data,
            labels,
            schedule,
            plan.seed,
            plan.shards,
            plan.bf16,
            teacher_steps=plan.teacher_steps,
            action_steps=plan.action_steps,
            alpha=plan.alpha,
        )
        self.teacher = teacher.to(self.device).eval().requires_grad_(False)
        # The expert learns from rows of tasks only, three times as often near a contact (as in Trainer).
        weight = np.where(labels.gate > 0.5, 3.0, 1.0) * labels.skilled
        self.sampling = np.cumsum(weight / weight.sum())

    def _begin(self, name: str) -> None:
        if not hasattr(self, "latents"):
            self._encode_all()
        if name == "world":
            self.model.world.requires_grad_(True)
            self.model.world.tokens.requires_grad_(False)
        else:
            self.model.predictive.requires_grad_(True)
        if name == "predictive":
            self.coach = PredictiveExpert(self.cfg).to(self.device).eval().requires_grad_(False)
            # without the stage `shift`: the teacher's own expert
            coach = self.kept or self.teacher.predictive.state_dict()
            self.coach.load_state_dict({k: v.float() for k, v in coach.items()})

    def _finish(self, name: str) -> None:
        # The target is the expert as the stage `shift` left it; the weights change from here on.
        self.kept = {k: v.half() for k, v in self.average.predictive.state_dict().items()} if name == "shift" else {}

    # -- the losses, one a stage ---------------------------------------------------------------------------------------

    def _world_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        rows = rng.integers(len(self.data.pose), size=batch)
        now, future = self.latents[rows].float(), self._future(rows)
        noise = torch.randn_like(future)
        goal, tokens = self._imagine(self.teacher, rows, noise, self.plan.teacher_steps)
        guess, ours = self._imagine(self.model, rows, noise, 1)
        still = now.repeat(1, self.cfg.futures, 1, 1)
        weight = 1 + 3 * (goal - still).abs().clamp(0, 1)
        stem = self.teacher.reactive.stem
        with self._cast():
            seen, wanted = (stem(torch.cat([x, x - still], 1)).float() for x in (guess, goal))
        return {
            "endpoint": (weight * pseudo_huber(guess - goal)).mean(),
            "reactive": ((seen - wanted) ** 2).mean() / (wanted**2).mean().clamp_min(1e-6),
            "truth": TRUTH * (weight * pseudo_huber(guess - future)).mean(),
            "tokens": TOKENS * ((ours - tokens) ** 2).mean() / tokens.var().clamp_min(1e-6),
        }

    def _shift_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        rows, situation = self._situation(rng, batch)
        memory = self._memory(flow_parts(self.model)[1], situation)
        return {"flow": self._flow(memory, rows, rng)}

    def _predictive_loss(self, rng: np.random.Generator, batch: int) -> dict[str, Tensor]:
        rows, situation = self._situation(rng, batch)
        noise = torch.randn(batch, self.cfg.chunk, 6, device=self.device)
        with torch.no_grad():
            goal = self._act(self.coach, self._memory(self.coach, situation), noise, self.plan.teacher_steps)
        expert = flow_parts(self.model)[1]
        memory = self._memory(expert, situation)
        guess = self._act(expert, memory, noise, self.plan.action_steps)
        return {
            "endpoint": pseudo_huber(guess - goal).mean(),
            "anchor": ANCHOR * self._flow(memory, rows, rng),
        }

    def _imagine(self, model: HarmoWam, rows: np.ndarray, noise: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Futures and tokens of `rows` by `model`; gradients flow only through parts that are being trained."""
        world = flow_parts(model)[0]
        with self._cast():
            text = world.embed(self._row(self.labels.said, rows))
            seen = world.look(images(self.data.front[rows], self.device))
            future, tokens = world.imagine(noise, self.latents[rows].float(), seen, text, self._state(rows), steps)
        return future.float(), tokens.float()

    def _situation(self, rng: np.random.Generator, batch: int) -> tuple[np.ndarray, tuple[Tensor, ...]]:
        """Rows of demonstrations with what the expert sees there: wrist view, front latent, tokens of the student's
        world model, proprioception (as in Trainer)."""
        rows = np.minimum(np.searchsorted(self.sampling, rng.random(batch)), len(self.sampling) - 1)
        wrist = augment(images(self.data.wrist[rows], self.device), rng)
        now = self.latents[rows].float()
        state = self._state(rows)
        world, _ = flow_parts(self.average)
        with torch.no_grad(), self._cast():
            noise = torch.randn(batch, self.cfg.futures * now.shape[1], *now.shape[2:], device=self.device)
            text = world.embed(self._row(self.labels.said, rows))
            seen = world.look(images(self.data.front[rows], self.device))
            _, mids = world(noise, torch.zeros(batch, device=self.device), now, seen, text, state)
            now, mids = displace(now, mids.float(), self.labels.gate[rows] > 0.5, self.labels.ambiguous[rows], rng)
            tokens = world.tokens(mids)
        return rows, (wrist, now, tokens, self._felt(rows, rng))

    def _memory(self, expert: PredictiveExpert, situation: tuple[Tensor, ...]) -> Tensor:
        with self._cast():
            return expert.context(*situation)[0]

    def _act(self, expert: PredictiveExpert, memory: Tensor, noise: Tensor, steps: int) -> Tensor:
        with self._cast():
            return expert.generate(noise, memory, steps).float()

    def _flow(self, memory: Tensor, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Flow-matching loss of the true chunk at shifted times."""
        chunk = (self._row(self.labels.chunk, rows) - self.model.action_mean) / self.model.action_std
        uniform = torch.from_numpy(rng.random(len(rows)).astype(np.float32)).to(self.device)
        t = shifted_time(uniform, self.plan.alpha)
        noise = torch.randn_like(chunk)
        x = (1 - t)[:, None, None] * noise + t[:, None, None] * chunk
        with self._cast():
            velocity = flow_parts(self.model)[1].velocity(x, t, memory)
        taught = self._row(self.labels.taught, rows)[:, :, None]
        return (taught * (velocity.float() - (chunk - noise)) ** 2).mean()

    # -- how close the student is
    # -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def compare(self) -> dict[str, dict[str, float]]:
        """Root mean square distances, in standard deviations, over rows spread through the dataset.

        Student and control (the teacher's weights with the student's steps) are compared with the teacher's endpoint
        from the same noise, and all three with what really happened.
        """
        rows = np.unique(np.linspace(0, len(self.data.pose) - 1, TEST_ROWS).astype(int))
        now, future = self.latents[rows].float(), self._future(rows)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(future.shape, generator=generator).to(self.device)
        teacher, told = self._imagine(self.teacher, rows, noise, self.plan.teacher_steps)
        student, ours = self._imagine(self.average, rows, noise, 1)
        control, _ = self._imagine(self.teacher, rows, noise, 1)
        wrist, state = images(self.data.wrist[rows], self.device), self._state(rows)
        chunk = (self._row(self.labels.chunk, rows) - self.model.action_mean) / self.model.action_std
        start = torch.randn(chunk.shape, generator=generator).to(self.device)

        def act(model: HarmoWam, tokens: Tensor, steps: int) -> Tensor:
            expert = flow_parts(model)[1]
            return self._act(expert, self._memory(expert, (wrist, now, tokens, state)), start, steps)

        return {
            "world": distances(student, control, teacher, future),
            "predictive": distances(
                act(self.average, ours, self.plan.action_steps),
                act(self.teacher, told, self.plan.action_steps),
                act(self.teacher, told, self.plan.teacher_steps),
                chunk,
            ),
        }


def distances(student: Tensor, control: Tensor, teacher: Tensor, truth: Tensor) -> dict[str, float]:
    pairs = {
        "student_to_teacher": (student, teacher),
        "control_to_teacher": (control, teacher),
        "student_to_truth": (student, truth),
        "control_to_truth": (control, truth),
        "teacher_to_truth": (teacher, truth),
    }
    return {k: round(float((a - b).pow(2).mean().sqrt()), 4) for k, (a, b) in pairs.items()}


def distil(
    checkpoint: Path,
    data: Demonstrations,
    run: Path,
    out: Path,
    plan: DistilPlan = DistilPlan(),
    text_encoder: Path | None = None,
) -> dict[str, object]:
    """Distil `checkpoint` (or continue its distillation) in folder `run` and write the student to `out`; returns its
    note.

    Raises CheckpointError, DataError and EncoderError; the last saved state then stays.
    """
    teacher, cameras, instructions, note = load_checkpoint(checkpoint)
    if teacher.cfg.form != "flow":
        raise CheckpointError(f"{checkpoint} takes one step each already: export it, there is nothing to distil.")
    check_rate(data, teacher.cfg)
    labels = Labels(data, teacher.cfg, encoder_of(teacher.cfg, text_encoder))
    distiller = Distiller(data, run, plan, teacher, labels)
    # A run that had ended lacks the latents that `compare` needs: make them while all processes are still there.
    if distiller.stage == len(distiller.stages):
        distiller._encode_all()
    student = distiller.train()
    made: dict[str, object] = {
        "teacher": {
            "sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
            "world_steps": teacher.cfg.world_steps,
            "action_steps": teacher.cfg.action_steps,
            "note": note,
        },
        "plan": dataclasses.asdict(plan),
        "distance": distiller.compare(),
        "train_minutes": round(distiller.seconds / 60, 1),
        "torch": torch.__version__,
    }
    if distiller.rank == 0:
        save_checkpoint(Path(out), student, cameras, instructions, made)
    return made
