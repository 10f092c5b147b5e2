"""A policy's own word that it is done: when it counts, and what follows."""

import math
import threading

import numpy as np
import pytest

from calibration.camera import Camera
from runtime.bundle import Bundle
from runtime.contracts import Observation, Prior
from runtime.loop.record import RunRecord
from runtime.loop.slow import SlowLoop
from runtime.policies import open_policy
from runtime.policies.finish import Finish, finish_of
from tests.rig import START
from tests.tiny import FRONT, TASK, WRIST, tiny_bundle

MS = 1_000_000
NEXT = "put the blue cube on the plate"


def said(t_ms, done):
    nothing = np.zeros(0, np.float32)
    return Prior(t_ms * MS, t_ms * MS, TASK, nothing, nothing, nothing, nothing, done=done)


def test_a_policy_is_done_when_it_has_said_so_for_long_enough():
    finish = Finish(0.9, 0.5)
    heard = [finish.told(said(125 * k, p)) for k, p in enumerate([0.2, 0.95, 0.99, 0.97, 0.93, 0.96, 0.91])]
    assert heard == [False] * 5 + [True, True]  # 0.5 s after the first yes


def test_one_doubt_begins_the_time_anew():
    finish = Finish(0.9, 0.25)
    for doubt in (0.9, math.nan):
        finish.reset()
        heard = [finish.told(said(125 * k, p)) for k, p in enumerate([0.95, 0.95, doubt, 0.95, 0.95, 0.95])]
        assert heard == [False] * 5 + [True]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("done"), done=0.95))


def loop_of(bundle, then):
    cameras = {"front": Camera.from_json(FRONT), "wrist": Camera.from_json(WRIST)}
    slow = open_policy(bundle, TASK, cameras).slow
    return SlowLoop(slow, 8.0, RunRecord(), threading.Event(), finish_of(bundle), then)


def observed(t_ms):
    frames = {name: np.zeros((96, 96, 3), np.uint8) for name in ("front", "wrist")}
    return Observation(t_ms * MS, frames, np.array(START, np.float32), np.zeros(6, np.float32), t_ms)


def test_the_next_task_begins_when_the_policy_says_done_and_the_run_ends_after_the_last(bundle):
    loop = loop_of(bundle, [NEXT])
    tasks = []
    for k in range(20):
        loop._make(observed(1000 + 125 * k))
        tasks.append(loop.prior.task)
        if loop._stop.is_set():
            break
    assert tasks == [TASK] * 6 + [NEXT] * 6  # 0.6 s each
    assert loop.said_done and not loop.then


def test_a_policy_that_never_says_done_goes_on(tmp_path):
    silent = Bundle.load(tiny_bundle(tmp_path))
    assert finish_of(silent) is None
    loop = loop_of(silent, [])
    for k in range(20):
        loop._make(observed(1000 + 125 * k))
    assert math.isnan(loop.prior.done) and not loop.said_done and not loop._stop.is_set()
