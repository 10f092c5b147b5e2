"""A run without a clock, recorded: the real steps on pictures of noise."""

import dataclasses
import threading
import time

import numpy as np

from calibration.camera import Camera
from runtime.cameras.frames import Frame
from runtime.contracts import Observation
from runtime.loop.health import Health
from runtime.loop.record import RunRecord
from runtime.loop.slow import SlowLoop
from runtime.observe.log import LogWriter
from runtime.observe.replay import run_meta
from runtime.policies import open_policy
from runtime.policies.finish import finish_of
from runtime.policies.history import History
from tests.rig import START
from tests.tiny import FRONT, TASK, WRIST

MS = 1_000_000


def record(path, bundle, ticks=40, reset_at=25, dropped=0, then=()):
    """A run without a clock: pictures with noise, a Prior every six ticks; with `then`, tasks that follow."""
    cameras = {"front": Camera.from_json(FRONT), "wrist": Camera.from_json(WRIST)}
    policy = open_policy(bundle, TASK, cameras)
    slow, fast, history = policy.slow, policy.fast, History(policy.slow.history_ns)
    log = LogWriter(path, run_meta(bundle, TASK, policy.mode, cameras, then=list(then)), reserve_bytes=0)
    loop = SlowLoop(slow, 8.0, RunRecord(), threading.Event(), finish_of(bundle), then)
    loop.record.log = log
    rng, prior = np.random.default_rng(0), None
    for k in range(ticks):
        t = 1_000 * MS + k * 20 * MS
        frames = {n: rng.integers(0, 255, (96, 96, 3)).astype(np.uint8) for n in cameras}
        q = (np.array(START) + rng.normal(0, 0.01, 6)).astype(np.float32)
        obs = history(Observation(t, frames, q, np.zeros(6, np.float32), k))
        if k == reset_at:
            fast.reset()
        command, tick = fast.step(t + 5 * MS, obs, prior)
        targets = np.stack([tick.reactive_target, tick.predictive_target, tick.sent_target])
        number = -1 if prior is None else prior.number
        log.tick(
            t + 5 * MS,
            obs,
            {n: Frame(t + MS * (n == "wrist"), image, k + 1) for n, image in frames.items()},
            number,
            command,
            targets,
            reset=k == reset_at,
            sent=command is not None,
        )
        if k % 6 == 0:
            prior = slow.step(t, obs)
            log.prior(prior, obs, t)
            loop._go_on(prior)
        while len(log._waiting) > 100:  # a real run waits between ticks
            time.sleep(0.001)
    log.health(0, Health.RUNNING, [])
    log.close()
    assert log.dropped == dropped and not log.fault
    return path


def plain(records):
    """What records hold, in a form that can be compared."""
    return [repr(sorted(r.items())) if isinstance(r, dict) else repr(dataclasses.astuple(r)) for r in records]
