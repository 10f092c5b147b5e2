"""Engines check what they are fed; the trace books time to stages."""

import gc
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engines.onnx import EngineError, OrtEngine
from runtime.observe.trace import StageTrace, summary, write_perfetto
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
    assert rows["c"] == {"p50_ms": 3.0, "p90_ms": 3.0, "p99_ms": 3.0, "p999_ms": 3.0, "max_ms": 3.0, "count": 1}
    trace.clear()
    assert summary(trace.durations_ms()) == {}


def test_a_full_trace_keeps_the_newest():
    trace = StageTrace(capacity=4)
    for ms in range(10):
        trace.add("a", ms * 1_000_000)
    assert trace.durations_ms()["a"].tolist() == [6, 7, 8, 9]


def test_an_injected_delay_is_real_and_lands_in_its_stage():
    trace = StageTrace(inject={"slow.world_model": 20.0})
    trace.begin()
    trace.mark("slow.preprocess")
    trace.mark("slow.world_model")
    ms = trace.durations_ms()
    assert ms["slow.world_model"][0] >= 20 and ms["slow.preprocess"][0] < 10


def test_stamps_take_no_memory():
    trace = StageTrace(capacity=64, stages=("a", "b"))
    for name in ("a", "b"):
        trace.mark(name)
    gc.disable()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(2000):
        trace.mark("a")
        trace.mark("b")
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    gc.enable()
    assert grown < 1000


def test_a_perfetto_trace_holds_every_span_on_its_track(tmp_path):
    spans = {"fast loop": {"fast.engine": np.array([[1_000_000, 5_000_000], [2_000, 3_000]])}}
    write_perfetto(tmp_path / "trace.json", spans)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == ["harmowam", "fast loop"]
    assert [(e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"] == [
        ("fast.engine", 1000.0, 2.0),
        ("fast.engine", 5000.0, 3.0),
    ]


SPANS = st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 90_000)), max_size=12)  # starts, durations; ns


@given(st.dictionaries(st.sampled_from(["wire", "wire.observation", "motor.wake"]), SPANS, max_size=3))
def test_every_span_is_one_slice_of_a_trace_and_no_two_of_a_thread_overlap(tmp_path_factory, found):
    """Perfetto drops a slice that overlaps another of the same thread."""
    path = tmp_path_factory.getbasetemp() / "any.json"
    stages = {s: np.array(v, np.int64).reshape(-1, 2).T for s, v in found.items()}
    write_perfetto(path, {"age": stages})
    events = json.loads(path.read_text())["traceEvents"]
    slices = [(round(1e3 * e["ts"]), round(1e3 * e["dur"]), e["name"], e["tid"]) for e in events if e["ph"] == "X"]
    assert sorted(s[:3] for s in slices) == sorted((*span, s) for s, spans in found.items() for span in spans)
    for thread in {s[3] for s in slices}:
        mine = [s for s in slices if s[3] == thread]
        assert all(start + lasts <= after for (start, lasts, *_), (after, *_) in zip(mine, mine[1:]))
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {"age"}
