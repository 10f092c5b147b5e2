"""Engines check what they are fed; the trace books time to stages."""

import numpy as np
import pytest

from runtime.engine import EngineError, OrtEngine
from runtime.trace import StageTrace, summary
from tests.tiny import INPUTS, outputs, write_engine


@pytest.fixture
def path(tmp_path):
    write_engine(tmp_path / "fast.onnx", INPUTS["fast"], outputs(0.25)["fast"])
    return tmp_path / "fast.onnx"


def zeros(engine):
    return {k: np.zeros(s.shape, s.dtype) for k, s in engine.inputs.items()}


def test_an_engine_says_what_it_takes_and_answers_what_it_gives(path):
    engine = OrtEngine(path)
    assert engine.inputs["front"].shape == (1, 3, 96, 96) and engine.inputs["front"].dtype == "float32"
    out = engine.run(zeros(engine))
    assert list(out) == ["heat", "reach", "gate"] and out["gate"][0, 0] == pytest.approx(0.25)
    ones = {**zeros(engine), "front": np.ones((1, 3, 96, 96), np.float32)}
    assert engine.run(ones)["gate"][0, 0] > 0.25  # not a constant


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda f: f.pop("wrist"), "'wrist' must be float32.*got nothing"),
        (lambda f: f.update(wrist=f["wrist"].astype(np.float64)), "got float64"),
        (lambda f: f.update(wrist=f["wrist"][0]), r"got float32\[3, 96, 96\]"),
        (lambda f: f.update(image=f["wrist"]), "'image' is no input"),
    ],
)
def test_wrong_feeds_are_refused(path, spoil, sentence):
    engine = OrtEngine(path)
    feeds = zeros(engine)
    spoil(feeds)
    with pytest.raises(EngineError, match=sentence):
        engine.run(feeds)


def test_a_file_that_is_no_engine_is_refused(tmp_path):
    (tmp_path / "fast.onnx").write_bytes(b"nonsense")
    with pytest.raises(EngineError, match=r"fast.onnx cannot be loaded .*export the bundle again"):
        OrtEngine(tmp_path / "fast.onnx")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_an_engine_that_runs_elsewhere_than_asked_is_refused(path):
    with pytest.raises(EngineError, match="NoSuchProvider"):
        OrtEngine(path, provider="NoSuchProvider")


def test_stages_get_the_time_since_the_mark_before():
    trace = StageTrace(capacity=4)
    trace.begin()
    trace.mark("a")
    trace.mark("b")
    trace.add("c", 3_000_000)
    rows = summary(trace.durations_ms())
    assert set(rows) == {"a", "b", "c"}
    assert rows["c"] == {"p50_ms": 3.0, "p99_ms": 3.0, "max_ms": 3.0, "count": 1}
    trace.clear()
    assert summary(trace.durations_ms()) == {}


def test_a_full_trace_keeps_the_newest():
    trace = StageTrace(capacity=4)
    for ms in range(10):
        trace.add("a", ms * 1_000_000)
    assert sorted(trace.durations_ms()["a"]) == [6, 7, 8, 9]
