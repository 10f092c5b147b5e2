"""Datasets that cannot be used are refused with one sentence and the next step."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from benchmarks.fuzz_dataset import fuzz, made
from export.data import _hold_to, collect, parts_of
from export.lerobot import DataError, Episode, finish, load, video, write_part
from export.lerobot.layout import read_table, write_table
from firmware_bridge.arms.so101 import FAMILY as so101
from harmowam.cli import main
from tests.dataset import CAMERAS, FPS, PARTS, camera, edit_column, edit_json, film, write_all


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot") / "set"
    write_all(folder)
    return folder


@pytest.fixture
def copy(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "set"))


def without(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def shortened(path: str, share: float) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / path, int((folder / path).stat().st_size * share))


def features(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        info = json.loads((folder / "meta/info.json").read_text())
        change(info["features"])
        (folder / "meta/info.json").write_text(json.dumps(info))

    return apply


def shorter_film(folder: Path) -> None:
    (folder / FRONT).write_bytes(video.encode(film(20, 0), FPS))


def other_size(folder: Path) -> None:
    (folder / FRONT).write_bytes(video.encode(film(40, 0, 64, 64), FPS))


def not_a_number(column: str) -> Callable[[Path], None]:
    def change(values: list[Any]) -> list[Any]:
        values[7][2] = float("nan")
        return values

    return lambda folder: edit_column(folder / "data/chunk-000/file-000.parquet", column, change)


def fewer_rows(folder: Path) -> None:
    path = folder / "data/chunk-000/file-001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 30), path)


def as_pictures(folder: Path) -> None:
    """A dataset as lerobot leaves it when it records without videos."""
    features(lambda x: [x[k].update(dtype="image") for k in x if k.startswith("observation.images.")])(folder)
    edit_json(folder / "meta/info.json", video_path=None)


def another(where: str, column: str) -> Callable[[Path], None]:
    """A valid table that says something else in its first row."""

    def change(values: list[Any]) -> list[Any]:
        return [["turn the knob"] if column == "tasks" else [v + 0.01 for v in values[0]], *values[1:]]

    return lambda folder: edit_column(folder / where / "chunk-000/file-000.parquet", column, change)


def retyped(column: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """The first table with another value in each row of a column, of whatever type."""

    def apply(folder: Path) -> None:
        path = folder / "data/chunk-000/file-000.parquet"
        table = pq.read_table(path)
        values = pa.array([change(v) for v in table[column].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index(column), column, values), path)

    return apply


def uneven(folder: Path) -> None:
    """As many numbers as there should be, but seven in one row and five in the next."""
    path = folder / "data/chunk-000/file-000.parquet"
    rows = pq.read_table(path)["action"].to_pylist()
    rows[3:5] = [rows[3] + rows[4][:1], rows[4][1:]]
    left = iter(rows)
    retyped("action", lambda _: next(left))(folder)


def turned_camera(folder: Path) -> None:
    ours = json.loads((folder / "meta/harmowam.json").read_text())
    ours["cameras"]["front"]["K"][0][0] += 1
    (folder / "meta/harmowam.json").write_text(json.dumps(ours))


def other_film(folder: Path) -> None:
    (folder / FRONT).write_bytes(video.encode(film(35, 7), FPS))


def lfs(path: str) -> Callable[[Path], Any]:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
    return lambda folder: (folder / path).write_text(pointer)


def pipe(path: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / path).unlink()
        os.mkfifo(folder / path)

    return apply


FRONT = "videos/observation.images.front/chunk-000/file-000.mp4"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing there": (shutil.rmtree, "holds no finished dataset: collect one"),
    "not finished": (without("meta/info.json"), "holds no finished dataset: collect one"),
    "older format": (
        lambda f: edit_json(f / "meta/info.json", codebase_version="v2.1"),
        "is LeRobotDataset v2.1, v3 is read",
    ),
    "info damaged": (shortened("meta/info.json", 0.5), "info.json cannot be read"),
    "info without rate": (
        lambda f: edit_json(f / "meta/info.json", fps=None),
        "'fps' must be a number from 0.01 to 1000, not null",
    ),
    "camera missing": (
        features(lambda x: x.pop("observation.images.wrist")),
        "no camera 'wrist', only front: record it with",
    ),
    "camera as pictures": (
        features(lambda x: x["observation.images.wrist"].update(dtype="image")),
        "is stored as image",
    ),
    "all cameras as pictures": (as_pictures, "'front' of .* is stored as image: record it with videos"),
    "no action": (features(lambda x: x.pop("action")), "'action' of .* is None, not"),
    "other arm": (features(lambda x: x["action"].update(names=["waist.pos"], shape=[1])), r"is \['waist.pos'\], not"),
    "newer schema": (
        lambda f: edit_json(f / "meta/harmowam.json", schema=9),
        "has schema 9, this version reads 3: upgrade",
    ),
    "no episodes": (lambda f: shutil.rmtree(f / "meta/episodes"), "holds no episodes: collect"),
    "video missing": (without(FRONT), "file-000.mp4 cannot be read .No such file.*: restore it"),
    "video truncated": (shortened(FRONT, 0.6), "file-000.mp4 cannot be read"),
    "video empty": (shortened(FRONT, 0), "file-000.mp4 cannot be read"),
    "video too short": (shorter_film, "file-000.mp4 is truncated, 15 of 35 pictures are missing: restore it"),
    "video of another size": (other_size, "pictures of 64x64 instead of 96x96"),
    "state not a number": (
        not_a_number("observation.state"),
        "'observation.state' in row 7 of episode 0 .* is not a number",
    ),
    "action not a number": (
        not_a_number("action"),
        "'action' in row 7 of episode 0 .* is not a number: remove that episode",
    ),
    "rows missing": (fewer_rows, "30 rows of episode 2 instead of 31: restore"),
    "table damaged": (shortened("data/chunk-000/file-000.parquet", 0.5), "file-000.parquet cannot be read"),
    "table missing": (without("data/chunk-000/file-004.parquet"), "file-004.parquet cannot be read"),
    "part missing": (
        without("meta/episodes/chunk-000/file-001.parquet"),
        "does not hold the 5 episodes of meta/info.json, each once",
    ),
    "another state": (another("data", "observation.state"), r"data.*file-000.parquet is damaged or was changed"),
    "another task": (another("meta/episodes", "tasks"), r"episodes.*file-000.parquet is damaged or was changed"),
    "another rate": (lambda f: edit_json(f / "meta/info.json", fps=19), "info.json is damaged or was changed"),
    "another pose": (turned_camera, "harmowam.json is damaged .it does not match its own hash"),
    "hashes lost": (lambda f: edit_json(f / "meta/harmowam.json", digest=None), "does not match its own hash"),
    "hashes denied": (lambda f: edit_json(f / "meta/harmowam.json", schema=2), "does not match its own hash"),
    "another film": (other_film, "file-000.mp4 is damaged or was changed"),
    "pointer of Git LFS": (lfs("data/chunk-000/file-000.parquet"), "is a pointer of Git LFS .*: run `git lfs pull`"),
    "film as a pointer": (lfs(FRONT), "file-000.mp4 is a pointer of Git LFS .*: run `git lfs pull`"),
    "pipe": (pipe("meta/info.json"), "info.json is no file"),
    "film as a pipe": (pipe(FRONT), "file-000.mp4 is no file"),
    "states as text": (retyped("observation.state", lambda v: str(v)), "does not hold 6 numbers in each row"),
    "states of one number more and one less": (
        uneven,
        "'action' of .* does not hold 6 numbers in each row",
    ),
    "rows without a number": (retyped("frame_index", lambda v: None), "does not hold a whole number in each row"),
    "a path that leads out": (
        lambda f: edit_json(f / "meta/info.json", data_path="../{chunk_index}-{file_index}"),
        "'data_path' leads out of the dataset",
    ),
    "a path that is none": (
        lambda f: edit_json(f / "meta/info.json", video_path="{chunk_index:x{"),
        "'video_path' is no path with chunk_index and file_index",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_dataset_that_cannot_be_used_is_refused_in_one_sentence(copy, case):
    damage, sentence = BAD[case]
    damage(copy)
    with pytest.raises(DataError, match=sentence) as raised:
        load(copy)
    assert "\n" not in str(raised.value) and ": " in str(raised.value)


def test_damaged_datasets_are_refused_in_a_sentence_or_read_as_what_they_were(tmp_path):
    """The same as `python -m benchmarks.fuzz_dataset`, which plays 2,000 and more."""
    found = fuzz(made(tmp_path / "whole"), tmp_path / "work", 100, seed=0)
    assert (found.accepted, found.failed, found.slow) == ([], [], [])
    assert found.refused > 50 and found.same > 0


def test_the_users_own_splits_break_no_hash(copy):
    edit_json(copy / "meta/info.json", splits={"train": "0:3", "held": "3:5"})
    assert len(load(copy, split="held").tasks) == 2


def test_another_rate_than_asked_for_is_refused(written):
    with pytest.raises(DataError, match="has 20 rows/s and 30 are asked for: record it at that rate"):
        load(written, fps=30)


def test_flipped_bits_in_a_video_are_reported_or_harmless(copy):
    whole, rng, said = (copy / FRONT).read_bytes(), np.random.default_rng(0), []
    for _ in range(30):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            content[at] ^= int(rng.integers(1, 256))
        (copy / FRONT).write_bytes(content)
        try:
            load(copy, cameras=("front",))
        except DataError as e:
            said.append(str(e))
    assert said and all("file-000.mp4" in sentence for sentence in said)


def changed(e: Episode, **fields: Any) -> Episode:
    return dataclasses.replace(e, **fields)


@pytest.mark.parametrize(
    ("episodes", "sentence"),
    [
        ([], "without episodes"),
        ([changed(PARTS[0][0], state=np.full((23, 6), np.nan, np.float32))], "not numbers: record it again"),
        ([changed(PARTS[0][0], action=np.zeros((22, 6), np.float32))], r"state \(23, 6\) and action \(22, 6\)"),
        ([changed(PARTS[0][0], images={"front": film(22, 0)})], "camera 'front': uint8.* is not 23 RGB pictures"),
        ([PARTS[0][0], changed(PARTS[0][1], extra={})], "other cameras or extra columns"),
    ],
)
def test_episodes_that_cannot_be_stored_are_refused_before_anything_is_written(tmp_path, episodes, sentence):
    with pytest.raises(DataError, match=sentence):
        write_part(tmp_path, 0, episodes, FPS, so101.JOINTS)
    assert not list(tmp_path.iterdir())


def test_a_folder_keeps_the_settings_it_was_begun_with(tmp_path):
    asked: dict[str, Any] = {"episodes": 100, "play": 1000, "seed": 0, "more": "nothing"}
    _hold_to(tmp_path, asked)
    _hold_to(tmp_path, asked)
    others: list[tuple[dict[str, Any], str]] = [
        ({"episodes": 200, "seed": 1}, "episodes 100, seed 0"),
        ({"more": "ring=50"}, "more nothing"),
    ]
    for other, was in others:
        with pytest.raises(DataError, match=f"was begun with {was}: repeat that, or collect into a new folder"):
            _hold_to(tmp_path, asked | other)
    before_more = {k: v for k, v in asked.items() if k != "more"}
    (tmp_path / "meta/collect.json").write_text(json.dumps(before_more))
    _hold_to(tmp_path, asked)


def test_more_of_one_task_is_added_after_all_tasks_and_changes_none_of_them():
    usual, more = parts_of(30, 40, {}), parts_of(30, 40, {"ring": 26})
    assert more[: len(usual)] == usual  # parts are numbered and drawn by number
    assert [(p.task, p.episodes, p.play) for p in more[len(usual) :]] == [
        ("ring", 25, False),
        ("ring", 1, False),
        ("ring", 25, True),
        ("ring", 1, True),
    ]
    assert [p.number for p in more] == list(range(len(more)))


def test_more_than_a_dataset_holds_is_refused_before_collecting(tmp_path):
    with pytest.raises(DataError, match="25,150 episodes are more than a dataset holds here"):
        collect(tmp_path / "d", 1, 25_000)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("wrong", ["ring", "ring=", "ring=-1", "rings=5", "=5"])
def test_more_that_names_no_task_and_number_is_refused(tmp_path, wrong):
    said = CliRunner().invoke(main, ["collect", "--out", str(tmp_path / "d"), "--more", wrong])
    assert said.exit_code == 2 and f"--more {wrong}: write a task" in said.output and not (tmp_path / "d").exists()


def test_somebody_elses_dataset_is_left_alone(copy):
    for path in (copy / "meta/episodes").rglob("*.parquet"):
        write_table(path, read_table(path).replace_schema_metadata({}))
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    for work in (lambda: collect(copy, 1, 0), lambda: finish(copy, FPS, "so101_follower", so101.JOINTS, CAMERAS)):
        with pytest.raises(DataError, match="is not by harmowam: collect into a new folder"):
            work()
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(DataError, match="no finished part: collect"):
        finish(tmp_path, FPS, "so101_follower", so101.JOINTS, CAMERAS)
    write_part(tmp_path, 0, PARTS[0], FPS, so101.JOINTS)
    for wrong in ({"fps": 10.0}, {"joint_names": so101.JOINTS[:5]}, {"cameras": CAMERAS | {"side": CAMERAS["front"]}}):
        given: dict[str, Any] = {
            "fps": FPS,
            "robot_type": "so101_follower",
            "joint_names": so101.JOINTS,
            "cameras": CAMERAS,
        } | wrong
        with pytest.raises(DataError, match="other joints or cameras than asked for"):
            finish(tmp_path, **given)
    with pytest.raises(DataError, match="camera 'wrist' stored 96x96 and its geometry is of 640x480"):
        finish(tmp_path, FPS, "so101_follower", so101.JOINTS, CAMERAS | {"wrist": camera("wrist", 640, 480)})
    write_part(tmp_path, 1, PARTS[1], 10.0, so101.JOINTS)
    with pytest.raises(DataError, match=r"file-001\.parquet was collected with other settings"):
        finish(tmp_path, FPS, "so101_follower", so101.JOINTS, CAMERAS)
