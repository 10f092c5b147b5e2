"""Six tasks in four environments: their layouts, what counts as success, and that the scripted expert solves them."""

import dataclasses
import math

import numpy as np
import pytest

from sim.expert import Follower, joints_for, plan, plan_play
from sim.tasks import ENVIRONMENTS, INSTRUCTIONS, PAN_X, REACH, SEEN, TASKS, UNSEEN, Layout, sample_layout
from sim.world import World

START = np.array([0.17, 0.0, 0.12, 1.4, 0.0])


@pytest.fixture(scope="module")
def world():
    w = World(0)
    yield w
    w.close()


def solve(world: World, layout: Layout, rng: np.random.Generator, noise: float = 0.0) -> bool:
    world.reset(layout)
    follower = Follower(world, plan(world, rng), rng, noise)
    done = success = False
    while not done:
        target, done = follower.step(0.02)
        world.set_goals(joints_for(target))
        world.advance(0.02)
        success |= world.success()
    return success


@pytest.mark.parametrize("task", TASKS)
def test_the_scripted_expert_solves_at_least_95_percent(world, task):
    """Ten starts in each environment."""
    wins = 0
    for environment in ENVIRONMENTS:
        for seed in range(10):
            rng = np.random.default_rng([seed, 99])
            wins += solve(world, sample_layout(rng, task=task, environment=environment), rng)
    assert wins >= 38


def inside(place, region):
    return region[0][0] <= place[0] <= region[1][0] and region[0][1] <= place[1] <= region[1][1]


@pytest.mark.parametrize("task", [t for t in TASKS if t != "press"])
def test_demonstrations_never_show_what_the_position_environment_asks_for(task):
    for seed in range(50):
        seen = sample_layout(np.random.default_rng(seed), task=task)
        new = sample_layout(np.random.default_rng(seed), task=task, environment="position")
        assert all(inside(p, SEEN) for p in seen.places.values())
        assert inside(new.places[new.roles[0]], UNSEEN)
        for layout in (seen, new):
            props = {p.name: p.room for p in TASKS[task].props}
            for a, pa in layout.places.items():
                assert math.hypot(pa[0] - PAN_X, pa[1]) < REACH
                for b, pb in layout.places.items():
                    assert a == b or math.hypot(pa[0] - pb[0], pa[1] - pb[1]) > props[a] + props[b]


def test_environments_change_what_they_say_and_nothing_else():
    for task in TASKS:
        a, b, c = (
            sample_layout(np.random.default_rng(4), task=task, environment=e) for e in ("seen", "background", "object")
        )
        assert a.places == b.places == c.places and a.instruction == b.instruction == c.instruction
        assert 5 <= len(b.look.clutter) <= 8 and not a.look.clutter and b.look.table.startswith("test")
        assert a.look == c.look


@pytest.mark.parametrize("task", TASKS)
def test_unseen_objects_look_and_behave_like_other_objects(world, task):
    layout = sample_layout(np.random.default_rng(2), task=task)
    pictures = []
    for environment in ("seen", "object", "seen"):
        world.reset(dataclasses.replace(layout, environment=environment))
        pictures.append(world.render("front").astype(int))
    changed = (np.abs(pictures[0] - pictures[1]).max(-1) > 40).mean()
    assert changed > 0.002 and np.array_equal(pictures[0], pictures[2])


def put(world: World, task: str, instruction: str, moved: dict[str, tuple[float, float, float]]) -> bool:
    """Whether physics judges success after things are put there by hand (centre [x, y, z]) and left alone for 0.4 s."""
    places = {p.name: (0.18 + 0.03 * (i % 2), -0.11 + 0.08 * i, 0.0) for i, p in enumerate(TASKS[task].props)}
    world.reset(Layout(task, instruction, places, START))
    for name, xyz in moved.items():
        at = world.free_joint(name)
        assert at is not None
        world.data.qpos[at : at + 3] = xyz
    world.advance(0.4)
    return world.success()


# task, instruction, what is put where (relative to the goal's place), and whether that is success
CASES = [
    ("plate", "put the blue cube on the plate", "blue_cube", "plate", (0.0, 0.01, 0.018), True),
    ("plate", "put the red cube on the plate", "blue_cube", "plate", (0.0, 0.01, 0.018), False),  # the other cube
    ("plate", "put the blue cube on the plate", "blue_cube", "plate", (0.06, 0.0, 0.013), False),  # beside it
    ("stack", "stack the red cube on the blue cube", "red_cube", "blue_cube", (0.003, 0.003, 0.038), True),
    ("stack", "stack the red cube on the blue cube", "red_cube", "blue_cube", (0.009, 0.0, 0.038), False),  # askew
    (
        "stack",
        "stack the blue cube on the red cube",
        "red_cube",
        "blue_cube",
        (0.003, 0.003, 0.038),
        False,
    ),  # upside down
    ("peg", "put the peg into the hole", "peg", "block", (0.002, 0.0, 0.030), True),
    ("peg", "put the peg into the hole", "peg", "block", (0.020, 0.0, 0.052), False),  # stands on the rim, or falls
    ("slot", "lay the bar into the tray", "bar", "tray", (0.0, 0.003, 0.012), True),
    ("slot", "lay the bar into the tray", "bar", "tray", (0.0, 0.016, 0.020), False),  # across the wall
    ("ring", "hang the ring on the post", "ring", "post", (0.004, 0.0, 0.020), True),
    ("ring", "hang the ring on the post", "ring", "post", (0.045, 0.0, 0.007), False),  # beside the post
]


@pytest.mark.parametrize(("task", "instruction", "item", "goal", "offset", "done"), CASES)
def test_success_is_judged_by_where_things_are(world, task, instruction, item, goal, offset, done):
    i = [p.name for p in TASKS[task].props].index(goal)
    base = np.array([0.18 + 0.03 * (i % 2), -0.11 + 0.08 * i, 0.0])
    assert put(world, task, instruction, {item: base + offset}) is done


def test_buttons_must_be_pressed_in_order(world):
    layout = sample_layout(np.random.default_rng(1), "press the red button and then the green button")
    for order, done in (
        (("red", "green"), True),
        (("green", "red"), False),
        (("red", "blue"), False),
        (("red",), False),
    ):
        world.reset(layout)
        for colour in order:
            world.data.joint(f"{colour}_button").qpos[0] = -0.006  # a finger presses from above
            world.advance(0.01)
        assert world.success() is done


def plays(world, count):
    """Layout, segments and text of `count` episodes of play."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        layout = sample_layout(rng, environment="play")
        world.reset(layout)
        yield layout, *plan_play(world, rng)


def test_play_says_in_hindsight_what_it_did_and_never_a_task(world):
    for _, segments, text in plays(world, 20):
        assert segments and text not in INSTRUCTIONS
        assert text.startswith(("take the ", "touch the ")) or " of the " in text or " onto the " in text


def test_play_puts_things_next_to_others_and_clear_of_them(world):
    sides = set()
    for layout, segments, text in plays(world, 150):
        if " of the " not in text:
            continue
        side, other = text.split(" to the ")[1].split(" of the ")
        low = next(s.goal for s in segments if s.event and s.goal[5] > 0.3 and s.goal[2] < 0.06)
        x, y, _ = layout.places[other.replace(" ", "_")]
        assert abs(low[0] - x) < 1e-4 and (low[1] > y) == (side == "left")
        assert abs(low[1] - y) > 0.06 and math.hypot(low[0] - PAN_X, low[1]) < REACH
        sides.add(side)
    assert sides == {"left", "right"}


def test_play_puts_things_onto_others_where_a_task_does_but_for_a_few_millimetres(world):
    """The tool stands beside the goal by the offset of the held thing, 34.5 mm for a ring. A policy that learns other
    offsets in play places between the two."""
    off, tasks = [], set()
    for layout, segments, text in plays(world, 150):
        if " onto the " not in text:
            continue
        low = [s.goal for s in segments if s.event and s.goal[5] > 0.3][-1]
        x, y, _ = layout.places[text.split(" onto the ")[1].replace(" ", "_")]
        away = TASKS[layout.task].place_offset
        left = math.atan2(low[1], low[0] - PAN_X) - low[4] + math.pi / 2
        off.append(low[:2] - (x + away * math.cos(left), y + away * math.sin(left)))
        tasks.add(layout.task)
    spread = np.std(off, 0)
    assert len(off) > 20 and tasks == set(TASKS) - {"press"}
    assert (np.abs(np.mean(off, 0)) < 0.002).all() and (spread > 0.001).all() and (spread < 0.006).all()


def test_a_row_of_buttons_can_be_found_half_pressed(world):
    """The first button is lit from the start, the expert presses only the second, and that is success. The next start
    has no lit button."""
    rng = np.random.default_rng(9)
    layout = sample_layout(rng, task="press")
    world.reset(layout)
    dark = world.render("front").astype(int)
    half = dataclasses.replace(layout, pressed=layout.roles[:1])
    world.reset(half)
    assert not world.success() and (np.abs(world.render("front") - dark).max(-1) > 60).sum() > 20
    assert len([s for s in plan(world, rng) if s.precise]) == 1
    assert solve(world, half, rng)
    world.reset(layout)
    assert world.pressed == [] and np.array_equal(world.render("front"), dark)


def test_play_paints_things_in_any_colour_but_the_one_they_are_called_by(world):
    caps, bases = [], []
    for seed in range(50):
        world.reset(sample_layout(np.random.default_rng([seed, 2]), task="press", environment="play"))
        m = world.model
        caps.append([m.geom(f"{c}_cap").rgba[:3].argmax() for c in ("red", "green", "blue")])
        bases.append(m.geom("red_base").rgba[:3].copy())
    assert np.array_equal(caps, [[0, 1, 2]] * 50)
    assert (np.min(bases, 0) < 0.2).all() and (np.max(bases, 0) > 0.7).all()


@pytest.mark.parametrize("task", [t for t in TASKS if t != "press"])
def test_nothing_is_in_the_jaws_way_where_the_expert_lets_go(world, task):
    """Otherwise demonstrations would show a jaw that was commanded open and did not move, and a policy would wait for
    it."""
    for seed in range(4):
        rng = np.random.default_rng([seed, 97])
        world.reset(sample_layout(rng, task=task))
        follower = Follower(world, plan(world, rng), rng, 0.0)
        release = max(i for i, s in enumerate(follower.segments) if s.event)
        while follower.index <= release:
            world.set_goals(joints_for(follower.step(0.02)[0]))
            world.advance(0.02)
        assert world.pose[5] > 0.55


def test_a_descent_begins_turned_and_ends_as_the_thing_lies(world):
    """Demonstrations must show how a heading is corrected, because transit leaves an error of 10 to 30 degrees."""
    entry = []
    for seed in range(12):
        rng = np.random.default_rng([seed, 96])
        world.reset(sample_layout(rng, task="slot"))
        hover, down = plan(world, rng)[:2]
        x, y, _ = world.position("bar")
        across = world.yaw("bar") - math.atan2(y, x - PAN_X)
        assert abs(down.goal[4] + across) < 1e-6
        entry.append(hover.goal[4] - down.goal[4])
    assert 0.08 < np.std(entry) < 0.25


def test_play_never_looks_the_same_and_leaves_nothing_behind(world):
    """Shapes, colours and table top of an episode of play do not remain in the next episode."""
    plain = sample_layout(np.random.default_rng(5), task="stack")
    world.reset(plain)
    before = world.render("front").copy()
    seen = []
    for seed in range(6):
        layout = sample_layout(np.random.default_rng([seed, 1]), task="stack", environment="play")
        world.reset(dataclasses.replace(layout, look=dataclasses.replace(layout.look, table="drawn")))
        seen.append(world.render("front").astype(int))
    assert all(np.abs(a - b).mean() > 4 for i, a in enumerate(seen) for b in seen[:i])
    world.reset(plain)
    assert np.array_equal(world.render("front"), before)
