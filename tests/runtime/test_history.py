"""Older observations for policies that see motion: which ones, and the same ones when a run is replayed."""

import dataclasses

import numpy as np
import pytest

from runtime.bundle import Bundle
from runtime.contracts import Observation
from runtime.observe.log_reader import read_log
from runtime.observe.records import PriorRecord
from runtime.observe.replay import replay
from runtime.policies import PolicyError, kind_of
from runtime.policies.history import History
from tests.runtime.recorded import record
from tests.tiny import edit_manifest, tiny_diffusion_bundle

MS = 1_000_000


def seen(t_ms, number=0):
    return Observation(t_ms * MS, {}, np.zeros(6, np.float32), np.zeros(6, np.float32), number)


def test_the_past_is_a_step_of_the_policy_old_whatever_the_cameras_rate():
    """Cameras at 60 Hz that are sometimes late, a policy of 30 Hz: the picture nearest to 33 and 67 ms before."""
    history, times = History([33 * MS, 67 * MS]), [0, 17, 33, 50, 90, 100, 117]
    past = [[o.t_capture_ns // MS for o in history(seen(t)).past] for t in times]
    assert past == [[0, 0], [0, 0], [0, 0], [17, 0], [50, 17], [50, 33], [90, 50]]


def test_an_episode_begins_with_copies_of_its_first_observation():
    history = History([33 * MS])
    history(seen(0))
    history.reset()
    assert history(seen(500, 7)).past[0].number == 7
    assert History([])(seen(0)).past == ()


def test_nothing_older_than_what_is_looked_at_is_kept():
    history = History([33 * MS])
    for k in range(1000):
        history(seen(10 * k))
    assert len(history._seen) <= 6


@pytest.fixture
def bundle(tmp_path):
    return Bundle.load(tiny_diffusion_bundle(tmp_path))


def test_a_run_is_replayed_with_the_same_past(bundle, tmp_path, monkeypatch):
    """Every Prior's record says which older pictures went in; with others it is another plan."""
    log = record(tmp_path / "run.mcap", bundle)
    assert replay(log).identical
    records = list(read_log(log))
    priors = [r for r in records if isinstance(r, PriorRecord)]
    assert [[number for number, _ in r.past] for r in priors] == [[0], [4], [10], [16], [22], [28], [34]]
    other = [dataclasses.replace(r, past=()) if isinstance(r, PriorRecord) else r for r in records]
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(other))
    assert not replay(log).identical


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m["engines"]["encode"]["inputs"].update({"side-1": [1, 3, 96, 96]}), "the input 'side-1', which is"),
        (lambda m: m["engines"]["encode"]["inputs"].update({"state-1": [1, 5]}), "an input 'state-1' of"),
        (lambda m: m["engines"]["denoise"].update(outputs=["chunk"]), "'denoise' with next and chunk"),
        (lambda m: m["engines"]["denoise"]["inputs"].pop("place"), "with sample, condition and place"),
        (lambda m: m["engines"].pop("denoise"), "engine 'denoise'"),
    ],
)
def test_a_bundle_that_lacks_what_the_kind_needs_is_refused(tmp_path, change, field):
    path = tiny_diffusion_bundle(tmp_path)
    edit_manifest(path, change)
    with pytest.raises(PolicyError, match=f"lacks what a policy of kind 'diffusion' needs .*{field}"):
        kind_of(Bundle.load(path))
