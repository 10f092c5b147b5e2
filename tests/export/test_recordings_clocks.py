"""When the pictures and rows of other people's recordings were taken: timestamps, films, rates."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from export.recordings import How, examine, read
from export.recordings.clock import linear, nearest, times_at
from tests.dataset import edit_json
from tests.recordings import Spec, edit_rows, like, said, shown, truth, values, write

PLAIN = Spec()
DATA_2 = "data/chunk-000/episode_000000.parquet"


def test_uneven_clocks_are_resampled_by_their_timestamps(copy):
    rng = np.random.default_rng(0)
    t = {n: np.cumsum(rng.uniform(0.03, 0.3, 45 - 5 * n)) + 1.7e9 for n in (0, 1)}
    for n, times in t.items():
        edit_rows(copy / f"data/chunk-000/episode_{n:06d}.parquet", "timestamp", lambda rows, x=times: list(x))
    found = examine(copy)
    assert found.accepted and "unevenly spaced" in said(found, "clock")
    data = read(found, 20.0)[0]
    own = t[0] - t[0][0]
    at = times_at(own, 20.0)
    assert np.allclose(data.state[data.episode == 0][:, 0], linear(own, truth(PLAIN)[0], at)[:, 0], atol=2e-5)
    assert np.array_equal(shown(data.images["front"][data.episode == 0]), nearest(own, at))


def test_a_film_of_30_in_a_recording_of_20_is_asked_about(tmp_path):
    folder = write(tmp_path / "set", like(PLAIN, fps=20.0, video_fps=30.0))
    found = examine(folder)
    assert not found.accepted and "shows 30 pictures/s, the rows are 20 a second" in said(found, "video rate")
    sure = examine(folder, How(recorded_fps=30.0))
    assert sure.accepted and sure.takes[0].t[-1] == pytest.approx(44 / 30)


def test_a_header_whose_rate_is_wrong_is_overruled_by_timestamps_and_film(copy):
    edit_json(copy / "meta/info.json", fps=20)
    found = examine(copy)
    assert found.accepted and found.fps == 30 and "says 20 rows/s, the timestamps say 30" in said(found, "rate")


@pytest.mark.parametrize("early", [-0.6, 0.6])
def test_a_start_that_is_a_part_of_a_picture_off_moves_no_picture(copy_3, early):
    path = copy_3 / "meta/episodes/chunk-000/file-000.parquet"
    edit_rows(path, "videos/observation.images.front/from_timestamp", lambda v: [v[0], v[1] + early / 30])
    data = read(examine(copy_3), 30.0)[0]
    assert np.array_equal(shown(data.images["front"][data.episode == 1]), np.arange(40))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: [*t[:20], *(x + 2 for x in t[20:])], "nothing was recorded for 2.0 s from row 19 on"),
        (lambda t: [*t[:20], t[3], *t[21:]], "time goes backwards in row 20"),
        (lambda t: [float("nan"), *t[1:]], "a timestamp is not a number"),
    ],
)
def test_an_episode_whose_clock_is_broken_is_left_out(copy, change, text):
    edit_rows(copy / DATA_2, "timestamp", change)
    found = examine(copy)
    assert found.accepted and [t.number for t in found.takes] == [1] and text in said(found, "clock")


def test_pictures_repeat_where_the_recording_is_slower(tmp_path):
    folder = write(tmp_path / "set", like(PLAIN, fps=5.0, lengths=(24,)))
    direct = read(examine(folder), 20.0)[0]
    cached = read(examine(folder), 20.0, cache=tmp_path / "cache")[0]
    t = np.arange(24) / 5
    assert np.array_equal(shown(direct.images["front"]), nearest(t, times_at(t, 20.0)))
    assert np.array_equal(direct.images["front"], cached.images["front"])


def test_pictures_in_a_table_belong_to_their_rows_in_any_order(tmp_path):
    folder = write(tmp_path / "set", like(PLAIN, cameras={"front": (64, 48, "png")}, lengths=(20,)))
    table = pq.read_table(folder / DATA_2)
    pq.write_table(table.take(np.random.default_rng(0).permutation(20)), folder / DATA_2)
    data = read(examine(folder, How(units="degrees")), 30.0)[0]
    assert shown(data.images["front"]).tolist() == list(range(20))


def test_goals_are_the_policys_at_its_times(plain):
    data = read(examine(plain), 20.0)[0]
    _, action, _ = values(PLAIN, 0, 45)
    t = np.arange(45) / 30
    expected = np.radians(linear(t, action.astype(float), times_at(t, 20.0)))
    assert np.allclose(data.action[data.episode == 0][:, :5], expected[:, :5], atol=2e-5)
