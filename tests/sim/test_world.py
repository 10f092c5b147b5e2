"""The simulated robot behaves like the one it stands for, and the task is solved by physics, not by script."""

import numpy as np
import pytest

from sim.expert import Follower, joints_for, plan_pick_place
from sim.world import INSTRUCTIONS, LATENCY_TICKS, SERVO_DT, SERVO_SPEED, STEP_RAD, Layout, World, sample_layout


@pytest.fixture(scope="module")
def world():
    w = World(0)
    yield w
    w.close()


def solve(world, seed, noise):
    rng = np.random.default_rng(seed)
    world.reset(sample_layout(rng))
    follower = Follower(world, plan_pick_place(world, rng), rng, noise)
    done = success = False
    while not done:
        target, _, done = follower.step(0.02)
        world.set_goals(joints_for(target))
        world.advance(0.02)
        success |= world.success()
    return success


def test_scripted_expert_solves_at_least_95_percent(world):
    assert sum(solve(world, s, 0.0) for s in range(1000, 1060)) >= 57


def test_success_needs_the_named_cube_released_on_the_plate(world):
    layout = Layout(
        ((0.20, 0.05, 0.0), (0.20, -0.05, 0.0)),
        (0.20, 0.05),
        "put the blue cube on the plate",
        np.array([0.17, 0, 0.09, 1.4, 0]),
    )
    world.reset(layout)
    assert not world.success()  # the red cube stands where the plate is; blue was asked for
    world.reset(Layout(layout.cubes, (0.20, -0.05), layout.instruction, layout.start))
    world.advance(0.3)
    assert world.success()


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
    steps = world.measured / STEP_RAD
    assert np.allclose(steps, np.round(steps), atol=1e-9)


def test_an_episode_is_a_function_of_its_seed():
    ends = []
    for _ in range(2):
        w = World(5)
        solve(w, 5, 0.008)
        ends.append(np.concatenate([w.q, w.cube("red_cube"), w.render("front").ravel()[::97]]))
        w.close()
    assert np.array_equal(*ends)


def test_cameras_see_where_they_say_they_look(world):
    """The named cube's colour stands at the pixel that the calibration projects it to."""
    world.reset(sample_layout(np.random.default_rng(11)))
    picture = world.render("front").astype(int)
    for name, channel in (("red_cube", 0), ("blue_cube", 2)):
        u, v = np.round(world.camera("front").project(world.cube(name))).astype(int)
        pixel = picture[v, u]
        assert pixel[channel] == pixel.max() and pixel[channel] > 2 * np.sort(pixel)[1]


def test_instructions_are_distinct_and_name_a_cube():
    assert set(INSTRUCTIONS.values()) == {"red_cube", "blue_cube"}
