"""What takes a minute says how long it has taken and how long it takes; what libraries and pip say goes to a file."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harmowam.progress import behind, paced
from tests.command import harmowam

ROOT = Path(__file__).parents[1]


def test_each_step_says_elapsed_and_expected_time():
    now = [100.0]
    said: list[str] = []
    told = paced(said.append, 55, lambda: now[0])
    for seconds, line in ((0, "fast: torch to ONNX"), (12, "fast: INT8"), (80, "fast: compared with FP32")):
        now[0] = 100.0 + seconds
        told(line)
    assert said == [
        "  0 s of about 55: fast: torch to ONNX",
        " 12 s of about 55: fast: INT8",
        " 80 s (about 55 on two idle cores): fast: compared with FP32",
    ]


def test_what_libraries_print_goes_to_a_file_of_this_run(tmp_path, capsys):
    (tmp_path / "so101.log").write_text("of an earlier export\n")
    with behind(tmp_path / "so101.bundle", 55, lambda line: print(line, file=sys.stderr)) as told:
        told("fast: INT8")
        print("Finding optimal threshold")
        print("Number of tensors : 3")
    seen = capsys.readouterr()
    assert seen.out == "" and "fast: INT8" in seen.err
    assert (tmp_path / "so101.log").read_text() == "Finding optimal threshold\nNumber of tensors : 3\n"


def test_where_nothing_is_printed_there_is_no_file(tmp_path):
    with behind(tmp_path / "b.bundle", 55, print), pytest.raises(ValueError):
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_a_training_that_is_interrupted_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("harmowam.train.read", interrupted)
    done = harmowam("train", "--run", tmp_path / "mine")
    said = f"stopped: the same command goes on; {tmp_path / 'mine'} keeps the training's state, saved once a minute"
    assert done.exit_code == 130 and done.stderr.strip() == said


def build_sh(text, log):
    """What a line of shell gives that has the functions of build.sh."""
    script = f". {ROOT}/build.sh; INSTALL_LOG={shlex.quote(str(log))}; {text}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


def test_pip_says_its_own_in_a_file_only(tmp_path):
    pip = f"{shlex.quote(sys.executable)} -m pip install --no-index pytest"
    done = build_sh(f'paced "1 minute" {pip}', tmp_path / "out" / "install.log")
    assert done.returncode == 0, done.stderr
    assert "already satisfied" in (tmp_path / "out" / "install.log").read_text()
    assert "already satisfied" not in done.stdout and "about 1 minute" in done.stdout and "done after" in done.stdout


def test_what_pip_cannot_install_is_said_here_and_ends_the_script(tmp_path):
    pip = f"{shlex.quote(sys.executable)} -m pip install --no-index no-such-package-as-this"
    done = build_sh(f'paced "1 minute" {pip}; echo went on', tmp_path / "install.log")
    assert done.returncode == 1 and "No matching distribution" in done.stderr
    assert "failed after" in done.stdout and "went on" not in done.stdout


def test_a_mistyped_command_of_build_sh_is_named():
    done = subprocess.run([ROOT / "build.sh", "dmeo"], capture_output=True, text=True, check=False)
    said, _, names = done.stderr.strip().partition(" lists ")
    assert (done.returncode, done.stdout) == (2, "")
    assert said == "build.sh: There is no command 'dmeo'. ./build.sh --help"
    shown = subprocess.run([ROOT / "build.sh", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(f"./build.sh {name} " in shown for name in names.rstrip(".").split(", "))
