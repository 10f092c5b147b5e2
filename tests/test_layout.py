"""The structure of the project: layers, what the robot's packages may load, and the dependencies' versions."""

from __future__ import annotations

import ast
import builtins
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.10", "3.11", "3.12")

IMPORT_ALL = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
found = [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
names = [name for name in found if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(json.dumps({"imported": names, "loaded": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def pins(python: str) -> dict[str, Version]:
    """The constraints file of one Python version, as name -> version."""
    lines = (ROOT / f"constraints/py{python.replace('.', '')}.txt").read_text().splitlines()
    found = (re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)", line) for line in lines)
    return {normalised(m[1]): Version(m[2]) for m in found if m}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    return [Requirement(text) for text in project["dependencies"] + extras]


def test_packages_import_only_lower_layers() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["firmware_bridge", "calibration", "runtime"])
def test_robot_packages_load_nothing_from_the_workstation(package: str) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, package], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["imported"], f"{package} has no modules: is the project installed?"
    unwanted = {"torch", "export", "sim", "harmowam", "mujoco", "onnx", "matplotlib"} & set(report["loaded"])
    assert not unwanted, f"importing {package} loads {sorted(unwanted)}"


NOT_MENDABLE = {
    "CudaError": "the TensorRT engine and its builder make EngineErrors of it",
    "Malformed": "what is wrong with a file: its reader says which file and what to do",
    "PacketError": "a request that no servo could be sent: a defect",
    "RegisterError": "a value that does not fit into a servo's register: a defect",
    "UserError": "the command line's own: click shows it",
    "_Damaged": "says which record of a log cannot come from its run; replay catches it",
    "_Stop": "ends the comparison of a replay, which catches it",
}


def exceptions() -> dict[str, set[str]]:
    """Every exception class of the packages, with the names of its bases."""
    found = {}
    for package in PYPROJECT["tool"]["importlinter"]["root_packages"]:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found[node.name] = {ast.unparse(b).rpartition(".")[2] for b in node.bases}
    known = {n for n, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, BaseException)}
    known |= {"ClickException"}
    while more := {n for n, bases in found.items() if bases & known} - known:
        known |= more
    return {n: found[n] for n in known if n in found}


def test_an_exception_is_mendable_or_it_says_here_why_not() -> None:
    """An exception that is not mendable shows the user a traceback (`harmowam.cli.errors`)."""
    found = exceptions()
    assert len(found) > 20 and set(NOT_MENDABLE) <= set(found)
    mendable = {"Mendable"}
    while more := {n for n, bases in found.items() if bases & mendable} - mendable:
        mendable |= more
    assert set(found) - mendable == set(NOT_MENDABLE)


NAMES_AN_ARM = {
    "harmowam/options.py": "which robot is driven where none is named",
    "sim/tasks.py": "the arm whose reach the table-top tasks are laid out for",
}


def arms_named(path: Path) -> set[str]:
    """Arm families that a module imports by name, or names in a text of that name alone ("koch", "sim_koch")."""
    names = "|".join(p.stem for p in (ROOT / "runtime/robots").glob("*.toml"))
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(names, node.value):
            found.add(node.value)
        elif isinstance(node, ast.ImportFrom) and re.fullmatch(rf"firmware_bridge\.arms\.({names})", node.module or ""):
            found.add(str(node.module))
    return found


def test_no_module_but_its_own_names_an_arm_family() -> None:
    """Widths, limits and names of joints follow from the family that a robot file, a dataset or a bundle names."""
    named = {}
    for room in PYPROJECT["tool"]["importlinter"]["root_packages"]:
        for path in (ROOT / room).rglob("*.py"):
            at = path.relative_to(ROOT).as_posix()
            if not at.startswith("firmware_bridge/arms/") and (arms := arms_named(path)):
                named[at] = sorted(arms)
    assert named.keys() == NAMES_AN_ARM.keys(), named


def test_opencv_still_has_hand_eye_calibration() -> None:
    for name in ("calibrateHandEye", "calibrateRobotWorldHandEye", "calibrateCameraExtended", "aruco"):
        assert hasattr(cv2, name), f"cv2.{name}"


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_dependency_within_its_range(python: str) -> None:
    pinned = pins(python)
    for requirement in requirements():
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            assert normalised(requirement.name) in pinned, f"{requirement.name}: run constraints/update.sh"
            version = pinned[normalised(requirement.name)]
            assert version in requirement.specifier, f"{requirement}, pinned {version}: run constraints/update.sh"


def test_python_range_is_the_one_we_pin() -> None:
    allowed = Requirement(f"python {PYPROJECT['project']['requires-python']}").specifier
    assert [f"3.{minor}" for minor in range(8, 16) if f"3.{minor}" in allowed] == list(PYTHONS)
