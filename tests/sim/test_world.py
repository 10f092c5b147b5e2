"""The simulated robot behaves like the real robot that it models."""

import dataclasses

import numpy as np
import pytest

from firmware_bridge.servos.sts3215 import RAD_PER_STEP
from sim.disturbance import displace
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


def test_a_displaced_thing_is_seen_elsewhere_too(world):
    """Free or fixed: the camera process shows it where it was moved to."""
    layout = sample_layout(np.random.default_rng(1), task="plate")
    world.reset(layout)
    other = World(layout=layout)
    for name in ("plate", layout.roles[0]):
        displace(world, world.data, name, world.position(name)[:2] + np.array([0.0, 0.05]))
        world.advance(0.1)
        other.show(world.visible)
        assert np.allclose(other.position(name), world.position(name), atol=1e-6)
    there, here = other.render("front").astype(int), world.render("front").astype(int)
    assert (np.abs(there - here).max(-1) > 30).mean() < 0.001
    other.close()


class AllDrawn:
    """In place of `sim.in_view.InView`: hides nothing."""

    def update(self, renderer, data, camera):
        renderer.update_scene(data, camera)


def test_what_no_camera_sees_is_not_drawn_and_missing_from_no_picture(world, monkeypatch):
    """Things that are parked below the floor, geoms beside the view, and the floor where the table covers it: not where
    the wrist's camera looks past the table's edge."""
    floor = [world.scene.model.geom("floor").id]
    floors, drawn = [], []
    for start in ([0.17, 0.0, 0.09, 1.4, 0.0], [0.25, 0.1, 0.2, -0.4, 0.3], [0.2, -0.1, 0.05, 1.5, 1.0]):
        layout = sample_layout(np.random.default_rng(4), task="peg", environment="background")
        world.reset(dataclasses.replace(layout, start=np.array(start)))
        scene = world.scene
        for camera in ("front", "wrist"):
            picture = world.render(camera).copy()
            drawn.append(scene.renderer.scene.ngeom)
            floors.append(bool(scene.in_view.visible(world.data, world.model.camera(camera).id)[floor]))
            with monkeypatch.context() as m:
                m.setattr(scene, "in_view", AllDrawn())
                world.model.geom_rgba[[g for geoms in scene.foreign for g in geoms], 3] = 1.0
                assert np.array_equal(picture, world.render(camera))
            assert drawn[-1] < scene.renderer.scene.ngeom
    assert not any(floors[0::2]) and sorted(floors[1::2]) == [False, False, True]
