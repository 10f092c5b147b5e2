"""The dataset's format: what is written is read back, lerobot reads it, datasets of lerobot are read, bad folders are
refused."""

import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from calibration.camera import policy_camera
from calibration.store import Store, new_record
from export.lerobot import DataError, finish, load, part_exists, read_cameras, write_part
from export.lerobot.pictures import follow
from export.recordings import How, examine, read
from firmware_bridge.arms.so101 import FAMILY as so101
from runtime.preprocess import Warp
from tests.dataset import CAMERAS, EPISODES, FPS, PARTS, camera, edit_column, edit_json, episode, film, write_all
from tests.export import golden

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers/bin/python"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot") / "set"
    write_all(folder)
    return folder


@pytest.fixture
def copy(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "set"))


def planar(name: str) -> np.ndarray:
    return np.concatenate([e.images[name] for e in EPISODES]).transpose(0, 3, 1, 2)


# Round trip


def test_what_is_written_comes_back(written):
    data = load(written, fps=FPS)
    assert np.array_equal(data.state, np.concatenate([e.state for e in EPISODES]))
    assert np.array_equal(data.action, np.concatenate([e.action for e in EPISODES]))
    assert data.tasks == [e.task for e in EPISODES] and data.fps == FPS
    assert data.extra.keys() == EPISODES[0].extra.keys()
    for k, values in data.extra.items():
        assert values.tolist() == [e.extra[k] for e in EPISODES]
    lengths = [len(e.state) for e in EPISODES]
    assert np.array_equal(data.episode, np.repeat(np.arange(len(EPISODES)), lengths)) and data.episode.dtype == np.int32
    for row, last in enumerate(data.last):
        inside = np.flatnonzero(data.episode == data.episode[row])
        assert last == inside[-1]
    for name, pictures in data.images.items():
        error = np.abs(pictures.astype(int) - planar(name))
        assert pictures.shape == (sum(lengths), 3, 96, 96) and pictures.dtype == np.uint8
        assert error.mean() <= 2 and np.percentile(error, 99) <= 10
        assert data.cameras[name].to_json() == CAMERAS[name].to_json()


def test_videos_keep_colour_and_can_be_entered_everywhere(written):
    for path in written.rglob("*.mp4"):
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            assert (stream.codec.name, stream.pix_fmt, stream.base_rate) == ("h264", "yuv444p", 20)
            frames = list(file.decode(stream))
            keys = [i for i, f in enumerate(frames) if f.key_frame] + [len(frames)]
            assert keys[0] == 0 and max(np.diff(keys)) <= 10
            assert [f.pts * f.time_base * 20 for f in frames] == list(range(len(frames)))


def test_statistics_are_those_of_the_rows(written):
    stats = json.loads((written / "meta/stats.json").read_text())
    action = np.concatenate([e.action for e in EPISODES])
    for k, value in (("min", action.min(0)), ("max", action.max(0)), ("mean", action.mean(0)), ("std", action.std(0))):
        assert np.allclose(stats["action"][k], value, atol=1e-6)
    front = planar("front") / 255
    for k, value in (("mean", front.mean((0, 2, 3))), ("std", front.std((0, 2, 3))), ("max", front.max((0, 2, 3)))):
        assert np.allclose(np.array(stats["observation.images.front"][k])[:, 0, 0], value, atol=1e-6)
    assert stats["observation.images.front"]["count"] == stats["action"]["count"] == [len(action)]


class Bar:
    """Stands for the progress bar: what it was told so far."""

    def __init__(self):
        self.n, self.moved = 0, threading.Event()

    def update(self, n):
        self.n += n
        if self.n:
            self.moved.set()


def test_the_bar_moves_while_a_file_is_decoded():
    """A dataset may be one file of an hour."""
    count, bar = np.zeros(2, np.int64), Bar()

    def decode(number):
        count[number] = 3
        assert bar.moved.wait(10), "nothing was shown until the file was over"
        count[number] = 5

    with ThreadPoolExecutor(2) as pool:
        follow(bar, [pool.submit(decode, k) for k in range(2)], count)
    assert bar.n == 10


@pytest.mark.parametrize("cached", [False, True])
def test_every_picture_is_counted_where_it_is_decoded(written, tmp_path, monkeypatch, cached):
    counts: list[int] = []
    monkeypatch.setattr("export.lerobot.pictures.follow", lambda bar, jobs, count: counts.append(summed(jobs, count)))
    load(written, cache=tmp_path if cached else None)
    assert counts == [sum(len(e.action) for e in EPISODES)] * len(CAMERAS)


def summed(jobs, count):
    for job in jobs:
        job.result()
    return int(count.sum())


def test_a_cache_gives_the_same_pictures_without_decoding(copy, tmp_path, monkeypatch):
    plain, first = load(copy), load(copy, cache=tmp_path / "cache")
    monkeypatch.setattr("export.lerobot.video.decode", None)
    second = load(copy, cache=tmp_path / "cache")
    for name in plain.images:
        assert isinstance(second.images[name], np.memmap) and not second.images[name].flags.writeable
        assert np.array_equal(plain.images[name], first.images[name])
        assert np.array_equal(plain.images[name], second.images[name])
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_split_is_read_alone(copy):
    edit_json(copy / "meta/info.json", splits={"train": "0:3", "val": "3:5", "test": "5:5"})
    whole, val = load(copy), load(copy, split="val")
    assert val.tasks == whole.tasks[3:] and np.array_equal(val.state, whole.state[whole.episode >= 3])
    assert np.array_equal(val.images["wrist"], whole.images["wrist"][whole.episode >= 3])
    with pytest.raises(DataError, match="no episodes in split 'test'"):
        load(copy, split="test")
    with pytest.raises(DataError, match="no split 'dev', only train, val, test"):
        load(copy, split="dev")


# Interruptions


def test_finished_parts_are_kept_and_more_may_come(tmp_path, written):
    write_part(tmp_path, 0, PARTS[0], FPS, so101.JOINTS)
    finish(tmp_path, FPS, "so101_follower", so101.JOINTS, CAMERAS)
    video = next(tmp_path.rglob("*.mp4"))
    before = video.stat().st_mtime_ns, video.read_bytes()
    write_all(tmp_path)
    assert (video.stat().st_mtime_ns, video.read_bytes()) == before
    for path in (p.relative_to(written) for p in written.rglob("*") if p.is_file()):
        assert (tmp_path / path).read_bytes() == (written / path).read_bytes(), path


def test_a_killed_worker_leaves_only_whole_parts(tmp_path):
    code = (
        "from tests.export.test_lerobot import *\n"
        f"for part in range(50): write_part(Path({str(tmp_path)!r}), part, PARTS[part % 2], FPS, so101.JOINTS)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not part_exists(tmp_path, 2) and time.monotonic() < deadline:
        time.sleep(0.001)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    done = [part for part in range(50) if part_exists(tmp_path, part)]
    assert 3 <= len(done) < 50
    finish(tmp_path, FPS, "so101_follower", so101.JOINTS, CAMERAS)
    assert load(tmp_path).tasks == [e.task for part in done for e in PARTS[part % 2]]
    assert not list(tmp_path.rglob("*.partial"))


def test_finishing_may_fail_anywhere_and_be_repeated(copy, written, monkeypatch):
    replace, left = os.replace, 0

    def failing(a: Path, b: Path) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(a, b)

    monkeypatch.setattr(os, "replace", failing)
    for n in range(20):
        left = n
        try:
            finish(copy, FPS, "so101_follower", so101.JOINTS, CAMERAS)
        except DataError:
            with pytest.raises(DataError, match="holds no finished dataset"):
                load(copy)
        else:
            break
    assert n == 10  # two tables per part, and four files that exist once per dataset
    for path in (p.relative_to(written) for p in written.rglob("*") if p.is_file()):
        assert (copy / path).read_bytes() == (written / path).read_bytes(), path


def test_a_full_disk_is_reported_and_leaves_nothing_behind(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            write_part(tmp_path, 0, PARTS[0], FPS, so101.JOINTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


# Datasets of lerobot and of other schemas


def test_a_dataset_of_another_program_is_a_recording(copy, tmp_path):
    (copy / "meta/harmowam.json").unlink()
    with pytest.raises(DataError, match=r"was not recorded by harmowam .* see `harmowam data check"):
        load(copy)
    with pytest.raises(DataError, match="holds no camera calibrations"):
        read_cameras(tmp_path / "cameras")
    (tmp_path / "cameras").mkdir()
    for name, c in CAMERAS.items():
        (tmp_path / "cameras" / f"{name}.json").write_text(json.dumps(c.to_json()))
    store = Store(tmp_path / "store")
    for name, c in CAMERAS.items():
        known = new_record(
            "camera", name, c.to_json(), identity={"mount": "arm"}, parents=[], uncertainty={}, evidence={}
        )
        store.set_current(name, store.put(known), "test")
    for folder in (tmp_path / "cameras", store.root):
        assert {k: c.to_json() for k, c in read_cameras(folder).items()} == {k: c.to_json() for k, c in CAMERAS.items()}


def unsealed(folder: Path, schema: int) -> None:
    """As an earlier schema leaves it: without hashes."""
    ours = json.loads((folder / "meta/harmowam.json").read_text())
    (folder / "meta/harmowam.json").write_text(
        json.dumps({k: v for k, v in ours.items() if k not in ("files", "digest")} | {"schema": schema})
    )


def test_a_dataset_of_schema_2_has_no_hashes_and_is_read_all_the_same(copy):
    whole = load(copy)
    unsealed(copy, schema=2)
    assert np.array_equal(load(copy).state, whole.state)


def test_joint_angles_of_schema_1_are_turned_into_the_makers(copy):
    plain = load(copy)
    unsealed(copy, schema=1)
    data = load(copy)
    for old, new in ((plain.state, data.state), (plain.action, data.action)):
        assert np.allclose(new, so101.from_mirrored(old), atol=1e-6) and not np.allclose(new[:, 0], old[:, 0])


def test_parts_of_schema_1_are_not_extended(copy):
    """Rows of both conventions in one dataset could not be told apart."""
    for path in (copy / "meta/episodes").rglob("*.parquet"):
        table = pq.read_table(path)
        note = json.loads(table.schema.metadata[b"harmowam"])
        del note["schema"]
        pq.write_table(table.replace_schema_metadata({"harmowam": json.dumps(note)}), path)
    with pytest.raises(DataError, match="holds joint angles of another version: collect into a new folder"):
        finish(copy, FPS, "so101_follower", so101.JOINTS, CAMERAS)


def test_pictures_of_another_size_go_through_the_robots_pre_processing(tmp_path):
    native = {"front": camera("front", 160, 120, (-0.1, 0.02, 0.0, 0.0))}
    e = dataclasses.replace(episode(0, 12), images={"front": film(12, 0, 160, 120)})
    write_part(tmp_path, 0, [e], FPS, so101.JOINTS)
    finish(tmp_path, FPS, "so101_follower", so101.JOINTS, native)
    data = load(tmp_path, cameras=("front",))
    target = policy_camera(native["front"])
    warp = Warp(native["front"], target, mean=(0, 0, 0), std=(1, 1, 1), dtype="uint8")
    error = np.abs(data.images["front"].astype(int) - np.stack([warp(p) for p in e.images["front"]]))
    assert error.mean() <= 1 and data.cameras["front"].to_json() == target.to_json()


peers = pytest.mark.skipif(not PEERS.exists(), reason="no lerobot: ./build.sh peers")
LEROBOT_READS = """
import sys, numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
data = LeRobotDataset("harmowam/test", root=sys.argv[1], video_backend="pyav")
rows = [data[i] for i in range(len(data))]
keys = [k for k in rows[0] if k != "task"]
np.savez(sys.argv[2], tasks=np.array([r["task"] for r in rows]), episodes=data.num_episodes,
         mean=data.meta.stats["action"]["mean"], names=np.array(data.meta.names["action"]),
         **{k: np.stack([r[k].numpy() for r in rows]) for k in keys})
"""


def lerobot(code: str, *args: object, home: Path) -> None:
    command = [str(PEERS), "-W", "ignore", "-c", code, *map(str, args)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@peers
def test_lerobot_reads_what_we_write(written, tmp_path):
    lerobot(LEROBOT_READS, written, tmp_path / "rows.npz", home=tmp_path)
    theirs, ours = np.load(tmp_path / "rows.npz"), load(written)
    assert theirs["episodes"] == len(EPISODES) and theirs["names"].tolist() == [f"{j}.pos" for j in so101.JOINTS]
    assert np.array_equal(theirs["observation.state"], ours.state) and np.array_equal(theirs["action"], ours.action)
    assert theirs["tasks"].tolist() == [ours.tasks[e] for e in ours.episode]
    frame = np.concatenate([np.arange(len(e.state)) for e in EPISODES])
    assert np.array_equal(theirs["index"], np.arange(len(ours.state))) and np.array_equal(theirs["frame_index"], frame)
    assert np.array_equal(theirs["episode_index"], ours.episode) and np.allclose(theirs["timestamp"], frame / FPS)
    assert np.allclose(theirs["mean"], ours.action.mean(0), atol=1e-6)
    for name, pictures in ours.images.items():
        error = np.abs(np.rint(theirs[f"observation.images.{name}"] * 255).astype(int) - pictures)
        assert error.max() <= 1, name


def test_what_lerobot_recorded_is_read(tmp_path):
    """The dataset was recorded by lerobot 0.4.4 through `tests/export/golden.py`."""
    check_recorded(Path(shutil.copytree(golden.FOLDER, tmp_path / "set")))


@peers
def test_what_lerobot_records_here_is_read(tmp_path):
    golden.record(PEERS, tmp_path / "set")
    check_recorded(tmp_path / "set")


def check_recorded(folder: Path) -> None:
    """Compare lerobot's dataset of `golden.films()` with what we read from it. Its jaw, which was drawn like the other
    joints, becomes one of 0 to 100."""
    for column in ("observation.state", "action"):
        for path in (folder / "data").rglob("*.parquet"):
            edit_column(path, column, lambda rows: [[*r[:5], r[5] + 50] for r in rows])
    state, films = golden.state_and_action()[0], golden.films()
    native = {name: camera(name, *golden.SIZE) for name in films}
    data, _ = read(examine(folder, How(units="degrees", calibration=native)), 20.0)
    assert data.tasks == ["task 0", "task 1"] and data.episode.tolist() == [0] * 10 + [1] * 11 and not data.extra
    assert np.allclose(data.state[:, :5], np.radians(state[:, :5]), atol=1e-6)
    for name, pictures in films.items():
        warp = Warp(native[name], policy_camera(native[name]), mean=(0, 0, 0), std=(1, 1, 1), dtype="uint8")
        wanted = np.stack([warp(p) for p in pictures]).astype(int)
        # lerobot's H.264 is of low quality, but each picture is nearest to its own.
        distance = np.abs(data.images[name][:, None].astype(int) - wanted[None]).mean((2, 3, 4))
        assert np.array_equal(distance.argmin(1), np.arange(21)) and distance.diagonal().max() <= 5, name
