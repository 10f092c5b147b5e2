"""The training loop: a run that is killed, split over processes or short of disk ends like an uninterrupted one, or
says why not."""

import dataclasses
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from export.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from export.config import Config
from export.models import HarmoWam
from export.origin import samples_path
from export.state import (
    MOMENTS,
    load_state,
    pack_finished,
    pack_running,
    round_finished,
    round_running,
    save_state,
    unpack_running,
)
from export.train import Plan, Trainer, train
from harmowam.cli import main
from tests.training import PLAN, SMALL, plan_options, save_always

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def unbroken(drawn, one_thread, tmp_path_factory):
    """Folder of an uninterrupted run; its checkpoint is `m.safetensors`."""
    run = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        save_always(patch)
        train(drawn, run, run / "m.safetensors", PLAN, SMALL)
    return run


class Stopped(Exception):
    pass


def same(a, b):
    x, y = load_file(a), load_file(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def command(*args, processes=1):
    launch = [sys.executable, "-m", "tests.training"]
    if processes > 1:
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc-per-node={processes}",
            "-m",
            "tests.training",
        ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, *map(str, args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def progress(run):
    try:
        return load_state(run / "state.safetensors")[1]
    except (CheckpointError, FileNotFoundError):
        return {"stage": 0, "step": 0}


def scalars(run):
    log = EventAccumulator(str(run / "tensorboard"))
    log.Reload()
    return {tag: log.Scalars(tag) for tag in log.Tags()["scalars"]}


def test_a_run_that_is_killed_twice_ends_like_an_uninterrupted_one(
    dataset_folder, drawn, unbroken, tmp_path, monkeypatch
):
    for stage in (1, 2):  # during the stage of the world model, then of the experts
        process = command("train", "--dataset", dataset_folder, "--run", tmp_path, *plan_options())
        while (at := progress(tmp_path))["stage"] < stage or at["step"] < 4:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert progress(tmp_path)["stage"] == stage
    save_always(monkeypatch)
    train(drawn, tmp_path, tmp_path / "m.safetensors", PLAN, SMALL)
    assert same(tmp_path / "m.safetensors", unbroken / "m.safetensors")
    for tag, events in scalars(unbroken).items():
        assert [(e.step, e.value) for e in scalars(tmp_path)[tag]] == [(e.step, e.value) for e in events]


def test_two_processes_take_the_steps_of_one(dataset_folder, unbroken, tmp_path):
    out = tmp_path / "m.safetensors"
    process = command(
        "train", "--dataset", dataset_folder, "--run-folder", tmp_path, "--out", out, *plan_options(), processes=2
    )
    said, errors = process.communicate()
    assert process.returncode == 0, errors
    assert said.count("min of training") == 1  # one process prints
    one, two = load_file(unbroken / "m.safetensors"), load_file(out)
    assert max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-3
    with safe_open(str(out), "pt") as f:
        assert '"processes": 2' in f.metadata()["note"]


def test_steps_differ_from_seed_to_seed(drawn, unbroken, tmp_path):
    """Shows that the equality in the two tests above is not trivial: another seed moves weights by this much."""
    train(drawn, tmp_path, tmp_path / "m.safetensors", dataclasses.replace(PLAN, seed=1), SMALL)
    one, other = load_file(unbroken / "m.safetensors"), load_file(tmp_path / "m.safetensors")
    assert max(float((one[k] - other[k]).abs().max()) for k in one) > 1e-2


def test_a_run_resumes_with_the_threads_that_it_began_with(drawn, unbroken, tmp_path, monkeypatch):
    """The order of a sum depends on the number of threads, which the limits of a job may change from one start to the
    next."""
    save_always(monkeypatch)
    cut = Trainer(drawn, tmp_path, PLAN, SMALL)
    loss = cut._world_loss

    def stop_at_the_sixth(rng, batch):
        if cut.step == 6:
            raise Stopped
        return loss(rng, batch)

    monkeypatch.setattr(cut, "_world_loss", stop_at_the_sixth)
    with pytest.raises(Stopped):
        cut.train()
    torch.set_num_threads(2)
    try:
        train(drawn, tmp_path, tmp_path / "m.safetensors", PLAN, SMALL)
    finally:
        torch.set_num_threads(1)
    assert same(tmp_path / "m.safetensors", unbroken / "m.safetensors")


def test_the_measured_choice_of_bf16_holds_for_the_run_folder_before_a_state_is_saved(drawn, tmp_path, monkeypatch):
    """The measurement may be close, and chance then decides on a busy machine: two answers would give different
    weights."""
    answers = iter([False, True])
    monkeypatch.setattr("export.loop.rounds_bf16", lambda device: next(answers))
    assert [Trainer(drawn, tmp_path, PLAN, SMALL).bf16 for _ in range(2)] == [False, False]
    assert Trainer(drawn, tmp_path, dataclasses.replace(PLAN, bf16=True), SMALL).bf16  # no step is trained yet


def test_a_full_disk_keeps_the_previous_state(drawn, unbroken, tmp_path, monkeypatch):
    save_always(monkeypatch)
    trainer = Trainer(drawn, tmp_path, PLAN, SMALL)
    path, size = tmp_path / "state.safetensors", 0
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    save = trainer.save

    def fills_up():
        """From the world model on, no file may grow beyond the size of the state: the kernel refuses as on a full
        disk."""
        nonlocal size
        if trainer.stage == 1 and trainer.step == 8:
            size = path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        save()

    monkeypatch.setattr(trainer, "save", fills_up)
    try:
        with pytest.raises(
            CheckpointError, match=r"cannot be written \(File too large\), the file saved before is untouched"
        ):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert path.stat().st_size == size and not list(tmp_path.glob("*.partial"))
    assert (progress(tmp_path)["stage"], progress(tmp_path)["step"]) == (1, 4)
    train(drawn, tmp_path, tmp_path / "m.safetensors", PLAN, SMALL)
    assert same(tmp_path / "m.safetensors", unbroken / "m.safetensors")


def test_packing_loses_nothing_of_rounded_values():
    rng = np.random.default_rng(0)
    scale = torch.from_numpy((10.0 ** rng.uniform(-12, 2, (1000, 3))).astype(np.float32))
    weight, average, first, second = (
        scale * torch.from_numpy(rng.normal(size=(1000, 3)).astype(np.float32)) for _ in range(4)
    )
    weight[0], average[1], first[2], second[3] = 0, 0, 0, 0
    original = weight.clone()
    moments = dict(zip(MOMENTS, (first, second.abs())))
    round_running(weight, average, moments)
    assert float(((weight - original) / original.abs().clamp_min(1e-30)).abs().nan_to_num().max()) < 2**-16
    stored = pack_running(weight, average, moments)
    assert sum(v.numel() * v.element_size() for v in stored.values()) == 9 * weight.numel()
    back = unpack_running(stored, weight.shape)
    assert torch.equal(back[0], weight) and torch.equal(back[1], average)
    assert all(torch.equal(back[2][k], moments[k].flatten().reshape(1000, 3)) for k in MOMENTS)
    finished = {"a": original.clone()}
    round_finished(finished)
    assert pack_finished(finished["a"]).dtype == torch.float16
    assert torch.equal(pack_finished(original), original)  # values that float16 cannot hold stay float32


def test_the_state_of_the_full_model_fits_40_megabytes(drawn, tmp_path, monkeypatch):
    """In the stage that trains most parameters: the world model."""
    save_always(monkeypatch)
    monkeypatch.setattr("export.loop.ROUND_EVERY", 1)

    class Watched(Trainer):
        def _finish(self, name):
            if name == "world":
                raise Stopped
            super()._finish(name)

    plan = Plan(tokeniser=(1, 4, 1e-3), world=(2, 4, 1e-3))
    with pytest.raises(Stopped):
        Watched(drawn, tmp_path, plan, Config()).train()
    assert (progress(tmp_path)["stage"], progress(tmp_path)["step"]) == (1, 1)
    assert 10e6 < (tmp_path / "state.safetensors").stat().st_size <= 40e6


def test_tensorboard_shows_every_loss_once(unbroken):
    assert {"tokeniser/reconstruction", "world/learning_rate", "experts/gate"} <= set(scalars(unbroken))
    assert [e.step for e in scalars(unbroken)["world/flow"]] == list(range(16, 37, 4))  # steps of the whole run


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, r"belongs to another run \(plan.seed 0, now 1\).*another --run folder"),
        ({"world": (99, 4, 1e-2)}, r"plan.world \[24, 4, 0.01\], now \[99, 4, 0.01\]"),
        ({"bf16": "other"}, "bf16 "),
        ({"shards": 3}, "batch of at least 6 that 3 divides"),
        ({"world": (-1, 4, 1e-2)}, "makes no sense"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(drawn, unbroken, changes, said):
    if "bf16" in changes:
        changes = {"bf16": not progress(unbroken)["bf16"]}
    with pytest.raises(CheckpointError, match=said), pytest.MonkeyPatch.context() as patch:
        save_always(patch)
        Trainer(drawn, unbroken, dataclasses.replace(PLAN, **changes), SMALL)


def test_another_configuration_or_dataset_is_refused(drawn, unbroken, monkeypatch):
    save_always(monkeypatch)
    with pytest.raises(CheckpointError, match=r"config.layers 1, now 2"):
        Trainer(drawn, unbroken, PLAN, dataclasses.replace(SMALL, layers=2))
    moved = dataclasses.replace(drawn, target=drawn.target + 0.01)
    with pytest.raises(CheckpointError, match=r"\(data [0-9a-f]+, now"):
        Trainer(moved, unbroken, PLAN, SMALL)
    # A newly calibrated camera takes the same pictures, but the labels on them change.
    away = dataclasses.replace(drawn.cameras["front"], T_base_from_cam=np.eye(4) * 1.01)
    with pytest.raises(CheckpointError, match=r"\(cameras\.front\.T_base_from_cam"):
        Trainer(dataclasses.replace(drawn, cameras={**drawn.cameras, "front": away}), unbroken, PLAN, SMALL)


def test_a_state_without_cameras_is_resumed(drawn, unbroken, tmp_path, monkeypatch):
    save_always(monkeypatch)
    run = shutil.copytree(unbroken, tmp_path / "run")
    tensors, about = load_state(run / "state.safetensors")
    del about["settings"]["cameras"]
    save_state(run / "state.safetensors", tensors, about)
    assert Trainer(drawn, run, PLAN, SMALL).stage == 3


def test_other_faults_of_a_run_folder_are_reported(drawn, tmp_path, monkeypatch):
    trainer = Trainer(drawn, tmp_path, PLAN, SMALL)
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="another process trains in"):
            trainer.train()
    trainer.save()
    whole = (tmp_path / "state.safetensors").read_bytes()
    (tmp_path / "state.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"is damaged .*delete it"):
        Trainer(drawn, tmp_path, PLAN, SMALL)
    with pytest.raises(CheckpointError, match=r"cannot be made .*another --run folder"):
        Trainer(drawn, tmp_path / "lock" / "inside", PLAN, SMALL)
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(CheckpointError, match="has room for 0 MB and the run needs"):
        Trainer(drawn, tmp_path / "new", PLAN, SMALL)


def test_a_loss_that_is_no_number_ends_the_run_and_not_the_state(drawn, tmp_path, monkeypatch):
    save_always(monkeypatch)
    trainer = Trainer(drawn, tmp_path, PLAN, SMALL)
    loss = trainer._world_loss
    monkeypatch.setattr(
        trainer, "_world_loss", lambda rng, n: {k: v / (trainer.step < 6) for k, v in loss(rng, n).items()}
    )
    with pytest.raises(CheckpointError, match="world diverged before step 8"):
        trainer.train()
    at = progress(tmp_path)
    assert (at["stage"], at["step"]) == (1, 4)


def test_a_checkpoint_is_fine_tuned_and_what_gets_no_steps_stays_as_it_is(drawn, unbroken, tmp_path):
    start = unbroken / "m.safetensors"
    plan = dataclasses.replace(PLAN, tokeniser=(0, 4, 1e-2), world=(0, 4, 1e-2), experts=(4, 4, 1e-2))
    note = train(drawn, tmp_path / "run", tmp_path / "m.safetensors", plan, SMALL, start=start)
    one, two = load_file(start), load_file(tmp_path / "m.safetensors")
    moved = {k.split(".")[0] for k in one if not torch.equal(one[k], two[k])}
    assert moved == {"predictive", "reactive", "gate", "world"} and note["from"]["plan"]["world"] == [24, 4, 1e-2]
    assert {k for k in one if k.startswith("world") and not torch.equal(one[k], two[k])} <= {
        k for k in one if k.startswith("world.tokens")
    }


def test_a_checkpoint_is_averaged_with_the_one_it_was_fine_tuned_from_and_with_no_other(drawn, unbroken, tmp_path):
    start, tuned, mean = unbroken / "m.safetensors", tmp_path / "m.safetensors", tmp_path / "mean.safetensors"
    plan = dataclasses.replace(PLAN, tokeniser=(0, 4, 1e-2), world=(4, 4, 1e-2), experts=(4, 4, 1e-2))
    train(drawn, tmp_path / "run", tuned, plan, SMALL, start=start)
    samples_path(tuned).write_bytes(b"observations")
    made = CliRunner().invoke(main, ["average", str(start), str(tuned), "--share", "0.25", "--out", str(mean)])
    assert made.exit_code == 0, made.output
    a, b, m = (load_file(p) for p in (start, tuned, mean))
    assert any(not torch.equal(a[k], b[k]) for k in a)
    assert all(torch.allclose(m[k].float(), 0.75 * a[k].float() + 0.25 * b[k].float(), atol=1e-3, rtol=1e-3) for k in a)
    note = load_checkpoint(mean)[3]
    assert note["averaged"]["share"] == 0.25 and note["from"]["plan"]["world"] == [24, 4, 1e-2]
    assert samples_path(mean).read_bytes() == b"observations"
    other = HarmoWam(SMALL)
    save_checkpoint(tmp_path / "other.safetensors", other, drawn.cameras, drawn.instructions, {})
    said = CliRunner().invoke(main, ["average", str(start), str(tmp_path / "other.safetensors"), "--out", str(mean)])
    assert said.exit_code == 2 and "other.safetensors was not fine-tuned from" in said.stderr


def test_a_part_that_was_never_trained_needs_steps_or_a_checkpoint(drawn, tmp_path):
    with pytest.raises(CheckpointError, match="leaves its part untrained"):
        train(drawn, tmp_path, tmp_path / "m.safetensors", dataclasses.replace(PLAN, world=(0, 4, 1e-2)), SMALL)
    with pytest.raises(CheckpointError, match="another configuration"):
        train(drawn, tmp_path, tmp_path / "m.safetensors", PLAN, Config(), start=_checkpoint_of(drawn, tmp_path))


def _checkpoint_of(drawn, folder):
    path = folder / "other.safetensors"
    save_checkpoint(path, HarmoWam(SMALL), drawn.cameras, drawn.task_instructions, {})
    return path
