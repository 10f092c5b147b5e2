"""What a log holds, whoever reads it, and what happens to it when the disk is full."""

import json
import os
import resource
import struct
import time

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer

from common.clock import prefer
from common.timing import FAST_PRIORITY, LOG_PRIORITY, SIM_CAMERA_PRIORITY, SIM_SERVO_PRIORITY, SLOW_PRIORITY
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.messages import Command, JointState
from runtime.bundle import Bundle, BundleError
from runtime.cameras.frames import Frame
from runtime.contracts import Observation, Prior
from runtime.loop.health import Health
from runtime.observe.log import LogWriter
from runtime.observe.log_reader import read_log, read_meta
from runtime.observe.records import (
    FrameRecord,
    LogError,
    PriorRecord,
    TickRecord,
    digest,
    packed_prior,
    prior_of,
)
from runtime.observe.replay import replay
from runtime.observe.schemas import image_of
from tests.runtime.recorded import MS, plain, record
from tests.tiny import TASK, tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("tiny"), gate=0.6))


@pytest.fixture(scope="module")
def log(bundle, tmp_path_factory):
    return record(tmp_path_factory.mktemp("log") / "run.mcap", bundle)


def test_a_log_holds_what_the_engines_got_and_gave(log, bundle):
    records = list(read_log(log))
    ticks = [r for r in records if isinstance(r, TickRecord)]
    assert read_meta(log)["task"] == TASK and len(ticks) == 40
    assert sum(isinstance(r, PriorRecord) for r in records) == 7
    frames = [r for r in records if isinstance(r, FrameRecord)]
    assert len(frames) == 80 and frames[0].image.shape == (96, 96, 3)
    apart = {f.t_capture_ns - 1_000 * MS for f in frames if f.frame_number == 1}
    assert apart == {0, MS}  # each camera's own time
    assert ticks[0].prior_number == -1 and ticks[0].command == b"" and ticks[30].sent and ticks[25].reset
    assert [r["state"] for r in records if isinstance(r, dict) and r.get("kind") == "health"] == ["RUNNING"]


def test_a_plan_is_as_wide_as_the_arm_has_joints():
    seven = np.arange(7, dtype=np.float32)
    chunk = np.arange(21, dtype=np.float32).reshape(3, 7)
    nothing = np.zeros(0, np.float32)
    made = Prior(5, 7, TASK, nothing, nothing, chunk, np.arange(3), 9, "joints")
    kept = prior_of(packed_prior(made, Observation(5, {}, seven, seven + 1, 4), 6))
    assert np.array_equal(kept.chunk, chunk) and np.array_equal(kept.qd_rad_s, seven + 1)
    assert (kept.number, kept.observation, kept.digest) == (9, 4, digest(made))


def as_version_2(log, path):
    """The log in the format of version 2: pictures packed by ourselves, health as events, no future, nothing for other
    programs."""
    with open(path, "wb") as f:
        writer = Writer(f, chunk_size=1 << 40, compression=CompressionType.LZ4)
        writer.start(profile="", library="harmowam log 2")
        meta = {k: v for k, v in read_meta(log).items() if k != "joints"}
        writer.add_metadata("run", {"json": json.dumps({**meta, "version": 2})})
        channels: dict[str, int] = {}

        def put(topic, t_ns, data, sequence, encoding="harmowam"):
            channel = channels.get(topic) or channels.setdefault(topic, writer.register_channel(topic, encoding, 0))
            writer.add_message(channel, t_ns, data, t_ns, sequence)

        with open(log, "rb") as raw:
            for _, channel, message in make_reader(raw).iter_messages(log_time_order=False):
                if channel.topic in ("fast/step", "slow/prior", "arm/state"):
                    put(channel.topic, message.log_time, message.data, message.sequence)
                elif channel.topic.startswith("camera/"):
                    t_ns, image = image_of(message.data)
                    packed = struct.pack("<qII", t_ns, image.shape[1], image.shape[0]) + image.tobytes()
                    put(channel.topic, t_ns, packed, message.sequence)
        put("event", 0, b'{"kind": "health", "state": "RUNNING", "reasons": []}', 0, "json")
        writer.add_metadata("end", {"dropped": "0"})
        writer.finish()
    return path


def test_a_log_of_version_2_still_replays(log, tmp_path):
    old = as_version_2(log, tmp_path / "old.mcap")
    result = replay(old)
    assert result.identical and (result.steps, result.priors, result.gap) == (40, 7, "")

    def mine(records):
        return plain(r for r in records if isinstance(r, (TickRecord, PriorRecord, FrameRecord)))

    assert mine(read_log(old)) == mine(read_log(log))
    assert [r["state"] for r in read_log(old) if isinstance(r, dict) and r.get("kind") == "health"] == ["RUNNING"]


@pytest.mark.parametrize(("version", "mend"), [(1, "with the release that recorded it"), (4, "upgrade harmowam")])
def test_a_log_of_a_version_that_is_not_known_is_refused(tmp_path, version, mend):
    writer = LogWriter(tmp_path / "run.mcap", {"task": TASK, "version": version}, reserve_bytes=0)
    writer.health(0, Health.RUNNING, [])
    writer.close()
    with pytest.raises(LogError, match=f"version {version}, this program reads 2 to 3: .*{mend}"):
        replay(tmp_path / "run.mcap")


def test_a_refused_command_without_numbers_can_be_logged(tmp_path):
    """JSON knows no NaN: other programs get null, replay the bits."""
    nan = np.full(6, np.nan, np.float32)
    log = LogWriter(tmp_path / "run.mcap", {"task": TASK, "joints": list(so101.JOINTS)}, reserve_bytes=0)
    obs = Observation(5, {}, nan, nan, 1)
    log.tick(
        5, obs, {}, -1, Command(5, 6, nan, nan, gate=float("nan")), np.full((3, 6), np.nan), reset=False, sent=False
    )
    log.close()
    assert not log.fault
    (kept,) = (r for r in read_log(tmp_path / "run.mcap") if isinstance(r, TickRecord))
    assert np.isnan(Command.unpack(kept.command).q_rad).all()
    with open(tmp_path / "run.mcap", "rb") as f:
        (shown,) = (json.loads(m.data) for _, _, m in make_reader(f).iter_messages(topics=["command"]))
    assert shown["gate"] is None and shown["q_rad"] == dict.fromkeys(so101.JOINTS)


def test_what_is_no_log_is_refused(tmp_path, bundle):
    with pytest.raises(LogError, match="cannot be read"):
        replay(tmp_path / "none.mcap")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(LogError, match="is not a log of harmowam"):
        replay(tmp_path / "text")
    with pytest.raises(LogError, match="cannot be written"):
        LogWriter(tmp_path / "text" / "run.mcap", {})
    with pytest.raises(BundleError):
        replay(record(tmp_path / "run.mcap", bundle, ticks=2), tmp_path / "gone.bundle")


def test_nobody_but_the_fast_loop_keeps_the_writer_from_giving_pythons_lock_back(tmp_path):
    """The fast loop waits for that lock: a slow loop or a renderer that ran before the writer made it 5 ms late."""
    assert FAST_PRIORITY > LOG_PRIORITY > max(SLOW_PRIORITY, SIM_SERVO_PRIORITY, SIM_CAMERA_PRIORITY)
    log = LogWriter(tmp_path / "run.mcap", {"task": TASK})
    if may_prefer():
        deadline = time.monotonic() + 2
        while os.sched_getparam(log._thread.native_id or 0).sched_priority != LOG_PRIORITY:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    log.close()


def may_prefer():
    granted = prefer(1)
    prefer(0)
    return granted


def test_a_disk_that_fills_up_stops_the_recording_and_keeps_what_fitted(tmp_path):
    """The operating system refuses to let the file grow, as on a full disk."""
    z = np.zeros(6, np.float32)
    state = JointState(0, z, z, z, z, z, z, np.zeros(6, np.uint8))
    rng = np.random.default_rng(0)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = LogWriter(tmp_path / "run.mcap", {"task": TASK}, reserve_bytes=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, old[1]))
    try:
        for k in range(60):
            frame = rng.integers(0, 255, (240, 320, 3)).astype(np.uint8)
            obs = Observation(k, {"front": frame}, state.q_rad, state.q_rad, k)
            log.tick(k, obs, {"front": Frame(k, frame, k)}, -1, None, np.zeros((3, 6)), reset=False, sent=False)
            while log._waiting and not log.fault:
                time.sleep(0.001)
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert log.fault == "recording stopped: File too large"
    kept = [r for r in read_log(tmp_path / "run.mcap") if isinstance(r, TickRecord)]
    assert [t.number for t in kept] == list(range(len(kept))) and 5 <= len(kept) <= 14


def test_a_nearly_full_disk_is_left_alone(tmp_path):
    log = LogWriter(tmp_path / "run.mcap", {"task": TASK}, reserve_bytes=1 << 62)
    log.health(0, Health.RUNNING, [])
    log.close()
    assert "are left on the disk" in log.fault and read_meta(tmp_path / "run.mcap")["task"] == TASK
