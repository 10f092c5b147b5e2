"""The simulated robot behaves like the real robot that it models."""

import numpy as np
import pytest

from firmware_bridge.servos.sts3215 import RAD_PER_STEP
from sim.expert import Follower, joints_for, plan
from sim.tasks import sample_layout
from sim.world import LATENCY_TICKS, SERVO_DT, SERVO_SPEED, World


@pytest.fixture(scope="module")
def world():
    w = World(0)
    yield w
    w.close()


def test_servos_have_latency_speed_and_resolution(world):
    world.reset(sample_layout(np.random.default_rng(3)))
    start = world.q
    goal = start.copy()
    goal[0] += 1.0
    world.set_goals(goal)
    world.advance(LATENCY_TICKS * SERVO_DT)
    assert abs(world.q[0] - start[0]) < 0.005
    world.advance(0.1)
    assert world.q[0] - start[0] < SERVO_SPEED * 0.1
    world.advance(1.0)
    assert abs(world.q[0] - goal[0]) < 0.02
    steps = world.measured / RAD_PER_STEP
    assert np.allclose(steps, np.round(steps), atol=1e-9)


def test_an_episode_is_a_function_of_its_seed_whatever_was_played_before():
    ends = []
    for before in ((), ("press", "ring")):
        w = World(5)
        for task in before:
            w.reset(sample_layout(np.random.default_rng(0), task=task, environment="background"))
            w.advance(0.1)
        rng = np.random.default_rng(5)
        w.reset(sample_layout(rng, task="plate"))
        follower = Follower(w, plan(w, rng), rng, 0.008)
        for _ in range(150):
            w.set_goals(joints_for(follower.step(0.02)[0]))
            w.advance(0.02)
        ends.append(np.concatenate([w.q, w.position("red_cube"), w.render("front").ravel()[::97]]))
        w.close()
    assert np.array_equal(*ends)


def test_cameras_see_where_they_say_they_look(world):
    """The named cube's colour is at the pixel to which the calibration projects the cube."""
    world.reset(sample_layout(np.random.default_rng(11), task="stack"))
    picture = world.render("front").astype(int)
    for name, channel in (("red_cube", 0), ("blue_cube", 2)):
        u, v = np.round(world.camera("front").project(world.position(name))).astype(int)
        pixel = picture[v, u]
        assert pixel[channel] == pixel.max() and pixel[channel] > 2 * np.sort(pixel)[1]


def test_pictures_can_be_made_elsewhere_from_what_is_visible(world):
    """The camera process has its own copy of the scene and gets only `visible`: it must render the same picture, with
    lit buttons."""
    rng = np.random.default_rng(1)
    layout = sample_layout(rng, task="press")
    world.reset(layout)
    follower = Follower(world, plan(world, rng), rng, 0.0)
    while not world.pressed:
        world.set_goals(joints_for(follower.step(0.02)[0]))
        world.advance(0.02)
    other = World(layout=layout)
    there, here = other.render_visible(world.visible)["front"].astype(int), world.render("front").astype(int)
    # Physics renders the kinematics at the start of its last sub-step: edges of moving things may differ, a lamp may
    # not.
    assert (np.abs(there - here).max(-1) > 30).mean() < 0.001
    other.close()


def test_what_lies_below_the_floor_is_not_drawn_and_missing_from_no_picture(world):
    """Foreign things that an environment does not put onto the table are parked below the floor."""
    world.reset(sample_layout(np.random.default_rng(4), task="peg"))
    pictures = [world.render(camera).copy() for camera in ("front", "wrist")]
    drawn = world.scene.renderer.scene.ngeom
    parked = [g for geoms in world.scene.foreign for g in geoms]
    world.model.geom_rgba[parked, 3] = 1.0
    assert all(np.array_equal(a, world.render(c)) for a, c in zip(pictures, ("front", "wrist"), strict=True))
    assert len(parked) == 8 and world.scene.renderer.scene.ngeom == drawn + 8
