"""Any bundle's policy is opened in one place; a kind is one file. The toy kind here is added as a user would add
one."""

import gc
import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import runtime.policies
from calibration.camera import Camera
from harmowam.cli import main
from runtime.bundle import Bundle, BundleError
from runtime.policies import PolicyError, kind_of, mode_of, open_policy
from sim import evaluate
from tests.rig import START, undo_real_time
from tests.tiny import CHUNK_INPUTS, FRONT, TASK, WRIST, edit_manifest, tiny_bundle, tiny_chunk_bundle

CAMERAS = {"front": Camera.from_json(FRONT), "wrist": Camera.from_json(WRIST)}
STAY = np.tile(np.array(START), (8, 1))

TOY = '''
"""Nods: the engine says by how much (rad), every plan goes there and back."""

import numpy as np

from runtime.contracts import Prior
from runtime.policies import chunk
from runtime.policies.protocol import Kind


class SlowStep(chunk.SlowStep):
    def step(self, now_ns, obs):
        prior = super().step(now_ns, obs)
        prior.chunk[:] = obs.q_rad
        prior.chunk[:4, 3] += 0.1
        return prior


def steps(bundle, opening):
    slow = SlowStep(bundle, opening.task, opening.cameras, opening.threads, opening.slow_trace, engine=opening.engine)
    return slow, chunk.FastStep(bundle, opening.fast_trace)


def wrong(manifest):
    return "" if manifest.chunk.steps == 8 else "'chunk' of 8 steps"


KIND = Kind(("nodding",), ("chunk",), chunk.KIND.stages, wrong, steps, chunk.KIND.feeds)
'''


def renamed(bundle, **policy):
    edit_manifest(bundle, lambda m: m.update(policy=policy))
    return bundle


def test_a_bundle_that_names_no_kind_is_harmowam(tmp_path):
    path = tiny_bundle(tmp_path)
    edit_manifest(path, lambda m: m.pop("policy"))
    policy = open_policy(Bundle.load(path), TASK, CAMERAS)
    assert (policy.kind, policy.mode, policy.fast.uses_pictures) == ("harmowam", "gated", True)


@pytest.mark.parametrize("name", ["vla", "decode", "__init__", "os"])
def test_an_unknown_kind_is_refused_and_nothing_else_of_that_name_is_loaded(tmp_path, name):
    path = renamed(tiny_bundle(tmp_path), kind=name)
    with pytest.raises(
        PolicyError,
        match=f"holds a policy of kind '{name}', this version drives chunk, diffusion, harmowam: name another",
    ):
        kind_of(Bundle.load(path))
    for verb in (["run"], ["profile"], ["evaluate", "--task", "plate"]):
        said = CliRunner().invoke(main, [*verb, "--bundle", str(path)])
        assert said.exit_code == 2 and f"of kind '{name}'" in said.stderr and said.stderr.count("\n") == 1


def test_a_kind_whose_file_cannot_be_loaded_is_named_and_keeps_no_other_from_running(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    monkeypatch.setattr(runtime.policies, "__path__", [*runtime.policies.__path__, str(tmp_path)])
    bundle = tiny_bundle(tmp_path / "bundle")
    assert kind_of(Bundle.load(bundle)).modes[0] == "gated"
    with pytest.raises(PolicyError, match=r"runtime/policies/broken.py cannot be loaded \(ModuleNotFoundError: No mod"):
        kind_of(Bundle.load(renamed(bundle, kind="broken")))
    with pytest.raises(PolicyError, match="this version drives chunk, diffusion, harmowam: name another"):
        kind_of(Bundle.load(renamed(bundle, kind="vla")))


@pytest.mark.parametrize("policy", [3, {"kind": 3}, {"kind": ""}, {"kind": "../harmowam"}, {"name": "chunk"}])
def test_a_policy_that_is_no_table_with_a_kind_is_a_damaged_bundle(tmp_path, policy):
    path = tiny_bundle(tmp_path)
    edit_manifest(path, lambda m: m.update(policy=policy))
    with pytest.raises(BundleError, match=r"manifest.json is damaged .'policy"):
        Bundle.load(path)


def test_a_bundle_without_what_its_kind_needs_is_refused_by_name(tmp_path):
    chunks = renamed(tiny_chunk_bundle(tmp_path / "a", STAY), kind="harmowam")
    with pytest.raises(PolicyError, match=r"lacks what a policy of kind 'harmowam' needs \(engine 'world_model'\)"):
        open_policy(Bundle.load(chunks), TASK, CAMERAS)
    with pytest.raises(PolicyError, match=r"needs \('chunk' of two steps or more"):
        kind_of(Bundle.load(tiny_chunk_bundle(tmp_path / "b", STAY[:1])))
    with pytest.raises(PolicyError, match=r"\(engine 'chunk' with the input 'wrist', which is no camera"):
        kind_of(Bundle.load(tiny_chunk_bundle(tmp_path / "c", STAY, cameras={"front": FRONT})))
    with pytest.raises(PolicyError, match="a state of 6 joints"):
        kind_of(Bundle.load(tiny_chunk_bundle(tmp_path / "d", STAY, inputs={**CHUNK_INPUTS, "state": [1, 5]})))


def test_a_mode_that_a_kind_has_not_is_refused(tmp_path):
    bundle = Bundle.load(tiny_chunk_bundle(tmp_path, STAY))
    assert mode_of(bundle, None) == "chunk"
    with pytest.raises(
        PolicyError, match="a policy of kind 'chunk' does not drive 'reactive': use chunk, or leave --policy out"
    ):
        open_policy(bundle, TASK, CAMERAS, mode="reactive")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A bundle of a kind whose file lies in the folder of the others."""
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(runtime.policies, "__path__", [*runtime.policies.__path__, str(tmp_path)])
    yield renamed(tiny_chunk_bundle(tmp_path / "bundle", STAY), kind="toy")
    sys.modules.pop("runtime.policies.toy", None)


def remade(harmowam, folder):
    """The page that `harmowam report` makes of a recorded run."""
    (folder / "report.html").unlink()
    harmowam("report", folder)
    return (folder / "report.html").read_text()


@pytest.mark.wall_clock
def test_a_kind_that_a_user_added_runs_and_is_profiled_replayed_and_evaluated(toy, bench, tmp_path, monkeypatch):
    def harmowam(*args):
        gc.collect()
        gc.freeze()  # as in tests/rig.py: the loop's own collection would stop these servos, too
        done = CliRunner().invoke(main, [str(a) for a in args])
        assert done.exit_code == 0, done.output
        return done.output

    on_the_bench = ("--bundle", toy, "--robot", bench.robot_file, "--task", TASK, "--seconds", 1.5)
    harmowam("run", *on_the_bench, "--json", tmp_path / "r.json", "--record", tmp_path / "rec")
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["kind"], report["policy"], report["engine"]) == ("toy", "nodding", "onnxruntime")
    assert report["commanded"] and set(report["stages"]) >= {"slow.chunk", "fast.handover", "fast.slot"}
    for page in (tmp_path / "rec" / "report.html").read_text(), remade(harmowam, tmp_path / "rec"):
        assert "What happened when" in page and "what the world model predicted" not in page
    assert "identical, bit for bit" in harmowam("replay", tmp_path / "rec")
    assert "slow.chunk" in harmowam("profile", *on_the_bench, "--inject", "slow.chunk=5")
    undo_real_time()
    monkeypatch.setattr(evaluate, "LIMIT_S", 0.5)
    (job,) = evaluate.jobs_for(toy, ["nodding"], ["seen"], [TASK], [0])
    row = evaluate.run_job(job)
    assert row["policy"] == "nodding" and not row["success"] and row["ended"] == "time"
