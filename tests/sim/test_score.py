"""The judgement of episodes whose outcome is known: the scripted expert's, and things moved by hand."""

import dataclasses

import numpy as np
import pytest

from sim.expert import Follower, Segment, joints_for, plan
from sim.phases import LOW_M, NEAR_M, WINDOW_S, find_events, interaction
from sim.score import Score
from sim.tasks import INSTRUCTIONS, sample_layout
from sim.true_future import copy_state, next_event_s, remaining
from sim.world import World

FRAME_S = 0.04


@pytest.fixture(scope="module")
def world():
    w = World(0)
    yield w
    w.close()


def play(world, segments, after=0.0, meddle=None):
    """Follow `segments` without noise; returns the score, and (seconds, oracle's choice, segment's number) of every
    frame."""
    score, frames, ended = Score(world), [], ""
    follower = Follower(world, segments, np.random.default_rng(0), noise_m=0.0)
    done, left, now = False, after, 1_000_000_000
    while not ended and (not done or left > 0):
        for _ in range(2):
            target, done = follower.step(FRAME_S / 2)
            world.set_goals(joints_for(target))
            world.advance(FRAME_S / 2)
        left -= FRAME_S if done else 0.0
        now += round(FRAME_S * 1e9)
        if meddle is not None:
            meddle(world, (now - 1_000_000_000) / 1e9)
        ended = score.watch(now)
        frames.append((now / 1e9 - 1, score.near, follower.index))
    return score, frames, ended


def start(world, task, seed=3, instruction=None):
    world.reset(sample_layout(np.random.default_rng(seed), instruction, task))
    return plan(world, np.random.default_rng(1))


@pytest.mark.parametrize("task", ["plate", "stack", "ring", "press"])
def test_what_the_expert_does_is_transit_and_interaction(world, task):
    segments = start(world, task)
    score, frames, ended = play(world, segments, after=0.4)
    assert world.success() and ended == "" and score.reached == [True, True] and score.transit(True) and not score.wrong
    at_contact = [near for _, near, i in frames if segments[min(i, len(segments) - 1)].event]
    assert all(at_contact[:-2])  # the oracle chooses interaction wherever the jaw moves
    assert not frames[2][1]


def test_an_arm_that_waits_is_stuck_and_never_got_to_the_item(world):
    start(world, "plate")
    score, frames, ended = play(world, [Segment(world.pose, 4.0, 0.0)])
    assert ended == "stuck" and frames[-1][0] < 3.5
    assert score.failure(ended) == "never got to the item" and not score.transit(False)


def test_closing_beside_the_item_is_a_failed_grasp(world):
    segments = start(world, "plate")
    beside = [dataclasses.replace(s, goal=s.goal + np.array([0, 0.022, 0.03, 0, 0, 0])) for s in segments[:4]]
    score, _, ended = play(world, beside)
    assert score.reached[0] and score.transit(False) and score.failure(ended) == "grasped nothing"


def test_an_item_that_slips_on_the_way_counts_as_interaction(world):
    segments = start(world, "plate")
    lift = segments[3].goal
    opened = [*lift[:5], 0.6]
    score, _, ended = play(world, [*segments[:4], Segment(np.array(opened), 0.6, 0.0, event=True)])
    assert score.dropped and score.transit(False) and score.failure(ended) == "dropped on the way"


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ("put the red cube on the plate", "put the blue cube on the plate"),
        ("stack the red cube on the blue cube", "stack the blue cube on the red cube"),  # the cube on which it belongs
    ],
)
def test_taking_the_other_cube_differs_from_missing(world, asked, taken):
    start(world, INSTRUCTIONS[asked], instruction=asked)
    layout = world.layout
    world.layout = dataclasses.replace(layout, instruction=taken)
    segments = plan(world, np.random.default_rng(1))
    world.layout = layout
    score, _, ended = play(world, segments[:4])
    assert score.failure(ended) == "took the wrong item" and not score.transit(False)


def test_a_wrong_button_and_a_lost_item_end_the_episode(world):
    segments = start(world, "press")
    score, _, ended = play(world, segments[3:6])  # the second button first
    assert ended == "wrong button" and score.failure(ended) == "took the wrong button"

    def push(w, t):
        if t > 0.5:
            w.data.qpos[w.free_joint(w.layout.roles[0])] = 0.5

    score, _, ended = play(world, start(world, "peg"), meddle=push)
    assert ended == "out of reach" and score.failure(ended) == "pushed out of reach"


@pytest.mark.parametrize(
    ("known", "ended", "told"),
    [
        ({}, "", "never got to the item"),
        ({"reached": [True, False]}, "", "got to the item but grasped nothing"),
        ({"reached": [True, False], "furthest": 1}, "", "took the item but never got to its goal"),
        ({"reached": [True, True], "furthest": 1, "held": True}, "", "took the item to its goal but never let go"),
        ({"reached": [True, True], "furthest": 1}, "", "placed the item badly"),
        ({"dropped": True}, "", "dropped the item on the way"),
        ({"wrong": True}, "", "took the wrong item"),
        ({}, "out of reach", "pushed an object out of its reach"),
        ({"press": True, "reached": [True, True]}, "", "got to the button but did not press it far enough"),
        ({"press": True}, "", "never got to the button"),
        ({"press": True, "wrong": True}, "wrong button", "pressed the wrong button"),
    ],
)
def test_a_failure_is_described_by_what_the_arm_did(world, known, ended, told):
    start(world, "plate")
    score = Score(world)
    for name, value in known.items():
        setattr(score, name, value)
    assert score.told(ended) == told


def test_the_phase_rule_has_the_configurations_numbers():
    from export.config import Config

    cfg = Config()
    assert (cfg.gate_window_s, cfg.gate_height_m, cfg.gate_radius_m) == (WINDOW_S, LOW_M, NEAR_M)


def test_low_or_about_to_act_or_above_the_next_event_is_interaction():
    rate = 20.0
    lengths = (90, 60)
    n = sum(lengths)
    last = np.repeat(np.cumsum(lengths) - 1, lengths).astype(np.int32)
    pose = np.tile(np.array([0.2, 0, 0.08, 1.4, 0, 0.6]), (n, 1))
    pose[:, 0] = 0.1 + 0.0021 * np.arange(n)  # 4.2 cm/s
    pose[70:75, 2] = 0.06
    target = pose.copy()
    target[40:, 5] = 0.05  # shuts at row 40, and never again
    events = find_events(pose, target, last, rate)
    assert events.tolist() == [40]
    said = np.flatnonzero(interaction(pose, events, last, rate))
    before, after = 40 - 14, 40 + 7  # before the event: within 3 cm, which is more than 0.35 s; after it: 0.35 s
    assert said.tolist() == [*range(before, after + 1), *range(70, 75)]
    assert np.flatnonzero(interaction(pose, events, last, rate, near_m=0.0)).tolist() == [
        *range(33, 48),
        *range(70, 75),
    ]
    lone = np.array([85], np.int32)  # no label extends into the next episode
    assert interaction(pose, lone, last, rate)[[89, 90]].tolist() == [True, False]


def test_the_true_future_starts_from_the_present(world):
    replica = World(1)
    segments = start(world, "plate")
    assert next_event_s(remaining_of(replica, world)) == pytest.approx(
        segments[0].seconds + segments[1].seconds, abs=0.4
    )
    play(world, segments[:4])
    copy_state(replica, world)
    apart = replica.render("front").astype(int) - world.render("front")  # the world renders the state of 2 ms ago
    assert (np.abs(apart) > 20).mean() < 0.002 and np.array_equal(replica._goal, world._goal)
    rest = remaining(replica)  # the item is held: over the plate, down, open
    assert rest[2].event and rest[2].goal[5] > 0.5
    replica.close()


@pytest.mark.parametrize("lit", [0, 1, 2])
def test_the_true_future_of_buttons_is_what_is_left_to_press(world, lit):
    replica = World(1)
    start(world, "press")
    roles = world.layout.roles
    world.pressed = list(roles[:lit])
    rest = remaining_of(replica, world)
    pressed = [s.goal[:2] for s in rest if s.goal[2] < 0.03]
    assert np.allclose(
        np.reshape(pressed, (-1, 2)), [world.layout.places[r][:2] for r in roles[lit:]] or np.zeros((0, 2))
    )
    follower = Follower(replica, rest, np.random.default_rng(0), noise_m=0.0)
    assert np.isfinite(follower.step(0.02)[0]).all() and next_event_s(rest) > 0.5
    replica.close()


def remaining_of(replica, world):
    copy_state(replica, world)
    return remaining(replica)
