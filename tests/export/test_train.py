"""The inputs of training: labels in hindsight, datasets and checkpoints."""

import dataclasses

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from calibration.camera import policy_camera
from export.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from export.config import Config
from export.data import Demonstrations, load_demonstrations, record_episode, simulated_warps
from export.labels import Labels, contact_cell, hindsight
from export.lerobot import DataError
from export.losses import bin_loss
from export.models import HarmoWam
from export.text import ngrams
from export.train import Trainer, normalise, train
from firmware_bridge.arms.so101 import FAMILY as so101
from harmowam.cli import main
from sim.phases import find_events
from sim.tasks import INSTRUCTIONS, sample_layout
from sim.world import World
from tests.dataset import camera
from tests.training import PLAN, SMALL


@pytest.fixture(scope="module")
def data(dataset):
    return load_demonstrations(dataset)


def test_labels_are_made_in_hindsight(data):
    labels = Labels(data, Config())
    first = data.events[0]
    assert np.all(data.next_event[:first] == first)
    assert np.all(labels.gate[first - 3 : first + 4] == 1)
    assert labels.chunk.shape == (len(data.pose), 16, 6)
    inside = (labels.cell >= -1) & (labels.cell <= 48)
    assert inside.all()  # every grasp, release and rest pose is in the training camera's picture


def test_events_are_found_in_what_the_arm_did(data):
    """A pick-and-place task has a grasp and a release (and first an opening, after a miss). Two buttons are two
    touches, or one where the first was already lit."""
    for episode, text in enumerate(data.instructions):
        rows = np.flatnonzero(data.episode == episode)
        events = data.events[(data.events >= rows[0]) & (data.events <= rows[-1])]
        if data.play[rows[0]]:
            assert text.startswith(("take the ", "touch the ", "put the ", "drop the "))
            continue
        jaw = data.target[events, 5] > 0.3
        if text.startswith("press"):
            assert len(events) in (1, 2) and not jaw.any() and (data.pose[events, 2] < 0.03).all()
        else:
            assert list(jaw[-2:]) == [False, True] and len(events) in (2, 3)


def test_a_half_pressed_row_is_one_touch_and_a_dark_one_two():
    world = World(0)
    layout = sample_layout(np.random.default_rng(5), task="press")
    for pressed, touches in ((layout.roles[:1], 1), ((), 2)):
        start = dataclasses.replace(layout, pressed=pressed)
        episode, success = record_episode(world, simulated_warps(world), np.random.default_rng(5), start, 20.0)
        pose = np.array([so101.forward(q) for q in episode.state])
        target = np.array([so101.forward(q) for q in episode.action])
        assert success and len(find_events(pose, target, np.full(len(pose), len(pose) - 1), 20.0)) == touches
    world.close()


def test_play_gets_the_instruction_that_it_fulfilled(data):
    """For an episode of play: the instruction that it began to follow, and whether it followed all of it."""
    told = {
        "drop the ring onto the post": ("ring", ("hang the ring on the post", True)),
        "drop the red cube onto the plate": ("plate", ("put the red cube on the plate", True)),
        "drop the red cube onto the blue cube": ("plate", ("put the red cube on the plate", False)),
        "put the peg to the left of the block": ("peg", ("put the peg into the hole", False)),
        "take the bar away": ("slot", ("lay the bar into the tray", False)),
        "touch the red button": ("press", ("press the red button and then the green button", False)),
        "touch the red button and then the green button": (
            "press",
            ("press the red button and then the green button", True),
        ),
        "touch the red button and then the blue button": (
            "press",
            ("press the red button and then the green button", False),
        ),
        "touch the plate": ("plate", ("", False)),
        "hang the ring on the post": ("ring", ("", False)),
        "pick": ("plate", ("", False)),  # a task name of another dataset
        "": ("plate", ("", False)),
    }
    scenes = [scene for scene, _ in told.values()]
    texts, throughout = hindsight(dataclasses.replace(data, instructions=list(told), scenes=scenes))
    assert list(zip(texts, throughout, strict=True)) == [answer for _, answer in told.values()]


def test_play_carries_no_task_and_tasks_carry_no_play(data):
    assert set(data.task_instructions) <= set(INSTRUCTIONS) and len(data.task_instructions) == 6
    assert 0 < data.play.sum() < len(data.play)


def test_checkpoints_survive_a_round_trip_and_damage_is_reported(data, tmp_path):
    trainer = Trainer(data, tmp_path, PLAN, SMALL)
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, trainer.model, data.cameras, data.instructions, {"why": "test"})
    model, cameras, instructions, note = load_checkpoint(path)
    assert note == {"why": "test"} and set(cameras) == {"front", "wrist"} and instructions == sorted(data.instructions)
    stored, trained = model.state_dict(), trainer.model.state_dict()
    assert all(torch.equal(stored[k], trained[k]) for k in trained)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "none")


def test_datasets_that_are_absent_or_of_another_rate_are_refused(dataset, tmp_path):
    with pytest.raises(DataError, match="harmowam collect"):
        load_demonstrations(tmp_path)
    with pytest.raises(DataError, match="rows/s"):
        load_demonstrations(dataset, rate_hz=10.0)


def test_play_alone_is_refused_before_training(data, tmp_path):
    alone = dataclasses.replace(data, play=np.ones_like(data.play))
    with pytest.raises(DataError, match="only play: collect some with --episodes"):
        train(alone, tmp_path / "run", tmp_path / "out.safetensors")


def played(text, scene, jaw=0.05, play=True, grip=0.36):
    """One episode of 40 rows on the table of `scene`: down at row 20, up from row 26, the jaw shut from row 20 on and
    stopped at `grip`."""
    n = 40
    pose = np.tile(np.array([0.2, 0.0, 0.09, 1.4, 0.0, 0.6], np.float32), (n, 1))
    pose[14:26, 2] = 0.02
    target = pose.copy()
    target[20:, 5] = jaw
    pose[22:, 5] = grip
    following = np.where(np.arange(n) < 20, 20, n - 1).astype(np.int32)
    pictures = np.zeros((n, 3, 96, 96), np.uint8)
    rows = np.zeros(n, np.int32)
    joints = np.zeros((n, 6), np.float32)
    return Demonstrations(
        pictures,
        pictures,
        pose,
        target,
        following,
        np.array([20], np.int32),
        rows,
        np.full(n, n - 1),
        [text],
        [scene],
        np.full(n, play),
        {n: camera(n) for n in ("front", "wrist")},
        20.0,
        joints,
        joints,
    )


def test_play_that_a_task_could_have_asked_for_teaches_contacts_up_to_the_lift():
    data = played("take the red cube away", "plate")
    data.pose[:21, 0] += 0.01 * np.arange(20, -1, -1)  # the tool comes from the side
    labels = Labels(data, Config())
    rows = np.flatnonzero(labels.skilled)
    assert rows.min() == 14 - 1 and rows.max() == 25  # the gate's window, to the row before the tool has risen
    assert labels.taught[13].sum() == 13 and labels.taught[25].sum() == 1  # steps of the chunk up to there
    asked = ngrams("put the red cube on the plate", 512)
    assert np.array_equal(labels.said[0], asked) and not np.array_equal(labels.text[0], asked)
    assert np.array_equal(labels.said[30], labels.text[30])  # no task asks for what followed


def test_a_grasp_of_nothing_teaches_no_lift():
    labels = Labels(played("take the red cube away", "plate", grip=0.05), Config())
    assert np.flatnonzero(labels.skilled).max() == 19 and not labels.holds.any()


def test_a_thing_put_where_a_task_wants_it_is_an_example_to_the_end_if_it_got_there():
    for text, kept, last in (
        ("drop the red cube onto the plate", True, 35),
        # the thing was lost on the way: an example up to the lift only
        ("drop the red cube onto the plate", False, 25),
        ("drop the red cube onto the blue cube", True, 25),
    ):
        data = played(text, "plate")
        data.pose[30:36, 2], data.target[32:, 5] = 0.02, 0.6
        if not kept:
            data.pose[29:, 5] = 0.05
        following = np.select([np.arange(40) < 20, np.arange(40) < 32], [20, 32], 39).astype(np.int32)
        labels = Labels(dataclasses.replace(data, events=np.array([20, 32], np.int32), next_event=following), Config())
        assert np.flatnonzero(labels.skilled).max() == last
        assert labels.turns[20:32].any()  # the picture shows where the thing goes, and its heading


def test_two_buttons_touched_in_an_order_that_a_task_asks_for_are_an_example_up_to_the_second():
    for text, last in (
        ("touch the red button and then the green button", 33),
        ("touch the red button and then the blue button", 25),
    ):
        data = played(text, "press", grip=0.05)
        data.target[:, 5] = 0.05
        data.pose[28:34, 2] = 0.02
        events = np.array([20, 30], np.int32)
        following = np.select([np.arange(40) < 20, np.arange(40) < 30], [20, 30], 39).astype(np.int32)
        labels = Labels(dataclasses.replace(data, events=events, next_event=following), Config())
        assert np.flatnonzero(labels.skilled).max() == last
        assert (
            labels.ambiguous[:20].all()
            and labels.ambiguous[20:30].all() == (last == 33)
            and not labels.ambiguous[30:].any()
        )


def test_the_opening_of_the_jaw_on_a_thing_is_varied():
    """Rows in which the jaw has come to rest on something, and only these, are also shown with a wider or narrower
    thing."""
    data = played("take the red cube away", "plate")
    trained = Labels(data, Config())
    assert np.flatnonzero(trained.holds).tolist() == list(range(26, 40))
    assert not Labels(played("touch the red button", "press", grip=0.05), Config()).holds.any()


def test_a_held_thing_is_felt_as_if_it_were_wider_or_narrower(data, tmp_path):
    trainer = Trainer(data, tmp_path, PLAN, SMALL)
    held = np.flatnonzero(trainer.labels.holds)
    free = np.flatnonzero(~trainer.labels.holds)
    off = [
        (trainer._felt(r, np.random.default_rng(0)) - trainer._state(r)).numpy() * trainer.model.proprio_std.numpy()
        for r in (held, free)
    ]
    assert 0.05 < abs(off[0][:, 3]).max() < 0.1 and abs(off[1][:, 3]).max() < 0.05  # rad; 0.06 and a little noise
    # A jaw that closed on nothing stands at 0.05 rad. A ring (0.14 rad) felt like that would be opened again and
    # dropped.
    assert data.pose[held, 5].min() < 0.15 and (data.pose[held, 5] + off[0][:, 3]).min() > 0.08


def test_the_gate_is_not_trained_where_nothing_shows_a_contact():
    """Above a thing that play will take, the gate should say interaction. Above a bare place where play will let go, it
    cannot know."""
    data = played("take the red cube away", "plate")
    data.pose[:, 2] = 0.08
    let_go = np.array([20, 39], np.int32)
    data = dataclasses.replace(data, events=let_go, next_event=let_go[(np.arange(40) >= 20).astype(int)])
    labels = Labels(data, Config())
    assert labels.gate.all() and labels.gate_told[:21].all()
    hidden = np.flatnonzero(~labels.gate_told)
    assert hidden.tolist() == [28, 29, 30, 31]  # neither grasp nor release is near in time


def test_other_play_teaches_no_contacts():
    for text, scene in (("touch the plate", "plate"), ("take the red cube away", "")):
        labels = Labels(played(text, scene), Config())
        assert not labels.skilled.any() and np.array_equal(labels.said, labels.text)
    assert Labels(played("put the red cube on the plate", "plate", play=False), Config()).skilled.all()


def test_turns_are_trained_where_the_picture_shows_them():
    """Bins of the turn from the present heading to the heading at the contact; not where play touches, or lets go with
    an arbitrary heading."""
    cfg = Config()
    data = played("take the red cube away", "plate")
    data.pose[:21, 4] = np.linspace(-0.4, 0.2, 21)
    labels = Labels(data, cfg)
    width = 2 * cfg.heading_range / cfg.headings
    middle = cfg.headings / 2 - 0.5  # no turn is between the two middle bins
    assert labels.turn[10] - middle == pytest.approx((data.pose[20, 4] - data.pose[10, 4]) / width, abs=1e-4)
    assert labels.turns[15] and not labels.turns[20:].any()
    assert not Labels(played("touch the plate", "plate"), cfg).turns.any()


def test_a_bin_loss_is_least_where_the_bin_is():
    at = torch.tensor([3.0, 7.4])
    losses = torch.stack([bin_loss(10.0 * torch.eye(12)[[k, k]], at) for k in range(12)])
    assert losses.argmin(0).tolist() == [3, 7]


def test_actions_are_normalised_by_rows_near_a_contact(data):
    labels = Labels(data, Config())
    model = HarmoWam(SMALL)
    normalise(model, data, labels)
    near = ~data.play & (labels.gate > 0.5)
    assert np.allclose(model.action_std[7, 1:3], labels.chunk[near][:, 7, 1:3].std(0), rtol=0.01)
    assert (model.action_std[7, 1:3] < torch.from_numpy(labels.chunk[~data.play][:, 7, 1:3].std(0))).all()


def test_the_contact_map_is_where_the_simulated_wrist_camera_sees_the_next_event():
    """Compares the place by a hand-eye calibration, or by `Config.wrist_mount`, with MuJoCo's own camera: the tool's
    centre of one pose, seen from another. A camera with another mount sees it elsewhere."""
    world = World(0)
    world.reset(sample_layout(np.random.default_rng(3), task="plate"))
    camera = policy_camera(world.camera("wrist"))
    pose = so101.forward(world.q)
    event = pose + np.array([0.012, -0.02, -0.05, 0.05, 0.3, 0.0])
    mounted = world.data.camera("wrist")
    point = mounted.xmat.reshape(3, 3).T @ (event[:3] - mounted.xpos) * [1, -1, -1]
    world.close()
    cfg = Config()
    small = camera.scaled(cfg.contact_map, cfg.contact_map)
    wanted = small.K[:2, :2].diagonal() * point[:2] / point[2] + small.K[:2, 2]
    for known in (camera, dataclasses.replace(camera, T_tool_from_cam=None)):
        cell, inside = contact_cell(pose[None], event[None], known, cfg)
        assert inside.all() and np.allclose(cell[0], wanted, atol=0.05)
    aside = np.eye(4)
    aside[0, 3] = 0.01  # m to the camera's right: the thing in its picture moves left
    assert camera.T_tool_from_cam is not None
    moved = dataclasses.replace(camera, T_tool_from_cam=camera.T_tool_from_cam @ aside)
    cell, _ = contact_cell(pose[None], event[None], moved, cfg)
    assert np.allclose(cell[0] - wanted, [-0.01 * small.K[0, 0] / point[2], 0], atol=0.05)


def test_collected_rows_can_be_labelled_as_they_are(tmp_path):
    out = tmp_path / "data"
    said = CliRunner().invoke(main, ["collect", "--out", str(out), "--episodes", "0", "--play", "1", "--rate", "25"])
    assert said.exit_code == 0, said.output
    assert load_demonstrations(out, rate_hz=25.0).rate_hz == 25.0
    again = CliRunner().invoke(main, ["collect", "--out", str(out), "--episodes", "0", "--play", "1"])
    assert again.exit_code == 2 and "was begun with rate_hz 25.0: repeat that" in again.output
