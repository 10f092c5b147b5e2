"""Files and folders that the user may not read: said in one sentence with what to do, and never taken for damaged."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from calibration.camera import Camera
from calibration.store import Store, new_record
from common.files import barred
from runtime.bundle import Bundle
from tests.dataset import write_all
from tests.once import once
from tests.runtime.recorded import record
from tests.tiny import tiny_bundle

Case = tuple[Path, Path, list[str]]
K = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
ROOT = Path(__file__).parents[1]


def calibrated(root: Path) -> list[str]:
    """A store in which two calibrations of the camera "front" were in use, one after the other; their hashes."""
    store, digests = Store(root), []
    for fx in (300.0, 301.0):
        result = Camera("front", 320, 240, K * [[fx / 300], [1], [1]], np.zeros(5), np.eye(4)).to_json()
        made = new_record("camera", "front", result, identity={}, parents=[], uncertainty={"px": 0.1}, evidence={})
        digests.append(store.put(made))
        store.set_current("front", digests[-1], "test")
    return digests


BUNDLES = (".", "manifest.json", "onnx", "onnx/fast.onnx")
DATASETS = (".", "meta/info.json", "meta/harmowam.json", "meta/episodes", "data/chunk-000/file-000.parquet")
TRAINED = ("checkpoint", "state", "block", "stage")  # safetensors says "No such file" of one without permission
VIDEO = "videos/observation.images.front/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Case -> the file or folder that may not be read, exit code and output; all played in one process."""
    whole = once(tmp_path_factory, "whole", _whole)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)  # not in pytest's own folder, which only its owner may enter
        base.chmod(0o755)
        shutil.copytree(whole, base / "good")
        subprocess.run(["chmod", "-R", "a+rX", base], check=True)
        cases = list(_cases(base))
        for _, path, _ in cases:
            path.chmod(0)
        warm = [[a.replace(str(case), str(base / "good")) for a in args] for case, _, args in cases]
        asked = {"warm": list(map(list, dict.fromkeys(map(tuple, warm)))), "then": [args for *_, args in cases]}
        done = subprocess.run(
            [sys.executable, "-m", "tests.as_nobody"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        yield {case.name: (path, *out) for (case, path, _), out in zip(cases, json.loads(done.stdout))}
        for _, path, _ in cases:
            path.chmod(0o755)


def _whole(folder: Path) -> None:
    record(folder / "log.mcap", Bundle.load(tiny_bundle(folder)))
    calibrated(folder / "calibration")
    write_all(folder / "dataset")
    (folder / "robot.toml").write_text((ROOT / "runtime/robots/sim_so101.toml").read_text())
    (folder / "before.json").write_text("{}")
    (folder / "00000.safetensors").write_bytes(b"")
    (folder / "pictures").mkdir()
    (folder / "pictures/one.png").write_bytes(b"")
    (folder / "run").mkdir()
    (folder / "run/config.json").write_text("{}")


def _cases(base: Path) -> Iterator[Case]:
    """Folder of the case (a copy of the good one), what may not be read there, command."""

    def case(name: str, part: str, *args: str) -> Case:
        folder = Path(shutil.copytree(base / "good", base / name))
        return folder, folder / part, [a.replace("@", str(folder)) for a in args]

    bundle = next(p.name for p in (base / "good").iterdir() if (p / "manifest.json").exists())
    for k, part in enumerate(BUNDLES):
        yield case(f"bundle{k}", f"{bundle}/{part}", "replay", "@/log.mcap", "--bundle", f"@/{bundle}")
    yield case("log", "log.mcap", "replay", "@/log.mcap")
    yield case("robot", "robot.toml", "calibrate", "history", "--robot", "@/robot.toml", "--store", "@/calibration")
    yield case("against", "before.json", "profile", "--against", "@/before.json")
    yield case("run", "run/config.json", "report", "@/run")
    store = ("--robot", "@/robot.toml", "--store", "@/calibration")
    yield case("store", "calibration", "calibrate", "history", *store)
    yield case("camera", "calibration/front", "calibrate", "history", *store)
    yield case("pointer", "calibration/front/current", "calibrate", "history", *store)
    yield case("moves", "calibration/front/log.jsonl", "calibrate", "rollback", "front", *store)
    before = json.loads((base / "good/calibration/front/log.jsonl").read_text().splitlines()[0])["to"]
    yield case("record", f"calibration/front/{before}.json", "calibrate", "rollback", "front", *store)
    for k, part in enumerate((*DATASETS, VIDEO)):
        yield case(f"dataset{k}", f"dataset/{part}", "load-dataset", "@/dataset")
    for kind in TRAINED:
        yield case(kind, "00000.safetensors", "load-trained", kind, "@/00000.safetensors")
    images = ("calibrate", "intrinsics", *store, "--images")
    yield case("picture", "pictures/one.png", *images, "@/pictures/*.png")
    yield case("pictures", "pictures", *images, "@/pictures/*.png")


NAMES = [f"bundle{k}" for k in range(len(BUNDLES))]
NAMES += ["log", "robot", "against", "run", "store", "camera", "pointer", "moves", "record"]
NAMES += [f"dataset{k}" for k in range(len(DATASETS) + 1)]
NAMES += [*TRAINED, "picture", "pictures"]


@pytest.mark.parametrize("name", NAMES)
def test_what_may_not_be_read_is_named_with_the_command_that_mends_it(said, name):
    path, code, output = said[name]
    path = path.resolve()
    assert code == 2, output
    mend = rf"run `(sudo )?chmod (-R )?[au]\+\w+ {re.escape(str(path))}`"
    assert re.fullmatch(
        rf"error: {re.escape(str(path))} may not be (read|entered) by the user \S+: {mend}.*\.\n", output
    )
    assert "damaged" not in output and "missing" not in output


def test_what_may_be_read_or_is_not_there_or_is_a_device_is_not_barred(tmp_path):
    (tmp_path / "there").touch()
    assert [barred(p) for p in (tmp_path, tmp_path / "there", tmp_path / "not there", "/dev/null")] == [""] * 4
