"""A fourth arm family, added as docs/ARCHITECTURE.md describes: a Python file, a robot file, and a MuJoCo file to
simulate it. No other file is changed, and the tests of all families pass for it, too."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = ROOT / "tests/toy_family"
PACKAGES = ("common", "firmware_bridge", "calibration", "runtime", "sim", "harmowam", "tests")
TRIED = ("tests/firmware_bridge/test_families.py", "tests/sim/test_arms.py")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The project's files, and three more."""
    made = tmp_path_factory.mktemp("project")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, made / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", made)
    shutil.copy(FILES / "toy.py", made / "firmware_bridge/arms")
    for name in ("toy.toml", "sim_toy.toml"):  # a real robot, and its simulation
        text = (FILES / "toy.toml").read_text()
        simulated = "true" if name.startswith("sim_") else "false"
        (made / "runtime/robots" / name).write_text(text.replace("simulated = true", f"simulated = {simulated}"))
    shutil.copy(FILES / "toy.xml", made / "sim/assets/arms")
    return made


def run(tree, *command):
    own = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run([sys.executable, *command], cwd=tree, env=own, capture_output=True, text=True, timeout=300)


def test_it_is_known_by_its_name(tree):
    asked = (
        "from runtime.robot import load_robot as r; from firmware_bridge.arms import FAMILIES; "
        "print(r('toy').family.NAME, *FAMILIES)"
    )
    done = run(tree, "-c", asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["toy", "koch", "so101", "toy", "viperx"]


def test_the_tests_of_every_family_hold_for_it(tree):
    """Kinematics, limits, shapes, LeRobot's names, mink; and its simulated arm, driven over its own servo bus."""
    done = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "toy and not guard", *TRIED)
    assert done.returncode == 0, done.stdout[-3000:]
    counted = re.search(r"(\d+) passed", done.stdout)
    assert counted is not None and int(counted[1]) >= 18
