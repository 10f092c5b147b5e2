"""A recipe trains a checkpoint with one command: an interrupted run resumes, and finished stages are not trained
again."""

import dataclasses
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import export.recipe_file
from export.checkpoint import CheckpointError, load_checkpoint
from export.recipe_file import Recipe, RecipeError, Step, follow, pack, read_recipe, snapshot, unpack
from export.schedule import learning_rate
from export.train import Plan, Trainer, train
from harmowam.cli import main
from tests.training import SMALL, save_always

pytestmark = pytest.mark.usefixtures("one_thread", "often_saved")

SHIPPED = Path(export.recipe_file.__file__).parent / "recipes/so101.toml"
MODEL = {
    k: getattr(SMALL, k)
    for k in ("encoder_channels", "unet_channels", "width", "layers", "token_channels", "condition")
}
LINE = (1e-2, 1e-3)
RECIPE = Recipe(
    seed=3,
    data={"episodes": 1, "play": 2, "seed": 0},
    model=MODEL,
    stages=(
        Step("tokeniser", "tokeniser", 8, 4, LINE, 1.0),
        Step("world-1", "world", 12, 4, LINE, 1.0),
        Step("world-2", "world", 4, 4, LINE, 1.0),
        Step("experts", "experts", 4, 4, LINE, 1.0),
    ),
)


@pytest.fixture(scope="module")
def often_saved():
    with pytest.MonkeyPatch.context() as patch:
        save_always(patch)
        yield


@pytest.fixture(scope="module")
def whole(drawn, one_thread, often_saved, tmp_path_factory):
    """Folder of an uninterrupted run, and the stages that it packed."""
    run = tmp_path_factory.mktemp("whole")
    follow(RECIPE, drawn, run, run / "packed")
    return run


def same(a, b):
    x, y = load_file(a), load_file(b)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def killed_at(monkeypatch, stage, step):
    """Training ends like a killed process at the `step`-th loss of `stage`."""
    usual, left = getattr(Trainer, f"_{stage}_loss"), [step]

    def loss(self, rng, batch):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return usual(self, rng, batch)

    monkeypatch.setattr(Trainer, f"_{stage}_loss", loss)


def test_every_stage_trains_its_part_and_starts_from_the_stage_before(whole):
    names = ["beginning", *(s.name for s in RECIPE.stages)]
    before, moved = load_file(whole / "beginning.safetensors"), []
    for name in names[1:]:
        after = load_file(whole / f"{name}.safetensors")
        moved.append({k.split(".")[0] for k in after if not torch.equal(before[k], after[k])})
        before = after
    assert moved == [{"tokeniser"}, {"world"}, {"world"}, {"predictive", "reactive", "gate", "world"}]
    note = load_checkpoint(whole / "experts.safetensors")[3]
    assert note["stage"] == {
        "recipe": RECIPE.digest(RECIPE.stages[3]),
        "name": "experts",
        "done": 4,
        "of": 4,
        "seed": 3,
    }
    assert note["losses"]["predictive"] > 0 and note["from"]["stage"]["name"] == "world-2"


@pytest.mark.parametrize(("stage", "step"), [("tokeniser", 9), ("world", 11), ("world", 27), ("experts", 0)])
def test_a_kill_anywhere_costs_no_stage_and_changes_nothing(drawn, whole, tmp_path, monkeypatch, stage, step):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, stage, step)
        follow(RECIPE, drawn, tmp_path)
    ended = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    follow(RECIPE, drawn, tmp_path)
    assert same(tmp_path / "experts.safetensors", whole / "experts.safetensors")
    assert all(p.stat().st_mtime_ns == at for p, at in ended.items())


def test_all_stages_use_the_first_choice_of_bf16(drawn, tmp_path, monkeypatch):
    answers = iter([False, *[True] * 9])
    monkeypatch.setattr("export.loop.rounds_bf16", lambda device: next(answers))
    follow(RECIPE, drawn, tmp_path)
    notes = [load_checkpoint(tmp_path / f"{s.name}.safetensors")[3] for s in RECIPE.stages]
    assert [n["bf16"] for n in notes] == [False] * 4


def test_packed_stages_replace_their_training(drawn, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("export.recipe_file.train", None)  # nothing may be trained
    assert same(follow(RECIPE, drawn, tmp_path, whole / "packed"), whole / "experts.safetensors")


def test_an_unfinished_stage_continues_elsewhere_with_its_learning_rate(drawn, tmp_path, monkeypatch):
    here, there, packed = (tmp_path / n for n in ("here", "there", "packed"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_at(patch, "world", 17)  # two shards per step: in the ninth step, after the state of the eighth
        follow(RECIPE, drawn, here, packed)
    assert snapshot(RECIPE, here, packed) == (RECIPE.stages[1], 8)
    weights, about = unpack(packed / "world-1.safetensors")
    assert about["done"] == 8 and about["of"] == 12
    before = load_file(here / "tokeniser.safetensors")["world.text.weight"].float()
    # weights of size 1: one step moves them by the learning rate at most
    assert 0 < (weights["world.text.weight"] - before).abs().max() < 8 * LINE[0]

    plans: list[tuple[Plan, Path]] = []

    def noted(*args):
        plans.append((args[3], args[6]))
        return train(*args)

    monkeypatch.setattr("export.recipe_file.train", noted)
    follow(RECIPE, drawn, there, packed)
    plan, start = plans[0]
    rate = LINE[0] + (LINE[1] - LINE[0]) * 8 / 12
    assert (
        plan.world[:2] == (4, 4) and plan.world[2] == pytest.approx(rate) and plan.end == pytest.approx(LINE[1] / rate)
    )
    begun = load_file(start)
    assert all(torch.equal(begun[k].float(), v) for k, v in weights.items())
    assert unpack(packed / "world-1.safetensors")[1]["done"] == 12  # the finished stage was packed in its place


def test_stages_draw_different_batches_and_tables():
    one, two = RECIPE.stages[1:3]
    seeds = {one.plan(3, 1).seed, one.plan(3, 1, 4).seed, two.plan(3, 2).seed, one.plan(4, 1).seed}
    assert len(seeds) == 4 and one.plan(3, 1) == one.plan(3, 1)


def test_a_straight_learning_rate_that_is_cut_continues_straight():
    whole = [learning_rate(i, 1000, 1e-3, 0.1) for i in range(1000)]
    rest = [learning_rate(i, 600, whole[400], 1e-4 / whole[400]) for i in range(600)]
    assert rest[100:] == pytest.approx(whole[500:])
    assert learning_rate(0, 1000, 1e-3, 0.1) == 1e-5  # both start with a warm-up


def test_packing_loses_nothing_of_half_precision_and_damage_is_reported(tmp_path):
    weights = {
        "a.weight": torch.randn(300, 7),
        "a.bias": torch.tensor([0.0, -0.0, 65504.0, 6e-8]),
        "b": torch.tensor(2.0),
    }
    path = tmp_path / "one.safetensors"
    pack(path, weights, {"name": "one"})
    back, about = unpack(path)
    assert about == {"name": "one"} and back.keys() == weights.keys()
    assert all(torch.equal(back[k], v.half().float()) for k, v in weights.items())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        unpack(path)


def test_stages_of_another_recipe_or_model_are_refused(drawn, whole, tmp_path):
    other = dataclasses.replace(RECIPE, data={**RECIPE.data, "play": 3})
    with pytest.raises(CheckpointError, match="another recipe"):
        follow(other, drawn, tmp_path / "data", whole / "packed")
    wider = dataclasses.replace(RECIPE, model={**RECIPE.model, "condition": 48})
    with pytest.raises(CheckpointError, match=r"world-1.*does not fit the recipe's model"):
        follow(wider, drawn, tmp_path / "model", whole / "packed")
    with pytest.raises(CheckpointError, match="no stage that is half done"):
        snapshot(RECIPE, whole, tmp_path)


def test_later_stages_may_change_and_earlier_weights_stay_good():
    changed = dataclasses.replace(RECIPE, stages=(*RECIPE.stages[:3], dataclasses.replace(RECIPE.stages[3], steps=6)))
    same_digest = [RECIPE.digest(a) == changed.digest(b) for a, b in zip(RECIPE.stages, changed.stages, strict=True)]
    assert same_digest == [True, True, True, False]


def test_the_shipped_recipe_takes_ten_hours_in_stages_of_limited_time():
    recipe = read_recipe(SHIPPED)
    assert all(s.minutes <= 150 for s in recipe.stages)
    assert sum(s.minutes for s in recipe.stages) <= 570  # and 30 minutes for the data


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('part = "tokeniser"', 'part = "gate"', "of tokeniser, world, experts at least one each"),
        ('name = "world-2"', 'name = "world-1"', "give each another name"),
        ("steps = 6000", "steps = 0", "give it steps"),
        ("rate = [8e-4, 2e-5]", "rate = [8e-4]", "not understood"),
        ("[model]", "[model]\nwidths = 1", "not understood.*widths"),
        ("seed = 0", "seed = ", "not understood"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path, old, new, said):
    path = tmp_path / "r.toml"
    text = SHIPPED.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(RecipeError, match=said):
        read_recipe(path)
    with pytest.raises(RecipeError, match="does not exist"):
        read_recipe(tmp_path / "none.toml")


def test_one_command_follows_a_recipe_from_a_dataset_to_a_checkpoint(dataset, tmp_path):
    recipe = tmp_path / "tiny.toml"
    model = "\n".join(f"{k} = {list(v) if isinstance(v, tuple) else v}" for k, v in MODEL.items())
    stages = "\n".join(
        f'[[stage]]\nname = "{p}"\npart = "{p}"\nsteps = 2\nbatch = 4\nrate = [1e-3, 1e-4]\nminutes = 0.1'
        for p in ("tokeniser", "world", "experts")
    )
    recipe.write_text(f"seed = 0\n[data]\nepisodes = 1\nplay = 2\nseed = 0\n[model]\n{model}\n{stages}\n")
    call = ["train", "--recipe", str(recipe), "--dataset", str(dataset), "--run", str(tmp_path / "run")]
    written = (dataset / "meta/info.json").stat().st_mtime_ns
    done = CliRunner().invoke(main, call)
    assert done.exit_code == 0, done.output
    out = tmp_path / "run/harmowam-so101.safetensors"
    assert load_checkpoint(out)[3]["stage"]["name"] == "experts" and out.with_suffix(".samples.npz").is_file()
    assert (dataset / "meta/info.json").stat().st_mtime_ns == written  # a complete dataset is read, not collected
    for extra, said in ((["--tables", "0.5"], "means nothing with --recipe"), (["--snapshot"], "add --stages")):
        refused = CliRunner().invoke(main, [*call, *extra])
        assert refused.exit_code == 2 and said in refused.stderr
    refused = CliRunner().invoke(main, ["train", "--snapshot"])
    assert refused.exit_code == 2 and "means nothing without --recipe" in refused.stderr
