"""Distillation: one step of the student ends where many steps of the teacher end; resumable like any training."""

import pytest
import torch
from safetensors.torch import load_file

from export.checkpoint import load_checkpoint, save_checkpoint
from export.distill import Distiller, DistilPlan, distil, shifted_time
from export.labels import Labels
from export.models import HarmoWam
from export.onnx import engines
from export.train import Plan, train
from tests.training import SMALL, save_always

pytestmark = pytest.mark.usefixtures("one_thread")
PLAN = DistilPlan(world=(60, 8, 2e-3), shift=(6, 4, 1e-3), predictive=(10, 4, 1e-3), action_steps=2)


@pytest.fixture(scope="module")
def teacher(drawn, one_thread, tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher")
    plan = Plan(tokeniser=(20, 8, 3e-3), world=(150, 8, 3e-3), experts=(10, 4, 1e-3))
    train(drawn, run, run / "t.safetensors", plan, SMALL)
    return run / "t.safetensors"


@pytest.fixture(scope="module")
def student(drawn, teacher, tmp_path_factory):
    run = tmp_path_factory.mktemp("student")
    return run / "s.safetensors", distil(teacher, drawn, run, run / "s.safetensors", PLAN)


def test_the_student_ends_nearer_to_the_teacher_than_the_teachers_weights_in_one_step(student):
    world = student[1]["distance"]["world"]
    assert world["student_to_teacher"] < 0.8 * world["control_to_teacher"]


def test_the_students_note_names_its_steps_and_its_teacher(student, teacher):
    model, _, instructions, note = load_checkpoint(student[0])
    old, _, same, _ = load_checkpoint(teacher)
    assert (model.cfg.world_steps, model.cfg.action_steps) == (1, 2) and instructions == same
    assert engines(model)["world_model"][0].steps == 1 and engines(model)["predictive"][0].steps == 2
    assert note["teacher"]["world_steps"] == old.cfg.world_steps and len(note["teacher"]["sha256"]) == 64
    # Only the world model and the predictive expert are trained; the parts that others build on stay.
    changed = {k.partition(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, old.state_dict()[k])}
    assert changed == {"world", "predictive"}


def test_without_the_shifted_stage_the_teachers_own_expert_is_the_target(drawn, tmp_path):
    save_checkpoint(tmp_path / "t.safetensors", HarmoWam(SMALL), drawn.cameras, drawn.instructions, {})
    plan = DistilPlan(world=(0, 4, 1e-2), shift=(0, 4, 1e-2), predictive=(2, 4, 1e-2), teacher_steps=2)
    done = distil(tmp_path / "t.safetensors", drawn, tmp_path / "run", tmp_path / "s.safetensors", plan)
    assert (tmp_path / "s.safetensors").is_file() and done["distance"]["predictive"]["student_to_teacher"] >= 0


class Killed(Exception):
    pass


def test_a_distillation_that_was_killed_ends_like_an_uninterrupted_one(drawn, tmp_path, monkeypatch):
    save_always(monkeypatch)
    plan = DistilPlan(world=(6, 4, 1e-2), shift=(6, 4, 1e-2), predictive=(6, 4, 1e-2), teacher_steps=2)
    teacher = tmp_path / "t.safetensors"  # its quality does not matter here
    save_checkpoint(teacher, HarmoWam(SMALL), drawn.cameras, drawn.instructions, {})
    distil(teacher, drawn, tmp_path / "whole", tmp_path / "whole.safetensors", plan)
    model = load_checkpoint(teacher)[0]
    for stage in ("world", "predictive"):
        distiller = Distiller(drawn, tmp_path / "broken", plan, model, Labels(drawn, SMALL))
        loss = getattr(distiller, f"_{stage}_loss")

        def dies(rng, batch, loss=loss, distiller=distiller):
            if distiller.step == 5:
                raise Killed
            return loss(rng, batch)

        monkeypatch.setattr(distiller, f"_{stage}_loss", dies)
        with pytest.raises(Killed):
            distiller.train()
    distil(teacher, drawn, tmp_path / "broken", tmp_path / "broken.safetensors", plan)
    one, other = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "broken.safetensors")
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_shifted_time_is_concentrated_near_the_noise():
    uniform = torch.linspace(0, 1, 101)
    assert torch.allclose(shifted_time(uniform, 1.0), 1 - uniform)
    assert float(shifted_time(uniform, 4.0)[50]) == pytest.approx(0.2)  # the median is at 80 % noise
    assert float(shifted_time(uniform, 4.0)[0]) == 1 and float(shifted_time(uniform, 4.0)[100]) == 0
