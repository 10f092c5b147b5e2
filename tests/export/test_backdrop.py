"""Other table tops under demonstrations: only the table changes, and both views show the same table."""

import dataclasses

import numpy as np
import pytest

from export.backdrop import (
    CELL,
    CLEAR,
    LOW,
    Prism,
    draw_foreign,
    draw_table,
    empty_table,
    stand,
    with_other_tables,
    wrist_pose,
)
from export.config import Config
from export.data import load_demonstrations
from export.labels import wrist_mount
from export.lerobot import DataError
from export.rows import digest_of
from sim.tasks import sample_layout
from sim.world import World


@pytest.fixture(scope="module")
def data(dataset):
    return load_demonstrations(dataset)


@pytest.fixture(scope="module")
def other(data):
    return with_other_tables(data, 1.0, 0, Config())


def test_the_table_changes_and_what_stands_on_it_does_not(data, other):
    shown = np.flatnonzero(~data.play)[::15]
    for view in ("front", "wrist"):
        before, after = getattr(data, view)[shown].astype(float), getattr(other, view)[shown].astype(float)
        empty = empty_table(getattr(data, view)[~data.play])
        off = np.abs(before - empty).max(1)
        table, thing = off < 8, off > 60
        assert 0.5 < table.mean() < 0.95 and thing.mean() > 0.02
        assert np.median(np.abs(after - before).max(1)[table]) > 15
        # Things keep their colour except for the light, which is one factor per picture and channel.
        for b, a, mask in zip(before, after, thing, strict=True):
            bright = mask & (b.min(0) > 20) & (b.max(0) < 200)
            ratio = a[:, bright] / b[:, bright]
            assert ratio.std(1).max() < 0.05


def test_play_and_labels_stay_and_nothing_given_is_written_to(data, other):
    assert np.array_equal(other.front[data.play], data.front[data.play])
    assert np.array_equal(other.wrist[data.play], data.wrist[data.play])
    assert other.pose is data.pose and other.target is data.target and other.instructions is data.instructions
    again = with_other_tables(data, 1.0, 0, Config())
    assert np.array_equal(again.wrist, other.wrist)
    assert with_other_tables(data, 0.0, 0, Config()) is data
    # the digest tells the two apart, so that encoded rows of one are not used for the other
    assert digest_of(other) != digest_of(data)


def test_a_front_camera_without_a_pose_is_refused_in_one_sentence(data):
    nowhere = {**data.cameras, "front": dataclasses.replace(data.cameras["front"], T_base_from_cam=None)}
    with pytest.raises(DataError, match="calibrate it hand-eye"):
        with_other_tables(dataclasses.replace(data, cameras=nowhere), 0.5, 0, Config())


def test_the_share_is_kept(data):
    some = with_other_tables(data, 0.5, 1, Config())
    changed = [
        e
        for e in np.unique(data.episode)
        if not np.array_equal(some.front[data.episode == e], data.front[data.episode == e])
    ]
    assert 0 < len(changed) < len(np.unique(data.episode[~data.play]))


def test_the_wrist_camera_is_where_the_simulated_one_is():
    world = World(0)
    for seed in range(5):
        world.reset(sample_layout(np.random.default_rng(seed), task="plate"))
        camera = world.data.camera("wrist")
        for known in (world.camera("wrist"), dataclasses.replace(world.camera("wrist"), T_tool_from_cam=None)):
            T = wrist_pose(world.pose, wrist_mount(known, Config()))
            assert np.allclose(T[:3, 3], camera.xpos, atol=0.002)
            assert np.allclose(T[:3, :3], camera.xmat.reshape(3, 3) @ np.diag([1, -1, -1]), atol=0.02)
    world.close()


def test_clutter_keeps_away_from_where_the_gripper_acts():
    spot = np.array([[0.2, 0.0]])
    row, column = np.round((spot[0] - LOW) / CELL).astype(int)
    everywhere = spot + 0.01 * np.stack(np.meshgrid(range(-20, 21), range(-20, 21)), -1).reshape(-1, 2)
    for seed in range(30):
        bare = draw_table(np.random.default_rng(seed), everywhere)
        top = draw_table(np.random.default_rng(seed), spot)
        around = np.s_[row - 4 : row + 5, column - 4 : column + 5]
        assert np.array_equal(top[around], bare[around])


def test_foreign_things_keep_clear_too_and_most_tables_have_some():
    spot = np.array([[0.2, 0.0]])
    drawn = [draw_foreign(np.random.default_rng(seed), spot) for seed in range(60)]
    assert sum(len(d) > 0 for d in drawn) > 45 and max(map(len, drawn)) >= 7
    for prism in (p for d in drawn for p in d):
        assert np.hypot(*(prism.foot.mean(0) - spot[0])) > CLEAR - 1e-9
        assert 0.008 <= prism.height <= 0.05 and np.ptp(prism.foot, axis=0).max() < 0.041


def test_a_foreign_thing_stands_where_a_simulated_one_of_its_size_does():
    """Compares a painted box with the simulator's own block of clutter (18 x 18 x 50 mm), seen by its cameras."""
    world = World(0)
    for seed, yaw in ((0, 0.3), (1, 1.1)):
        layout = sample_layout(np.random.default_rng(seed), task="ring")
        bare = dataclasses.replace(layout.look, clutter=())
        x, y = layout.start[0], layout.start[1] + 0.06
        pictures = []
        for look in (bare, dataclasses.replace(bare, clutter=((7, x, y, yaw),))):
            world.reset(dataclasses.replace(layout, look=look))
            pictures.append({view: world.render(view).astype(int) for view in ("front", "wrist")})
        c, s = np.cos(yaw), np.sin(yaw)
        foot = [x, y] + 0.009 * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) @ np.array([[c, s], [-s, c]])
        prism = Prism(foot, 0.05, (250, 250, 250))
        front, wrist = world.camera("front"), world.camera("wrist")
        assert front.T_base_from_cam is not None
        on_arm = wrist_pose(world.pose, wrist_mount(wrist, Config()))
        for camera, T in ((front, front.T_base_from_cam), (wrist, on_arm)):
            there = np.abs(pictures[1][camera.name] - pictures[0][camera.name]).max(-1) > 12
            painted = stand(np.zeros((240, 320, 3), np.uint8), [prism], camera.K, T).max(-1) > 100
            assert there.sum() > 60
            assert (there & painted).sum() > 0.85 * (there | painted).sum()
    world.close()


def test_the_nearer_of_two_things_hides_the_farther(data):
    camera = data.cameras["front"]
    x, y, _ = camera.T_base_from_cam[:3, 3]
    square = 0.01 * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    far, near = (
        Prism(square + np.array([at, 0.0]), 0.04, colour) for at, colour in ((0.20, (0, 250, 0)), (0.26, (250, 0, 0)))
    )
    assert np.hypot(0.26 - x, y) < np.hypot(0.20 - x, y)  # the front camera looks back at the arm
    blank = np.zeros((camera.height, camera.width, 3), np.uint8)
    assert camera.T_base_from_cam is not None
    both = stand(blank.copy(), [near, far], camera.K, camera.T_base_from_cam)
    alone = stand(blank.copy(), [near], camera.K, camera.T_base_from_cam)
    assert np.array_equal(both[..., 0], alone[..., 0]) and (both[..., 1] > 100).any()
    assert not both[alone[..., 0] == 250][:, 1].any()
