"""Processes of ours import nothing from the folder they are started in."""

import subprocess

import pytest

from common.python import code_command, module_command

MODULES = ("firmware_bridge.motion.guard", "firmware_bridge.motion.motor", "runtime.cameras.process", "sim.server")


@pytest.fixture
def planted(tmp_path):
    """A folder with modules of the standard library's names, which leave a mark when they are imported."""
    for name in ("argparse", "json", "runpy", "signal", "numpy"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w').close(); raise SystemExit(9)")
    return tmp_path


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_run_without_looking_into_the_current_folder(planted, module):
    done = subprocess.run(module_command(module, "--help"), cwd=planted, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    assert not (planted / "imported").exists()


def test_code_is_run_without_looking_into_the_current_folder(planted):
    done = subprocess.run(
        code_command("import json; print(json.dumps([1]))"), cwd=planted, capture_output=True, check=True
    )
    assert done.stdout == b"[1]\n" and not (planted / "imported").exists()


def test_its_arguments_arrive_as_with_python_m(tmp_path):
    (tmp_path / "shows.py").write_text("import sys; print(__name__, sys.argv[1:])")
    where = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    done = subprocess.run(module_command("shows", "--a", "b c"), env=where, capture_output=True, text=True, check=True)
    assert done.stdout == "__main__ ['--a', 'b c']\n"
