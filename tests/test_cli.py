"""The `harmowam` command: quick help, and one sentence with exit code 2 for everything the user can mend."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from typing import Any

import click
import pytest

from firmware_bridge.bus.port import Port
from harmowam.cli import main
from tests.command import drive, harmowam, refusal
from tests.rig import SlotCameras
from tests.tiny import TASK, tiny_bundle

pytestmark = pytest.mark.wall_clock

COMMANDS = sorted(main.commands)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["train", "--play"], "--play means nothing without --baseline"),
        (["train", "--baseline", "act", "--from", "x.safetensors"], "--from means nothing with --baseline"),
        (["train", "--baseline", "act", "--plan", "world=5"], "there is no stage 'world', choose act"),
        (["export", "--units", "rad"], "--units means nothing without --dataset"),
        (["export", "--cameras", "c"], "--cameras means nothing without --dataset"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options, said):
    assert said in refusal(*options)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_offers_its_numbers(command):
    result = harmowam(command, "--help")
    assert result.exit_code == 0 and "Usage:" in result.output and "--json" in result.output


def test_help_loads_no_other_package():
    listing = "import sys, harmowam.cli; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert not {"numpy", "cv2", "runtime", "export", "sim", "torch"} & set(done.stdout.split())


def test_driving_needs_no_simulator_in_memory():
    listing = "import sys, harmowam.live, sim.server; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert not {"mujoco", "torch", "export", "matplotlib", "onnxruntime"} & set(done.stdout.split())


def newer(path):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "schema": 7}))


BUNDLES: dict[str, tuple[Any, str]] = {
    "missing": (shutil.rmtree, r"is not a bundle.*make out/so101.bundle with `\./build.sh bundle`"),
    "damaged": (lambda b: (b / "onnx/fast.onnx").write_bytes(b"x"), "does not match its hash: copy it again"),
    "incomplete": (lambda b: (b / "onnx/fast.onnx").unlink(), "is missing: copy it again"),
    "newer": (newer, "has bundle schema 7, this version reads 3: upgrade harmowam"),
}


@pytest.mark.parametrize("command", ["run", "profile", "evaluate"])
@pytest.mark.parametrize("case", BUNDLES)
def test_a_bad_bundle_is_refused(bundle, tmp_path, command, case):
    spoil, sentence = BUNDLES[case]
    spoil(shutil.copytree(bundle, tmp_path / "b"))
    assert re.search(sentence, refusal(command, "--bundle", tmp_path / "b"))


@pytest.mark.parametrize("command", ["run", "profile", "evaluate"])
def test_an_unknown_task_is_refused_with_the_known_ones(bundle, command):
    said = refusal(command, "--bundle", bundle, "--task", "put the red cup on the plate")
    assert "does not know the task 'put the red cup on the plate': use one of 'put the red cube on the plate'" in said


def test_a_bad_robot_and_a_missing_task_are_refused(bundle, tmp_path):
    assert "give a path or one of" in refusal("run", "--bundle", bundle, "--robot", tmp_path / "none.toml")
    assert "no task was given: name one with --task ('put the" in refusal("run", "--bundle", bundle, "--robot", "so101")


def test_a_task_follows_only_a_policy_that_says_when_it_is_done(bundle, tmp_path):
    said = refusal("run", "--bundle", bundle, "--task", TASK, "--then", TASK)
    assert "never says that a task is done, so nothing follows: leave --then out" in said
    able = tiny_bundle(tmp_path, done=0.5)
    said = refusal("run", "--bundle", able, "--task", TASK, "--then", "put the red cup on the plate")
    assert "does not know the task 'put the red cup on the plate'" in said


def test_what_is_missing_busy_or_silent_is_refused(bench, bundle, tmp_path):
    said = refusal(*drive(bench, bundle, "--port", tmp_path / "none"))
    assert "none does not exist: plug the adapter in" in said
    holder = Port.open(bench.server.path)
    assert "is in use by another process: stop it" in refusal(*drive(bench, bundle))
    holder.close()
    master, slave = pty.openpty()
    assert "no servo answers on" in refusal(*drive(bench, bundle, "--port", os.ttyname(slave)))
    os.close(master)
    os.close(slave)
    bench.servos.faults.inject("silent-servo", servo=4)
    (tmp_path / "run.mcap").write_bytes(b"made before")
    assert "servo 4 (wrist_flex) does not answer" in refusal(*drive(bench, bundle, "--log", tmp_path / "run.mcap"))
    assert [p.read_bytes() for p in tmp_path.glob("run.mcap*")] == [b"made before"]


def test_a_missing_camera_and_another_resolution_are_refused_and_an_energised_arm_is_held(bench, bundle):
    for servo in range(1, 7):
        bench.servos.put(servo, "torque_enable", 1)  # the arm was left energised
    text = bench.robot_file.read_text()
    bench.robot_file.write_text(text.replace("camera-wrist.slot", "camera-gone.slot"))
    assert "camera 'wrist' is missing" in refusal(*drive(bench, bundle))
    bench.robot_file.write_text(text.replace("[camera.wrist]", "[camera.hand]"))
    assert "the bundle needs camera 'wrist'" in refusal(*drive(bench, bundle))
    bench.robot_file.write_text(text)
    bench.cameras.close()
    bench.cameras = SlotCameras(bench.folder, size=(640, 480))
    assert "gives 640x480, the robot file says 320x240: correct the robot file" in refusal(*drive(bench, bundle))
    assert bench.torque() == [1] * 6


def test_a_recording_that_cannot_be_written_is_refused_before_the_arm_is_touched(bench, bundle):
    assert "is a file: name a folder with --record" in refusal(*drive(bench, bundle, "--record", bench.robot_file))
    folder = harmowam(*drive(bench, bundle, "--log", bench.robot_file.parent))
    assert folder.exit_code == 2 and "is a directory" in folder.stderr
    said = refusal(*drive(bench, bundle, "--record", bench.robot_file / "r"))
    assert "cannot be made (Not a directory): name a folder with --record" in said


def test_a_demo_whose_folder_cannot_be_made_is_refused():
    assert "cannot be made (Not a directory): name a folder with --out" in refusal("demo", "--out", "/dev/null/demo")


def test_runs_that_make_no_sense_are_refused_before_the_arm_is_touched(bench, bundle, tmp_path):
    for seconds in ("0", "-1", "nan"):
        assert "makes no sense" in refusal(*drive(bench, bundle, "--seconds", seconds))
    (tmp_path / "file").touch()
    assert "name a folder with --record" in refusal(*drive(bench, bundle, "--record", tmp_path / "file"))
    both = drive(bench, bundle, "--record", tmp_path / "r", "--log", tmp_path / "run.mcap")
    assert "--record writes a log, too" in refusal(*both)
    assert "brings its own bus" in refusal("run", "--bundle", bundle, "--port", bench.server.path)
    assert bench.torque() == [0] * 6


def verbs(command, path=()):
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from verbs(command.get_command(context, name), (*path, name))
    else:
        yield path, command


@pytest.mark.parametrize(
    ("path", "command"), list(verbs(main)), ids=lambda x: " ".join(x) if isinstance(x, tuple) else ""
)
def test_every_verb_and_option_says_what_it_is(path, command):
    assert command.get_short_help_str(200)
    assert not [p.opts for p in command.params if isinstance(p, click.Option) and not p.help]
    if len(path) == 1:  # `harmowam --help` shows it in full on a terminal of 80 columns
        assert len(command.get_short_help_str(200)) <= 66 and not command.get_short_help_str(66).endswith("...")
