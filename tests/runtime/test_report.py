"""A recorded run as arrays, as a film and as a page: also of cameras whose pictures are not alike, of what is missing
and of old logs."""

import base64
import dataclasses
import time
import tracemalloc

import cv2
import numpy as np
import pytest

from firmware_bridge.arms import FAMILIES
from firmware_bridge.motion.messages import Command, Expert, JointState, SafetyState
from runtime.bundle import Bundle
from runtime.cameras.frames import Frame
from runtime.contracts import Observation, Prior
from runtime.observe import episode as episode_of_log
from runtime.observe import report
from runtime.observe.episode import PICTURE_PERIOD_NS, Episode, load_episode, pictures
from runtime.observe.film import BAR, DARK, GREEN, LAST_S, RED, ReportError, outcome, write_video
from runtime.observe.log import LogWriter
from runtime.observe.records import FutureRecord
from runtime.observe.report import lacking
from runtime.observe.strip import COLUMNS, NEVER, film_strip, instants, moments
from tests.tiny import tiny_bundle

S = 1_000_000_000
SIX = np.arange(6, dtype=np.float32)


def recorded(path, ticks=30, wrist=(90, 100), period_ns=20_000_000):
    """A log of 30 fast steps at 50 Hz; a command from the second on, each the first to reach the wire every other
    step."""
    log, zero = LogWriter(path, {}, reserve_bytes=0), np.zeros(6, np.float32)
    sizes = {"front": (48, 64), **({"wrist": wrist} if wrist else {})}
    for k in range(ticks):
        t = S + k * period_ns
        images = {name: np.full((*size, 3), 200 if name == "front" else 60, np.uint8) for name, size in sizes.items()}
        frames = {name: Frame(t, image, k + 1) for name, image in images.items()}
        command = Command(t, t + S, SIX + k, SIX, Expert(1 + k % 2), 0.5) if k else None
        obs = Observation(t, images, SIX, SIX, k)
        log.tick(t + 5, obs, frames, -1, command, np.stack([SIX, SIX + 1, SIX + 2]), reset=False, sent=True)
        wire_ns = t if k else 0
        log.state(
            JointState(
                t,
                SIX + k,
                zero,
                SIX,
                zero,
                zero,
                zero,
                np.zeros(6, np.uint8),
                SafetyState.ACTIVE,
                "",
                wire_ns,
                wire_ns - 21_000_000 if k else 0,
                k // 2,
            )
        )
        if k % 6 == 0:
            future = np.linspace(-2, 2, 48).reshape(3, 16, 1, 1).astype(np.float32)
            log.prior(Prior(t, t + 5, "t", SIX, future, SIX[None], np.zeros(1, np.int64), k // 6), obs, t)
        while len(log._waiting) > 100:
            time.sleep(0.001)
    log.close()
    assert not log.dropped and not log.fault
    return path


def test_an_episode_comes_back(tmp_path):
    log = recorded(tmp_path / "run.mcap")
    episode = load_episode(log)
    assert len(episode.t_ns) == 30 and episode.t_ns[0] == S + 5 and not episode.gap
    assert np.isnan(episode.command[0]).all() and np.array_equal(episode.command[29], SIX + 29)
    assert np.array_equal(episode.measured[3], SIX + 3)
    assert episode.expert.tolist()[:4] == [0, 2, 1, 2] and episode.gate.tolist()[:2] == [0, 0.5]
    assert np.diff(episode.picture_ns).min() >= PICTURE_PERIOD_NS and len(episode.picture_ns) == 8
    shown = list(pictures(log, episode.picture_ns))
    assert [t for t, _ in shown] == episode.picture_ns.tolist()
    assert shown[3][1]["front"].shape == (48, 64, 3) and (shown[3][1]["wrist"] == 60).all()
    assert [f.number for f in episode.futures] == [0, 1, 2, 3, 4] and episode.futures[1].t_capture_ns == S + 120_000_000
    assert episode.futures[0].future.ravel() == pytest.approx(np.linspace(-2, 2, 48), abs=2e-3)


def test_an_episode_keeps_the_numbers_of_its_records_and_not_the_records(tmp_path):
    """Memory for a log four times as long: what the arrays take, and not a kilobyte a step. An hour has 180,000."""

    def peak(log):
        load_episode(log)  # what is imported and cached on the way is not of the log
        tracemalloc.start()
        load_episode(log)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    short, long = (recorded(tmp_path / f"{n}.mcap", ticks=n) for n in (200, 800))
    assert (peak(long) - peak(short)) / 600 < 500  # bytes a step; 2,800 with the records


def test_of_a_long_log_predictions_are_kept_that_are_spread_over_it(tmp_path, monkeypatch):
    monkeypatch.setattr(episode_of_log, "MOST_FUTURES", 8)
    episode = load_episode(recorded(tmp_path / "run.mcap", ticks=6 * 30))
    assert [f.number for f in episode.futures] == [0, 8, 16, 24]


def test_a_log_without_fast_steps_or_without_states_is_an_episode_that_lacks_them(tmp_path):
    """No picture came before the run ended; or no joint state."""
    for name in ("no steps", "no states"):
        log = LogWriter(tmp_path / name, {}, reserve_bytes=0)
        if name == "no steps":
            none = np.zeros(6, np.uint8)
            log.state(JointState(S, SIX, SIX, SIX, SIX, SIX, SIX, none, SafetyState.ACTIVE))
        else:
            obs = Observation(S, {}, SIX, SIX, 0)
            log.tick(S, obs, {}, -1, None, np.stack([SIX] * 3), reset=False, sent=False)
        log.close()
        episode = load_episode(tmp_path / name)
        sizes = episode.command.shape, episode.measured.shape
        assert sizes == (((0, 6), (1, 6)) if name == "no steps" else ((1, 6), (0, 6)))


def test_each_command_on_the_wire_counts_once(tmp_path):
    """Five numbers were seen in ten steps; the first was not on the wire yet when it was seen first."""
    assert load_episode(recorded(tmp_path / "run.mcap", ticks=10)).wire_ms == pytest.approx([21.0] * 5)


def test_a_log_that_was_cut_off_is_an_episode_up_to_there(tmp_path):
    log = recorded(tmp_path / "run.mcap")
    log.write_bytes(log.read_bytes()[:-3])
    episode = load_episode(log)
    assert len(episode.t_ns) == 30 and "was not finished" in episode.gap


TOLD = {"task": "put the red cube on the plate", "seconds": 0.6, "success": True, "success_after_s": 0.3}
TOLD |= {"success_at_end": True}


def first_and_last(path):
    film = cv2.VideoCapture(str(path))
    count = int(film.get(cv2.CAP_PROP_FRAME_COUNT))
    read = [film.read()[1].astype(int) for _ in range(count)]
    return film, count, read[0], read[-1]


def test_a_film_of_two_cameras_of_different_size(tmp_path):
    """Pictures of 64x48 beside some of 100x90, which are shown as high as the others (53x48); twice as large in the
    film, under two lines of text. The last picture stays, under the verdict in green."""
    log = recorded(tmp_path / "run.mcap")
    episode = load_episode(log)
    write_video(episode, pictures(log, episode.picture_ns), tmp_path / "episode.mp4", TOLD)
    film, count, picture, last = first_and_last(tmp_path / "episode.mp4")
    assert picture.shape == (2 * BAR + 96, 2 * (64 + 53), 3) and count == 8 + round(LAST_S * 12.5)
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5, abs=0.1)
    y = 2 * BAR + 80
    assert abs(int(picture[y, 60].mean()) - 200) < 6 and abs(int(picture[y, 180].mean()) - 60) < 6
    assert picture[2, 2] == pytest.approx(DARK[::-1], abs=12) and last[2, 2] == pytest.approx(GREEN[::-1], abs=12)


def test_an_overview_stands_beside_the_cameras_and_is_black_where_it_is_not_known(tmp_path):
    log = recorded(tmp_path / "run.mcap")
    episode = load_episode(log)
    whole = np.full((96, 128, 3), 120, np.uint8)
    write_video(
        episode,
        pictures(log, episode.picture_ns),
        tmp_path / "episode.mp4",
        TOLD,
        lambda t_ns: whole if t_ns > S else None,
    )
    _, _, picture, last = first_and_last(tmp_path / "episode.mp4")
    assert picture.shape[1] == 2 * (64 + 53 + 64)
    assert picture[-10, -10].mean() < 6 and last[-10, -10].mean() == pytest.approx(120, abs=6)


def test_a_film_says_how_the_run_came_out_once_that_is_known():
    assert outcome(TOLD, 0.2, last=False) == ("", DARK) and outcome(TOLD, 0.3, last=False) == ("done at 0.3 s", GREEN)
    assert outcome(TOLD, 0.6, last=True) == ("done at 0.3 s", GREEN)
    assert outcome({**TOLD, "success_at_end": False}, 0.6, last=True) == ("done, and undone since", GREEN)
    assert outcome({"task": "t", "seconds": 1.0}, 1.0, last=True) == ("driven to the end", DARK)
    failed = {**TOLD, "success": False, "success_at_end": False, "commanded": False, "held_s": 0.0, "ticks": 9}
    failed |= {"health": {"changes": []}, "deadline_misses": 0, "refused_outputs": 0}
    assert outcome(failed, 0.5, last=False) == ("", DARK)
    assert outcome(failed, 0.6, last=True) == ("not done: no command came from the policy", RED)


def test_a_recording_without_pictures_and_a_film_that_cannot_be_written_are_said_in_a_sentence(tmp_path, capfd):
    log = recorded(tmp_path / "run.mcap", wrist=None)
    episode = load_episode(log)
    with pytest.raises(ReportError, match=r"holds no pictures of both cameras.*record again"):
        write_video(episode, pictures(log, episode.picture_ns), tmp_path / "episode.mp4", TOLD)
    log = recorded(tmp_path / "more.mcap")
    with pytest.raises(ReportError, match=r"cannot be encoded \(see above\): make room there, or name another folder"):
        shown = list(pictures(log, episode.picture_ns)) * 10  # more than a pipe holds
        write_video(episode, shown, tmp_path / "none" / "episode.mp4", TOLD)
    assert "No such file or directory" in capfd.readouterr().err


def test_predictions_are_shown_beside_what_came_true(tmp_path):
    bundle = Bundle.load(tiny_bundle(tmp_path))
    future = FutureRecord(1, S, np.zeros((3, 16, 12, 12), np.float16))
    picture = np.zeros((48, 64, 3), np.uint8)
    seen = {S + 10_000_000: picture, S + 400_000_000: picture, 2 * S + 200_000_000: picture}
    unseen = dataclasses.replace(future, t_capture_ns=3 * S)
    wanted = np.array([[S, 1.4 * S, 1.8 * S, 2.2 * S], [3 * S, 3.4 * S, 3.8 * S, NEVER]], np.int64)
    (column,) = film_strip(bundle, S // 2, [future, unseen], wanted, seen)
    assert [(tile.caption, tile.predicted, tile.picture != "") for tile in column] == [
        ("camera now, 0.5 s", False, True),
        ("predicted: +0.4 s", True, True),
        ("camera at 0.9 s (+0.4 s)", False, True),
        ("predicted: +0.8 s", True, True),
        ("camera at 1.3 s (+0.8 s)", False, False),
        ("predicted: next grasp or release", True, True),
        ("camera at 1.7 s (gripper event)", False, True),
    ]
    for tile in column:
        if tile.picture:
            raw = np.frombuffer(base64.b64decode(tile.picture.partition(",")[2]), np.uint8)
            assert min(cv2.imdecode(raw, cv2.IMREAD_COLOR).shape[:2]) >= 160


def test_a_prediction_is_of_the_next_grasp_or_release_and_of_none_after_the_last():
    t = S * np.arange(1, 5, dtype=np.int64)
    command = np.array([[1.0], [1.0], [0.0], [1.0]], np.float32)
    episode = Episode(t, t, command, command[:, 0], np.zeros(4, np.uint8), t, command, np.zeros(0), ())
    made = [FutureRecord(k, k * S, np.zeros((3, 16, 1, 1))) for k in (1, 3, 4)]
    assert instants(episode, made)[:, 3].tolist() == [3 * S, 4 * S, NEVER]
    assert (instants(episode, made)[0, :3] - S).tolist() == [0, 400_000_000, 800_000_000]
    assert instants(episode, []).shape == (0, 4)


def test_a_log_of_version_2_has_no_predictions_to_show(tmp_path):
    episode = load_episode(recorded(tmp_path / "run.mcap"))
    assert len(moments(episode)) == COLUMNS and moments(dataclasses.replace(episode, futures=())) == []


@pytest.mark.parametrize("arm", FAMILIES.values(), ids=list(FAMILIES))
def test_every_joint_has_a_plot_under_its_own_name(arm, monkeypatch):
    monkeypatch.setattr(report, "_figure", lambda fig: [a.get_title(loc="left") for a in fig.axes if a.get_visible()])
    some, n = np.zeros((4, len(arm.JOINTS)), np.float32), np.arange(4, dtype=np.int64)
    episode = Episode(n, n, some, some[:, 0], n.astype(np.uint8), n, some, np.zeros(0), ())
    titles = report.plot_joints(episode, arm.JOINTS, 0)
    assert sorted(titles) == sorted(j.replace("_", " ") for j in arm.JOINTS)


def test_what_a_page_needs_and_a_robot_may_lack_is_named_as_pip_knows_it(monkeypatch):
    assert lacking() == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "imageio_ffmpeg" else object())
    assert lacking() == ["imageio-ffmpeg"]
