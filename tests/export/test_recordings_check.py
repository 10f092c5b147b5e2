"""What `harmowam data` shows, measures and writes."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from export.lerobot import load
from export.recordings import How, examine
from export.recordings.advice import grasps, measured_problems, more
from export.recordings.survey import Survey, survey
from export.recordings.sync import travel
from firmware_bridge.arms.so101 import FAMILY as so101
from harmowam.cli import main
from tests.recordings import Spec, edit_rows, encode, films, like, truth, write

ARM = Spec("v2.1", cameras={"front": (96, 72, "h264")}, lengths=(150, 160, 170), delay_s=0.0)
FILM = "videos/chunk-000/observation.images.front/episode_000000.mp4"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return write(tmp_path_factory.mktemp("check") / "set", ARM)


@pytest.fixture
def copy(recorded, tmp_path):
    return Path(shutil.copytree(recorded, tmp_path / "set"))


def looked(folder: Path) -> tuple[Survey, str]:
    found = examine(folder)
    seen = survey(found, workers=1)
    return seen, " | ".join(f"{p.kind}: {p}" for p in measured_problems(found, seen))


@pytest.mark.parametrize(("delay_s", "codec"), [(0.0, "h264"), (0.083, "av1"), (-0.05, "mpeg4"), (0.21, "h264")])
def test_a_constant_delay_of_a_camera_is_found_to_10_ms(tmp_path, delay_s, codec):
    folder = write(tmp_path / "set", like(ARM, delay_s=delay_s, cameras={"front": (96, 72, codec)}))
    (found,) = looked(folder)[0].syncs
    assert found.delay_ms == pytest.approx(1000 * delay_s, abs=10) and found.correlation > 0.5


def test_pictures_that_have_nothing_to_do_with_the_joints_tell_no_delay(copy):
    rng = np.random.default_rng(0)
    for n, rows in enumerate(ARM.lengths):
        noise = [rng.integers(0, 255, (72, 96, 3)).astype(np.uint8) for _ in range(rows)]
        encode(copy / FILM.replace("000000", f"{n:06d}"), noise, 30, "h264")
    assert looked(copy)[0].syncs[0].delay_ms is None


def test_repeated_pictures_and_missing_rows_are_counted(copy):
    pictures = films(ARM, "front", 0, 150)
    moved = travel(so101, truth(ARM)[0])
    twice = np.flatnonzero(moved > 0.5 * moved.max())[::3]
    for k in twice:
        pictures[k + 1] = pictures[k]
    encode(copy / FILM, pictures, 30, "h264")
    path = copy / "data/chunk-000/episode_000001.parquet"
    edit_rows(path, "timestamp", lambda t: [*t[:80], *(x + 0.1 for x in t[80:])])
    seen, said = looked(copy)
    assert abs(seen.episodes[0].looks[0].doubled - len(twice)) <= 1 and len(twice) > 5
    assert seen.episodes[1].looks[0].doubled <= 1
    assert "dropped: episode 1: 1 row is missing" in said and "repeated: episode 0" in said


def test_dark_and_blurred_pictures_are_named(copy):
    encode(copy / FILM, [(p * 0.15).astype(np.uint8) for p in films(ARM, "front", 0, 150)], 30, "h264")
    plain = [np.full((72, 96, 3), 120, np.uint8)] * 160
    encode(copy / FILM.replace("000000", "000001"), plain, 30, "h264")
    said = looked(copy)[1]
    assert (
        "light: episode 0: camera 'front' is too dark" in said and "blur: episode 1: camera 'front' is blurred" in said
    )


def test_episodes_that_are_nearly_the_same_are_named(copy):
    first, second = (copy / f"data/chunk-000/episode_{n:06d}.parquet" for n in (0, 1))
    for column in ("action", "observation.state"):
        same = pq.read_table(first)[column].to_pylist()
        edit_rows(second, column, lambda v, s=same: [s[int(k)] for k in np.linspace(0, len(s) - 1, len(v))])
    assert "pairs of episodes are nearly the same (0 and 1)" in looked(copy)[1]


def test_the_place_of_a_grasp_is_where_the_jaw_closes(copy):
    def closing(rows: list[list[float]]) -> list[list[float]]:
        return [[*r[:5], 80.0 if k < 50 else 10.0] for k, r in enumerate(rows)]

    for path in copy.rglob("episode_*.parquet"):
        edit_rows(path, "observation.state", closing)
    found = examine(copy)
    seen = survey(found, workers=1)
    first = seen.episodes[0]
    assert np.allclose(grasps(so101, first), so101.tool(first.q[50])[:3, 3])
    advice = " ".join(more(found, seen))
    assert "48 more demonstrations of “pick up the cube”" in advice and "Grasps:" not in advice


def run(*args: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["data", *map(str, args)])
    return done.exit_code, done.output


def test_check_writes_one_page_and_the_numbers(recorded, tmp_path):
    page, numbers = tmp_path / "p.html", tmp_path / "p.json"
    code, said = run("check", recorded, "--out", page, "--json", numbers)
    assert code == 0 and "can be used; 3 of 3 episodes, 480 rows" in said
    told = json.loads(numbers.read_text())
    assert set(told) >= {"version", "fps", "episodes", "rows", "units", "cameras", "accepted", "problems"}
    assert set(told["units"]) == {"joints", "evidence"} and told["accepted"] is True
    assert told["cameras"]["front"] == {"width": 96, "height": 72, "codec": "h264"}
    html = page.read_text()
    assert html.count("data:image/jpeg;base64") == 24 and "http" not in html.replace("http-equiv", "")
    for heading in (
        "Findings",
        "What training will do",
        "What to record more of",
        "Joints",
        "Motion and sync",
        "Episodes",
    ):
        assert heading in html


def test_check_says_everything_that_stands_against_a_recording_and_ends_with_1(copy, tmp_path):
    for path in copy.rglob("*.mp4"):
        path.unlink()
    code, said = run("check", copy, tmp_path / "nothing", "--out", tmp_path / "p.html", "--json", tmp_path / "p.json")
    assert code == 1 and "holds no LeRobotDataset" in said and "CANNOT be used" in said
    told = json.loads((tmp_path / "p.json").read_text())["datasets"]
    assert [d["accepted"] for d in told] == [False, False] and told[0]["problems"]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--camera", "top=front"], "write front=NAME or wrist=NAME"),
        (["--leave-out", "x"], "write numbers of episodes, as --leave-out 3,17"),
        (["--cameras", "/nowhere"], "holds no camera calibrations"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(recorded, tmp_path, wrong, sentence):
    code, said = run("check", recorded, "--out", tmp_path / "p.html", *wrong)
    assert code == 2 and sentence in said


def test_convert_writes_a_dataset_that_is_read_as_the_same(recorded, tmp_path):
    out = tmp_path / "clean"
    code, said = run("convert", recorded, "--leave-out", "1", "--out", out)
    assert (code, said.splitlines()[-1]) == (0, f"{out}: 2 episodes")
    before, after = examine(recorded, How(leave_out=(1,))), examine(out)
    assert after.version == "v3.0" and after.fps == 30 and after.units.joints == "rad" and after.accepted
    for a, b in zip(before.takes, after.takes):
        assert np.allclose(so101.from_lerobot(a.state), b.state, atol=1e-5) and a.parts == b.parts
    assert json.loads((out / "meta/harmowam.json").read_text())["cameras"] == {}
    assert {(c.width, c.height) for c in after.cameras.values()} == {(96, 72)}
    assert "is not empty" in run("convert", recorded, "--out", out)[1]
    with pytest.raises(Exception, match="has no calibration"):
        load(out, cameras=("front",))


def test_convert_evens_an_uneven_clock(copy, tmp_path):
    rng = np.random.default_rng(0)
    for path in sorted(copy.rglob("episode_*.parquet")):
        edit_rows(path, "timestamp", lambda t: list(np.cumsum(rng.uniform(0.02, 0.12, len(t)))))
    out = tmp_path / "clean"
    assert run("convert", copy, "--out", out)[0] == 0
    assert "clock" not in [p.kind for p in examine(out).problems]
    assert examine(out).rows == pytest.approx(sum(t.t[-1] for t in examine(copy).takes) * examine(copy).fps, rel=0.05)


def test_several_recordings_of_different_cameras_are_not_mixed(recorded, tmp_path):
    other = write(tmp_path / "b", like(ARM, cameras={"front": (64, 48, "h264")}, lengths=(60,)))
    assert "has another arm, other cameras or sizes" in run("convert", recorded, other, "--out", tmp_path / "o")[1]


def test_view_needs_its_extra(recorded):
    if importlib.util.find_spec("rerun") is None:
        code, said = run("view", recorded)
        assert code == 2 and "view" in said and "rerun" in said
