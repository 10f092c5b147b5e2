"""What a robot installs: the versions that were tested, each file by its hash."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def pins(path: Path) -> dict[str, tuple[str, str]]:
    """Package -> its version, and whatever follows until the next one."""
    found = re.findall(r"^([\w.-]+)==([^\s;#]+)(.*(?:\n .*)*)", path.read_text(), re.M)
    return {name: (version, rest) for name, version, rest in found}


@pytest.mark.parametrize("version", ["310", "312"])
def test_every_requirement_of_a_robot_has_a_hash_and_the_version_of_the_constraints(version):
    path = ROOT / f"constraints/robot-cp{version}.txt"
    locked, known = pins(path), pins(ROOT / f"constraints/py{version}.txt")
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith(" ")]
    assert len(lines) == len(locked) > 15, "every line is a requirement with a version"
    for name, (pinned, rest) in locked.items():
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}(?= |$)", rest, re.M), name
        assert pinned == known[name][0], name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["cpu"], *extras["jetson"], "setuptools"]
    names = {re.split(r"[^\w.-]", w)[0] for w in wanted if "python_version" not in w or version == "310"}
    assert names <= locked.keys()


def test_no_place_to_download_from_is_fixed():
    for path in (ROOT / "constraints").glob("robot*"):
        assert not re.search(r"://|--(extra-)?index|--find-links", path.read_text()), path


def test_a_robot_installs_nothing_else():
    text = (ROOT / "build.sh").read_text()
    robot = re.search(r"^install_locked\(\) \{\n(.*?)^\}", text, re.M | re.S)[1]
    assert re.findall(r"pip install .*", robot) == [
        'pip install --require-hashes --requirement "$lock"',
        "pip install --no-deps --no-build-isolation --editable .",
    ]
    assert "install_locked\n" in re.search(r"^cmd_jetson\(\) \{\n(.*?)^\}", text, re.M | re.S)[1]


def installed(folder: Path, command: str, stamp: str = "") -> str:
    """The extras that `setup` of build.sh would install in `folder`, whose last installation left `stamp`."""
    (folder / ".venv").mkdir()
    if stamp:
        (folder / ".venv" / ".installed").write_text(stamp)
    nothing = "".join(f"{name}() {{ :; }}; " for name in ("system_packages", "make_venv", "kernel", "rendering"))
    script = f". {ROOT}/build.sh; cd {folder}; {nothing} install() {{ echo $1; }}; {command}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("command", "stamp", "extras"),
    [
        ("setup", "", "cpu,sim,export,dev"),
        ("setup tensorrt-check", "", "cpu,sim,export,dev,tensorrt-check"),
        ("setup tensorrt-check", "cpu,sim,export,dev 1 2 3.11", "cpu,sim,export,dev,tensorrt-check"),
        ("setup", "cpu,sim,export,dev,tensorrt-check 1 2 3.11\nmore", "cpu,sim,export,dev,tensorrt-check"),
        ("setup", "locked 1 2 3.10", "cpu,sim,export,dev"),
    ],
)
def test_nvidias_builder_comes_with_the_tests_and_then_stays(tmp_path, command, stamp, extras):
    """Another command after the tests must not install everything anew."""
    assert installed(tmp_path, command, stamp) == extras
    assert re.findall(r"^  setup tensorrt-check$", (ROOT / "build.sh").read_text(), re.M) == ["  setup tensorrt-check"]
