"""The overview in the film of a simulated run: the scene as it was at each picture, rendered afterwards."""

import json
import os
import subprocess
import sys

import numpy as np

from firmware_bridge.arms import FAMILIES
from harmowam.page import write_page
from runtime.robot import SHIPPED
from sim.overview import SCENE, SIZE, overview, read_states, write_state
from sim.trace import seeded_start
from sim.world import World
from tests.runtime.test_report import recorded
from tests.runtime.test_timeline import RUN
from tests.tiny import tiny_chunk_bundle

TASK = "put the red cube on the plate"
CONFIG = {"seed": 3, "task": TASK, "task_drawn": False, "robot_file": (SHIPPED / "sim_so101.toml").read_text()}


def red(picture):
    """How many pixels are red, and the mean of their columns."""
    r, g, b = np.moveaxis(picture.astype(int), -1, 0)
    found = np.argwhere((r > 80) & (r > 2 * g) & (r > 2 * b))
    return len(found), found[:, 1].mean() if len(found) else 0.0


def test_the_overview_shows_the_things_where_they_were_at_that_picture(tmp_path):
    """A cube that was carried 8 cm is elsewhere in the later picture; a time without a state has none."""
    world = World(layout=seeded_start(3, FAMILIES["so101"], TASK))
    cube = world.free_joint("red_cube")
    assert cube is not None
    with (tmp_path / SCENE).open("wb", buffering=0) as states:
        write_state(states, 10, world.visible)
        world.data.qpos[cube + 1] += 0.08
        write_state(states, 20, world.visible)
    with overview(tmp_path, CONFIG) as at:
        assert at is not None
        first, later = at(10), at(20)
        assert at(15) is None
    assert first.shape == (SIZE[1], SIZE[0], 3)
    (seen, before), (still, after) = red(first), red(later)
    assert min(seen, still) > 100 and abs(after - before) > 40


def test_a_program_that_has_not_chosen_how_mujoco_draws_has_an_overview_too(tmp_path):
    with (tmp_path / SCENE).open("wb", buffering=0) as states:
        write_state(states, 10, World(layout=seeded_start(3, FAMILIES["so101"], TASK)).visible)
    program = (
        "import json, sys; from pathlib import Path; from sim.overview import overview\n"
        "with overview(Path(sys.argv[1]), json.loads(sys.argv[2])) as at: print(at(10).shape)"
    )
    bare = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    command = [sys.executable, "-c", program, str(tmp_path), json.dumps(CONFIG)]
    done = subprocess.run(command, capture_output=True, text=True, env=bare, check=False)
    assert done.stdout.strip() == str((SIZE[1], SIZE[0], 3)), done.stderr[-2000:]


def test_a_file_of_states_that_was_cut_off_is_read_up_to_there(tmp_path):
    with (tmp_path / SCENE).open("wb", buffering=0) as states:
        for t in (1, 2):
            write_state(states, t, np.array([0.5, t]))
    (tmp_path / SCENE).write_bytes((tmp_path / SCENE).read_bytes()[:-1])
    assert {t: v.tolist() for t, v in read_states(tmp_path / SCENE, 2).items()} == {1: [0.5, 1.0]}


def test_a_run_of_a_real_arm_an_older_one_and_one_without_states_have_no_overview(tmp_path):
    with overview(tmp_path, CONFIG) as at:
        assert at is None
    (tmp_path / SCENE).write_bytes(bytes(32))
    real = {**CONFIG, "robot_file": (SHIPPED / "so101.toml").read_text()}
    older = {k: v for k, v in CONFIG.items() if k != "task_drawn"}
    for config in (real, older, {}):
        with overview(tmp_path, config) as at:
            assert at is None


def test_a_scene_that_cannot_be_rendered_leaves_page_and_film_without_an_overview(tmp_path, capsys):
    recorded(tmp_path / "run.mcap", ticks=10)
    (tmp_path / SCENE).write_bytes(bytes(32))
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "seed": -1}))
    write_page(tiny_chunk_bundle(tmp_path / "bundle", np.zeros((4, 6))), tmp_path, RUN)
    assert (tmp_path / "report.html").is_file() and (tmp_path / "episode.mp4").is_file()
    assert "the film has no overview, because the scene cannot be rendered here (" in capsys.readouterr().err
