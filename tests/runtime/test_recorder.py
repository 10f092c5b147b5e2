"""What a run leaves behind comes back as it was; what does not fit is dropped and counted."""

import json

import numpy as np
import pytest

from firmware_bridge.motion.messages import Command, Expert, JointState, SafetyState
from runtime.contracts import FastTick, Observation, Prior
from runtime.observe import recorder
from runtime.observe.recorder import Recorder, load_episode, wire_ms

S = 1_000_000_000
SIX = np.arange(6, dtype=np.float32)


def state(k, wire_seq=0, wire_ns=0):
    zero = np.zeros(6, np.float32)
    return JointState(
        k, SIX + k, zero, SIX, zero, zero, zero, np.zeros(6, np.uint8), SafetyState.ACTIVE, "",
        wire_ns, wire_ns - 21_000_000 if wire_ns else 0, wire_seq,
    )  # fmt: skip


def feed(r, ticks, period_ns=20_000_000):
    for k in range(ticks):
        t = S + k * period_ns
        ramp = np.tile(np.arange(64, dtype=np.uint8) * 2 + k, (48, 1))
        obs = Observation(t, {"front": np.dstack([ramp, ramp // 2, 255 - ramp])}, SIX, SIX, k)
        tick = FastTick(t + 5, 7, 0.5, int(Expert.REACTIVE), SIX, SIX + 1, SIX + 2, 0.25)
        command = Command(t, t + S, SIX + k, SIX) if k else None
        r.tick(obs, tick, command, state(k, k // 2, t if k else 0))


def test_an_episode_comes_back(tmp_path):
    r = Recorder()
    feed(r, 30)
    future = np.linspace(-2, 2, 48).reshape(3, 16, 1, 1).astype(np.float32)
    r.prior(Prior(S, S + 5, "t", SIX, future, SIX[None], np.zeros(1, np.int64), 4))
    r.save(tmp_path / "e", {"task": "t"})
    episode, meta = load_episode(tmp_path / "e")
    assert meta == {"task": "t", "dropped": 0} and len(episode["t_ns"]) == 30
    assert np.isnan(episode["command"][0]).all() and np.array_equal(episode["command"][29], SIX + 29)
    assert np.array_equal(episode["measured"][3], SIX + 3) and np.array_equal(episode["sent_target"][3], SIX + 2)
    assert (episode["safety"] == SafetyState.ACTIVE).all() and (episode["expert"] == Expert.REACTIVE).all()
    assert np.diff(episode["picture_ns"]).min() >= recorder.FRAME_PERIOD_NS and len(episode["picture_ns"]) == 8
    front = episode["picture_front"]
    assert front.shape == (8, 48, 64, 3)
    assert np.abs(front[0, :, 30].astype(float).mean(0) - (60, 30, 195)).max() < 6  # JPEG, still RGB
    assert episode["prior_seq"][0] == 4 and episode["prior_future"][0] == pytest.approx(future, abs=2e-3)
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == ["episode.npz", "meta.json"]


def test_each_command_on_the_wire_counts_once(tmp_path):
    r = Recorder()
    feed(r, 10)
    r.save(tmp_path, {})
    episode, _ = load_episode(tmp_path)
    assert wire_ms(episode) == pytest.approx([21.0] * 4)  # five numbers seen; the first was not on the wire yet


def test_what_does_not_fit_is_dropped_and_counted_and_nothing_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "MAX_TICKS", 20)
    monkeypatch.setattr(recorder, "PICTURE_BYTES", 0)
    r = Recorder()
    feed(r, 30)
    assert r.dropped == 10 + 8
    r.save(tmp_path, {})
    episode, _ = load_episode(tmp_path)
    assert len(episode["t_ns"]) == 20 and json.loads((tmp_path / "meta.json").read_text())["dropped"] == 18


def test_an_empty_recording_can_be_saved(tmp_path):
    Recorder().save(tmp_path, {})
    episode, _ = load_episode(tmp_path)
    assert len(episode["t_ns"]) == 0 and len(wire_ms(episode)) == 0


def test_a_recorder_that_is_off_keeps_nothing(tmp_path):
    r = Recorder(on=False)
    feed(r, 10)
    r.prior(Prior(S, S + 5, "t", SIX, SIX[None], SIX[None], np.zeros(1, np.int64), 4))
    r.save(tmp_path, {})
    assert all(len(v) == 0 for v in load_episode(tmp_path)[0].values())
