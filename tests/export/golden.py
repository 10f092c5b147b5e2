"""A dataset recorded by lerobot, kept in `golden/`: `python -m tests.export.golden` records it again with .venv-peers
(./build.sh peers), or with the interpreter `PEERS=/path/to/python`.

Two episodes of ten and eleven rows, two cameras, state and action in degrees.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from firmware_bridge.arms.so101 import FAMILY as so101
from tests.dataset import film

FOLDER = Path(__file__).with_name("golden") / "lerobot-0.4.4"
SIZE = (160, 120)
LEROBOT_RECORDS = """
import sys, numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
films, joints = dict(np.load(sys.argv[2])), [n + ".pos" for n in sys.argv[3:]]
vector = {"dtype": "float32", "shape": (6,), "names": joints}
picture = {"dtype": "video", "shape": (120, 160, 3), "names": ["height", "width", "channels"]}
features = {k: picture if "images" in k else vector for k in films}
how = {"root": sys.argv[1], "robot_type": "so101_follower", "vcodec": "h264"}
data = LeRobotDataset.create("harmowam/test", 20, features, **how)
for episode, rows in enumerate((range(0, 10), range(10, 21))):
    for i in rows:
        data.add_frame({k: v[i] for k, v in films.items()} | {"task": "task %d" % episode})
    data.save_episode()
data.finalize()
"""


def state_and_action() -> np.ndarray:
    """Joint angles float32[2,21,6], in degrees, of the arm and of its leader."""
    return np.random.default_rng(0).uniform(-50, 50, (2, 21, 6)).astype(np.float32)


def films() -> dict[str, np.ndarray]:
    return {"front": film(21, 0, *SIZE), "wrist": film(21, 1, *SIZE)}


def record(python: Path, folder: Path) -> None:
    """Let the lerobot of interpreter `python` record into `folder`. Raises CalledProcessError with its output."""
    state, action = state_and_action()
    columns = {"observation.state": state, "action": action} | {
        f"observation.images.{k}": v for k, v in films().items()
    }
    with tempfile.TemporaryDirectory() as home:
        np.savez(Path(home) / "films.npz", allow_pickle=False, **columns)
        command = [str(python), "-W", "ignore", "-c", LEROBOT_RECORDS, str(folder), f"{home}/films.npz", *so101.JOINTS]
        env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": home, "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, env=env, check=True)


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.parent.mkdir(exist_ok=True)
    record(Path(os.environ.get("PEERS", ".venv-peers/bin/python")), FOLDER)
