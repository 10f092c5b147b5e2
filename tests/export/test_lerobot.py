"""The dataset's format: what is written comes back, lerobot reads it, what lerobot records is read, bad folders are said."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from calibration.camera import Camera
from export.data import policy_camera
from export.lerobot import JOINTS, DataError, Episode, finish, load, part_exists, video, write_part
from runtime.kinematics import SO101_LOWER, SO101_UPPER
from runtime.preprocess import Warp

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers/bin/python"
FPS = 20.0
TASKS = ("put the red cube on the blue plate", "press the buttons: left, right")


def camera(name: str, width: int = 96, height: int = 96, D: tuple[float, ...] = ()) -> Camera:
    K = np.array([[height * 1.2, 0, (width - 1) / 2], [0, height * 1.2, (height - 1) / 2], [0, 0, 1]])
    return Camera(name, width, height, K, np.array(D), np.eye(4) if name == "front" else None)


CAMERAS = {name: camera(name) for name in ("front", "wrist")}


def film(rows: int, seed: int, width: int = 96, height: int = 96) -> np.ndarray:
    """A soft background, a sharp little square that moves and a disc that does not: uint8[rows,height,width,3]."""
    rng = np.random.default_rng(seed)
    soft = cv2.resize(rng.integers(60, 200, (6, 6, 3)).astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    out = np.repeat(soft[None], rows, 0)
    for i, picture in enumerate(out):
        x, y = (10 + 3 * i) % (width - 20), (20 + i) % (height - 20)
        cv2.rectangle(picture, (x, y), (x + 7, y + 7), (220, 30, 30), -1)
        cv2.circle(picture, (width // 2, height - 25), 9, (30, 60, 210), -1)
    return out


def episode(seed: int, rows: int) -> Episode:
    rng = np.random.default_rng(seed)
    state, action = rng.uniform(-1.5, 1.5, (2, rows, 6)).astype(np.float32)
    images = {"front": film(rows, seed), "wrist": film(rows, 100 + seed)}
    extra: dict[str, float | int | str] = {
        "task_id": TASKS[seed % 2].split()[0],
        "play": seed % 2,
        "seed": 1000 + seed,
        "friction": 0.5 * seed,
    }
    return Episode(images, state, action, TASKS[seed % 2], extra)


PARTS = {0: [episode(0, 23), episode(1, 12)], 1: [episode(2, 31)], 4: [episode(3, 9), episode(5, 1)]}
EPISODES = [e for part in PARTS.values() for e in part]


def write_all(folder: Path) -> None:
    for part, episodes in PARTS.items():
        write_part(folder, part, episodes, FPS, JOINTS)
    finish(folder, FPS, "so101_follower", JOINTS, CAMERAS)


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


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_column(path: Path, column: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = pq.read_table(path)
    i = table.schema.get_field_index(column)
    values = change(table[column].to_pylist())
    pq.write_table(table.set_column(i, table.schema.field(i), pa.array(values, table.schema.field(i).type)), path)


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
            assert (stream.codec.canonical_name, stream.pix_fmt, stream.base_rate) == ("h264", "yuv444p", 20)
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
    write_part(tmp_path, 0, PARTS[0], FPS, JOINTS)
    finish(tmp_path, FPS, "so101_follower", JOINTS, CAMERAS)
    video = next(tmp_path.rglob("*.mp4"))
    before = video.stat().st_mtime_ns, video.read_bytes()
    write_all(tmp_path)
    assert (video.stat().st_mtime_ns, video.read_bytes()) == before
    for path in (p.relative_to(written) for p in written.rglob("*") if p.is_file()):
        assert (tmp_path / path).read_bytes() == (written / path).read_bytes(), path


def test_a_killed_worker_leaves_only_whole_parts(tmp_path):
    code = (
        "from tests.export.test_lerobot import *\n"
        f"for part in range(50): write_part(Path({str(tmp_path)!r}), part, PARTS[part % 2], FPS, JOINTS)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not part_exists(tmp_path, 2) and time.monotonic() < deadline:
        time.sleep(0.001)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    done = [part for part in range(50) if part_exists(tmp_path, part)]
    assert 3 <= len(done) < 50
    finish(tmp_path, FPS, "so101_follower", JOINTS, CAMERAS)
    assert load(tmp_path).tasks == [e.task for part in done for e in PARTS[part % 2]]
    assert not list(tmp_path.rglob("*.partial"))


def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            write_part(tmp_path, 0, PARTS[0], FPS, JOINTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


# What cannot be used


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


FRONT = "videos/observation.images.front/chunk-000/file-000.mp4"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing there": (shutil.rmtree, "holds no finished dataset: collect one"),
    "not finished": (without("meta/info.json"), "holds no finished dataset: collect one"),
    "older format": (lambda f: edit_json(f / "meta/info.json", codebase_version="v2.1"), "is LeRobotDataset v2.1, v3 is read"),
    "info damaged": (shortened("meta/info.json", 0.5), "info.json cannot be read"),
    "info without rate": (lambda f: edit_json(f / "meta/info.json", fps=None), "'fps' is None"),
    "camera missing": (features(lambda x: x.pop("observation.images.wrist")), "no camera 'wrist', only front: record it with"),
    "camera as pictures": (features(lambda x: x["observation.images.wrist"].update(dtype="image")), "is stored as image"),
    "no action": (features(lambda x: x.pop("action")), "'action' of .* is None, not"),
    "other arm": (features(lambda x: x["action"].update(names=["waist.pos"], shape=[1])), r"is \['waist.pos'\], not"),
    "newer schema": (lambda f: edit_json(f / "meta/harmowam.json", schema=9), "has schema 9, this version reads 1: upgrade"),
    "no episodes": (lambda f: shutil.rmtree(f / "meta/episodes"), "holds no episodes: collect"),
    "video missing": (without(FRONT), "file-000.mp4 cannot be read .No such file.*: restore it"),
    "video truncated": (shortened(FRONT, 0.6), "file-000.mp4 cannot be read"),
    "video empty": (shortened(FRONT, 0), "file-000.mp4 cannot be read"),
    "video too short": (shorter_film, "file-000.mp4 is truncated, 15 of 35 pictures are missing: restore it"),
    "video of another size": (other_size, "pictures of 64x64 instead of 96x96"),
    "state not a number": (not_a_number("observation.state"), "'observation.state' in row 7 of episode 0 .* is not a number"),
    "action not a number": (not_a_number("action"), "'action' in row 7 of episode 0 .* is not a number: remove that episode"),
    "rows missing": (fewer_rows, "30 rows of episode 2 instead of 31: restore"),
    "table damaged": (shortened("data/chunk-000/file-000.parquet", 0.5), "file-000.parquet cannot be read"),
    "table missing": (without("data/chunk-000/file-004.parquet"), "file-004.parquet cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_dataset_that_cannot_be_used_is_said_in_one_sentence(copy, case):
    damage, sentence = BAD[case]
    damage(copy)
    with pytest.raises(DataError, match=sentence) as raised:
        load(copy)
    assert "\n" not in str(raised.value) and ": " in str(raised.value)


def test_another_rate_than_asked_for_is_refused(written):
    with pytest.raises(DataError, match="has 20 rows/s and 30 are asked for: record it at that rate"):
        load(written, fps=30)


def test_flipped_bits_in_a_video_are_said_or_harmless(copy):
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
        write_part(tmp_path, 0, episodes, FPS, JOINTS)
    assert not list(tmp_path.iterdir())


def test_parts_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(DataError, match="no finished part: collect"):
        finish(tmp_path, FPS, "so101_follower", JOINTS, CAMERAS)
    write_part(tmp_path, 0, PARTS[0], FPS, JOINTS)
    for wrong in ({"fps": 10.0}, {"joint_names": JOINTS[:5]}, {"cameras": {"front": CAMERAS["front"]}}):
        given: dict[str, Any] = {
            "fps": FPS,
            "robot_type": "so101_follower",
            "joint_names": JOINTS,
            "cameras": CAMERAS,
        } | wrong
        with pytest.raises(DataError, match="other joints or cameras than asked for"):
            finish(tmp_path, **given)
    with pytest.raises(DataError, match="camera 'wrist' stored 96x96 and its geometry is of 640x480"):
        finish(tmp_path, FPS, "so101_follower", JOINTS, CAMERAS | {"wrist": camera("wrist", 640, 480)})
    write_part(tmp_path, 1, PARTS[1], 10.0, JOINTS)
    with pytest.raises(DataError, match=r"file-001\.parquet was collected with other settings"):
        finish(tmp_path, FPS, "so101_follower", JOINTS, CAMERAS)


# Datasets that lerobot recorded


def test_units_and_cameras_must_be_known(copy):
    (copy / "meta/harmowam.json").unlink()
    with pytest.raises(DataError, match="does not say its units: add --units degrees"):
        load(copy)
    with pytest.raises(DataError, match=r"camera 'front' of .* has no calibration: put front\.json"):
        load(copy, units="degrees")
    with pytest.raises(DataError, match="stored 96x96 and its calibration is for 640x480"):
        load(copy, units="degrees", calibration={"front": camera("front", 640, 480), "wrist": CAMERAS["wrist"]})
    degrees, plain = load(copy, units="degrees", calibration=CAMERAS), load(copy, units="rad", calibration=CAMERAS)
    assert np.allclose(degrees.state[:, :5], np.radians(plain.state[:, :5]), atol=1e-6)
    jaw = SO101_LOWER[5] + plain.action[:, 5] / 100 * (SO101_UPPER[5] - SO101_LOWER[5])
    assert np.allclose(degrees.action[:, 5], jaw, atol=1e-6)


def test_our_units_cannot_be_overruled(written):
    with pytest.raises(DataError, match="says units rad, asked for are degrees: leave --units away"):
        load(written, units="degrees")


def test_pictures_of_another_size_go_through_the_robots_pre_processing(tmp_path):
    native = {"front": camera("front", 160, 120, (-0.1, 0.02, 0.0, 0.0))}
    e = dataclasses.replace(episode(0, 12), images={"front": film(12, 0, 160, 120)})
    write_part(tmp_path, 0, [e], FPS, JOINTS)
    finish(tmp_path, FPS, "so101_follower", JOINTS, native)
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
LEROBOT_RECORDS = """
import sys, numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
films, joints = dict(np.load(sys.argv[2])), [n + ".pos" for n in sys.argv[3:]]
vector = {"dtype": "float32", "shape": (6,), "names": joints}
picture = {"dtype": "video", "shape": (120, 160, 3), "names": ["height", "width", "channels"]}
features = {k: picture if "images" in k else vector for k in films}
data = LeRobotDataset.create("harmowam/test", 20, features, root=sys.argv[1], robot_type="so101_follower", vcodec="h264")
for episode, rows in enumerate((range(0, 10), range(10, 21))):
    for i in rows:
        data.add_frame({k: v[i] for k, v in films.items()} | {"task": "task %d" % episode})
    data.save_episode()
data.finalize()
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
    assert theirs["episodes"] == len(EPISODES) and theirs["names"].tolist() == [f"{j}.pos" for j in JOINTS]
    assert np.array_equal(theirs["observation.state"], ours.state) and np.array_equal(theirs["action"], ours.action)
    assert theirs["tasks"].tolist() == [ours.tasks[e] for e in ours.episode]
    frame = np.concatenate([np.arange(len(e.state)) for e in EPISODES])
    assert np.array_equal(theirs["index"], np.arange(len(ours.state))) and np.array_equal(theirs["frame_index"], frame)
    assert np.array_equal(theirs["episode_index"], ours.episode) and np.allclose(theirs["timestamp"], frame / FPS)
    assert np.allclose(theirs["mean"], ours.action.mean(0), atol=1e-6)
    for name, pictures in ours.images.items():
        error = np.abs(np.rint(theirs[f"observation.images.{name}"] * 255).astype(int) - pictures)
        assert error.max() <= 1, name


@peers
def test_what_lerobot_records_is_read(tmp_path):
    rng = np.random.default_rng(0)
    state, action = rng.uniform(-50, 50, (2, 21, 6)).astype(np.float32)
    films = {"front": film(21, 0, 160, 120), "wrist": film(21, 1, 160, 120)}
    columns = {"observation.state": state, "action": action} | {f"observation.images.{k}": v for k, v in films.items()}
    np.savez(tmp_path / "films.npz", allow_pickle=False, **columns)
    lerobot(LEROBOT_RECORDS, tmp_path / "set", tmp_path / "films.npz", *JOINTS, home=tmp_path)
    native = {name: camera(name, 160, 120) for name in films}
    data = load(tmp_path / "set", units="degrees", calibration=native, fps=20)
    assert data.tasks == ["task 0", "task 1"] and data.episode.tolist() == [0] * 10 + [1] * 11 and not data.extra
    assert np.allclose(data.state[:, :5], np.radians(state[:, :5]), atol=1e-6)
    for name, pictures in films.items():
        warp = Warp(native[name], policy_camera(native[name]), mean=(0, 0, 0), std=(1, 1, 1), dtype="uint8")
        wanted = np.stack([warp(p) for p in pictures]).astype(int)
        # lerobot's H.264 is of low quality, but each picture is nearest to its own.
        distance = np.abs(data.images[name][:, None].astype(int) - wanted[None]).mean((2, 3, 4))
        assert np.array_equal(distance.argmin(1), np.arange(21)) and distance.diagonal().max() <= 5, name
