"""The training loop: stages of steps, a moving average, a state file from which an interrupted run resumes, one process
or several.

A step is the mean over `shards` sub-batches; each is drawn from a generator keyed by (seed, stage, step, shard).
Processes (torchrun) divide the shards and sum their gradients, so two processes take the same step as one, up to the
order of the sum. An interrupted run resumes exactly from its last saved state.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from export.arithmetic import remember, remembered, rounds_bf16, take_up, workforce
from export.checkpoint import CheckpointError
from export.data import Demonstrations
from export.log import Log
from export.rows import digest_of, make_blocks, read_blocks
from export.run_folder import alone, make_run_folder
from export.schedule import Stage as Stage  # export.act imports it from here
from export.schedule import check_schedule, learning_rate
from export.state import (
    difference,
    load_state,
    pack_finished,
    pack_running,
    round_finished,
    round_running,
    save_state,
    unpack_running,
)

SAVE_EVERY_S = 60.0
ROUND_EVERY = 20  # steps between roundings; a state is written only then (export/state.py)
SCHEMA = 1  # version of the state file

Model = TypeVar("Model", bound=nn.Module)


def leads() -> bool:
    """Whether this process is the one that saves, logs and prints."""
    return int(os.environ.get("RANK", "0")) == 0


class Loop(Generic[Model]):
    """Owns the model, its moving average, the optimiser of the current stage, and the state file of the run.

    A subclass names its `stages` and defines for each a `_NAME_loss(rng, batch)` that returns a dict of scalar tensors.
    `_begin(name)` unfreezes the parts that the stage trains and prepares data that its steps reuse; `_finish(name)`
    ends the stage.
    """

    stages: tuple[str, ...]
    layout: torch.memory_format = torch.channels_last  # saves 17 to 20 % of the time of convolutions on a CPU with bf16
    end: float | None = None  # see `learning_rate`

    def __init__(
        self,
        run: Path,
        model: Model,
        cfg: Any,
        data: Demonstrations,
        schedule: Mapping[str, Stage],
        seed: int,
        shards: int,
        bf16: bool | None,
        **settings: Any,
    ) -> None:
        """`cfg`: the model's configuration, a dataclass. `bf16`: None chooses what is faster on the device, or what the
        saved state began with. `settings`: further settings that must be equal for a run to resume.

        Raises CheckpointError for an impossible plan, for a run folder with other settings, and for one that cannot be
        written.
        """
        self.run, self.schedule, self.seed, self.shards = Path(run), dict(schedule), seed, shards
        self.data, self.cfg = data, cfg
        self._join()
        check_schedule(self.schedule, self.shards, self.processes)
        make_run_folder(self.run)
        self.model = model.to(self.device).requires_grad_(False)
        self.model.to(memory_format=self.layout)  # type: ignore[call-overload]
        round_finished(self.model.state_dict())
        self.average = copy.deepcopy(self.model).eval()
        self.initial = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.kept: dict[str, Tensor] = {}  # what a later stage needs from an earlier one besides the weights
        self.stage, self.step, self.seconds = 0, 0, 0.0
        self._recent: list[dict[str, float]] = []  # losses at the last logged steps
        self.optimiser: torch.optim.Optimizer | None = None
        self.bf16 = self._arithmetic() if bf16 is None else bf16
        digest = hashlib.sha256(b"".join(v.cpu().numpy().tobytes() for v in self.initial.values())).hexdigest()[:16]
        weights = {} if data.weight is None else {"weights": np.unique(data.weight).tolist()}
        everything = {
            **settings,
            **weights,
            "config": dataclasses.asdict(cfg),
            "data": digest_of(data),
            "start": digest,
            "schema": SCHEMA,
            "cameras": {name: c.to_json() for name, c in data.cameras.items()},
            "plan": {**self.schedule, "seed": seed, "shards": shards},
            "round_every": ROUND_EVERY,
        }
        self.settings = json.loads(json.dumps(everything))  # as JSON reads it back: lists instead of tuples
        self._resume(bf16)
        self._check_disk_space()

    # -- processes -----------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Join the other processes of torchrun, if there are any."""
        cuda = torch.cuda.is_available()
        self.rank, self.processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
            # a resumed run must give the same weights as an uninterrupted one
            torch.backends.cudnn.deterministic = True
        if self.processes > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo")

    def _together(self, gradients: list[Tensor]) -> None:
        """Sum the gradients of all processes, in place, with one message per step."""
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            g.copy_(part.reshape(g.shape))

    # -- the state -----------------------------------------------------------------------------------------------------

    @property
    def state_path(self) -> Path:
        return self.run / "state.safetensors"

    @property
    def cache(self) -> Path:
        """Folder for what can be computed again within minutes; another machine does not need it."""
        return self.run / "cache"

    def _check_disk_space(self) -> None:
        """Raises CheckpointError where the disk has too little space for the whole run, before the training starts."""
        needed = 2 * 12 * sum(p.numel() for p in self.model.parameters()) + self._row_bytes() * len(self.data.pose)
        free = shutil.disk_usage(self.run).free if self.rank == 0 else needed
        if free < needed:
            raise CheckpointError(
                f"{self.run} has room for {free / 1e6:.0f} MB and the run needs {needed / 1e6:.0f} MB: free some, or "
                "choose another --run folder."
            )

    def _row_bytes(self) -> int:
        """Bytes that `_every_row` keeps on the disk for each row of the dataset."""
        return 0

    def _all(self, here: bool) -> bool:
        """True where all processes say True: all must compute in the same way."""
        if self.processes == 1:
            return here
        said = torch.tensor(float(here), device=self.device)
        dist.all_reduce(said, dist.ReduceOp.MIN)
        return bool(said)

    def _arithmetic(self) -> bool:
        """Whether to use bf16, as it was found when the run folder was created: another measurement may give another
        answer."""
        if self.state_path.exists():
            return False  # the state has the answer
        known = remembered(self.run)
        bf16 = self._all(rounds_bf16(self.device) if known is None else known)
        if known is None and self.rank == 0:
            remember(self.run, bf16)
        return bf16

    def _resume(self, bf16: bool | None) -> None:
        self._running: dict[str, dict[str, Tensor]] = {}
        if self.state_path.exists():
            tensors, about = load_state(self.state_path)
            about.get("settings", {}).setdefault(
                "cameras", self.settings["cameras"]
            )  # states without an entry for cameras
            differs = difference(about.get("settings"), self.settings)
            if differs is None and bf16 not in (None, about["bf16"]):
                differs = f"bf16 {about['bf16']}, now {bf16}"
            if differs:
                raise CheckpointError(
                    f"{self.state_path} belongs to another run ({differs}): repeat its settings, choose another --run "
                    "folder or delete it."
                )
            self.stage, self.step, self.seconds, self.bf16 = (about[k] for k in ("stage", "step", "seconds", "bf16"))
            for key, value in tensors.items():
                kind, _, name = key.partition("/")
                if kind == "finished":
                    self.model.state_dict()[name].copy_(value)
                elif kind == "kept":
                    self.kept[name] = value.to(self.device)
                else:
                    self._running.setdefault(name, {})[kind] = value
            self.average.load_state_dict(self.model.state_dict())
            take_up(about.get("workforce"), self.processes)
        if self.processes > 1:
            dist.barrier()  # all processes have read the state before one writes it

    def _take_up(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Restore the saved values of the parameters in training, their moving averages and optimiser moments, for the
        stage that has begun."""
        assert self.optimiser is not None
        averages = dict(self.average.named_parameters())
        with torch.no_grad():
            for name, stored in self._running.items():
                p = trained[name]
                weight, average, moments = unpack_running(stored, p.shape)
                p.copy_(weight)
                averages[name].copy_(average)
                self.optimiser.state[p] = {
                    "step": torch.tensor(float(self.step)),
                    **{k: v.reshape(p.shape).to(p) for k, v in moments.items()},
                }
        self._running = {}

    def _running_values(self) -> Iterator[tuple[str, nn.Parameter, Tensor, dict[str, Tensor]]]:
        """Name, weight, average and moments of every parameter in training."""
        averages = dict(self.average.named_parameters())
        for name, p in self.model.named_parameters():
            if self.optimiser is not None and p in self.optimiser.state:
                yield name, p, averages[name], self.optimiser.state[p]

    def save(self) -> None:
        """Write the state; the running values must be rounded. Raises CheckpointError; the previous state file is then
        untouched."""
        if self.rank:
            return
        tensors: dict[str, Tensor] = {f"kept/{k}": v.cpu().contiguous() for k, v in self.kept.items()}
        running = set()
        for name, p, average, moments in self._running_values():
            tensors |= {f"{kind}/{name}": v for kind, v in pack_running(p, average, moments).items()}
            running.add(name)
        for name, v in self.model.state_dict().items():
            if name not in running and not torch.equal(v, self.initial[name]):
                tensors[f"finished/{name}"] = pack_finished(v)
        save_state(
            self.state_path,
            tensors,
            {
                "settings": self.settings,
                "stage": self.stage,
                "step": self.step,
                "seconds": self.seconds,
                "bf16": self.bf16,
                "workforce": workforce(self.processes),
            },
        )

    # -- the loop ------------------------------------------------------------------------------------------------------

    def train(self) -> Model:
        """Run the stages that are left; returns the averaged model. Raises CheckpointError when the training cannot
        continue."""
        with nullcontext() if self.rank else alone(self.run):
            while self.stage < len(self.stages):
                if self.schedule[self.stages[self.stage]][0]:
                    self._train_stage()
                else:
                    self.stage += 1
            if self.rank == 0:
                shutil.rmtree(self.cache, ignore_errors=True)
        if self.processes > 1:
            dist.destroy_process_group()
        return self.average

    def _train_stage(self) -> None:
        """Run one stage to its end, from the saved step on."""
        name = self.stages[self.stage]
        total, _, peak = self.schedule[name]
        before = sum(self.schedule[s][0] for s in self.stages[: self.stage])
        self.model.requires_grad_(False)
        self._recent = []
        saved = began = time.monotonic()
        self._begin(name)
        trained = {k: p for k, p in self.model.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(trained.values(), lr=peak, weight_decay=1e-4, betas=(0.9, 0.98))
        self._take_up(trained)
        log = Log(self.run, before + self.step) if self.rank == 0 else None
        with tqdm(total=total, initial=self.step, desc=name, mininterval=5, disable=self.rank > 0) as bar:
            while self.step < total:
                for group in self.optimiser.param_groups:
                    group["lr"] = learning_rate(self.step, total, peak, self.end)
                losses = self._gradients(name, list(trained.values()))
                norm = nn.utils.clip_grad_norm_(trained.values(), 1.0)
                self.optimiser.step()
                self._follow(trained)
                self.step += 1
                bar.update()
                if self.step % ROUND_EVERY and self.step < total:
                    continue
                row = {k: float(v) for k, v in losses.items()}
                self._recent = [*self._recent[-9:], row]
                if not math.isfinite(sum(row.values())):
                    raise CheckpointError(
                        f"{name} diverged before step {self.step} ({row}): the state in {self.run} is older; lower "
                        "its rate with --plan, in another --run folder."
                    )
                for _, p, average, moments in self._running_values():
                    round_running(p, average, moments)
                if log is not None:
                    bar.set_postfix({k: f"{v:.4f}" for k, v in row.items()}, refresh=False)
                    rate = self.optimiser.param_groups[0]["lr"]
                    log.scalars(name, {**row, "learning_rate": rate, "gradient_norm": float(norm)}, before + self.step)
                if time.monotonic() - saved >= SAVE_EVERY_S and self.step < total:
                    self.seconds += time.monotonic() - began
                    began = time.monotonic()
                    self.save()
                    saved = time.monotonic()
                    if log is not None:
                        log.flush()
        if log is not None:
            log.close()
        with torch.no_grad():
            self._finish(name)
            round_finished(self.average.state_dict())
            self.model.load_state_dict(self.average.state_dict())  # later stages build on the averaged weights
        self.seconds += time.monotonic() - began
        self.stage, self.step, self.optimiser = self.stage + 1, 0, None
        self.save()

    def losses(self) -> dict[str, float]:
        """Mean losses over the last 200 steps of the stage that ended, of this process."""
        return {k: round(sum(r[k] for r in self._recent) / len(self._recent), 5) for k in (self._recent or [{}])[0]}

    def _gradients(self, name: str, trained: list[nn.Parameter]) -> dict[str, Tensor]:
        """Compute the gradients of one step; returns the losses, averaged over the shards of this process."""
        mine = range(self.rank, self.shards, self.processes)
        means: dict[str, Tensor] = {}
        for p in trained:
            p.grad = torch.zeros_like(p)
        for shard in mine:
            rng = np.random.default_rng([self.seed, self.stage, self.step, shard])
            torch.manual_seed(int(rng.integers(2**31)))
            losses = getattr(self, f"_{name}_loss")(rng, self.schedule[name][1] // self.shards)
            (torch.stack(list(losses.values())).sum() / self.shards).backward()
            for k, v in losses.items():
                means[k] = means.get(k, torch.zeros_like(v)) + v.detach() / len(mine)
        if self.processes > 1:
            self._together([p.grad for p in trained if p.grad is not None])
        return means

    @torch.no_grad()
    def _follow(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Update the moving average; early in training it has a shorter memory."""
        decay = min(0.998, (self.step + 1) / (self.step + 20))
        averages = dict(self.average.named_parameters())
        for name, p in trained.items():
            averages[name].lerp_(p, 1 - decay)

    def _begin(self, name: str) -> None:
        """Unfreeze the parts that the stage trains (all are frozen at the call). Must not read weights that the stage
        changes."""
        raise NotImplementedError

    def _finish(self, name: str) -> None:
        """Set in `average` what follows from a finished stage, if anything."""

    # -- the data ------------------------------------------------------------------------------------------------------

    def _every_row(
        self,
        name: str,
        make: Callable[[np.ndarray], tuple[Tensor, ...]],
        by: list[nn.Module],
        rows: np.ndarray | None = None,
    ) -> tuple[Tensor, ...]:
        """What the frozen parts `by` make of `rows` (None: of all rows), read from the cache where it is there
        (`export/rows.py`)."""
        rows = np.arange(len(self.data.pose)) if rows is None else rows
        weights = b"".join(v.cpu().numpy().tobytes() for m in by for v in m.state_dict().values())
        key = hashlib.sha256(weights + self.settings["data"].encode()).hexdigest()[:12]
        folder = self.cache / f"{name}-{key}"
        make_blocks(folder, name, lambda at: make(rows[at]), len(rows), self.rank, self.processes)
        if self.processes > 1:
            dist.barrier()
        return read_blocks(folder, len(rows), self.device)

    def _row(self, array: np.ndarray, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(array[rows]).to(self.device)

    def _cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
