"""A skipped test fails on a CI machine, unless tests/skips.toml says why it may be skipped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import allowed, listed

ROOT = Path(__file__).parents[1]
LISTED = [{"test": "tests/a.py::test_one", "reason": "no .* here", "why": "there is none"}]
FILE = """
import pytest
def test_passes(): pass
def test_left_out(): pytest.skip("no teapot here")
@pytest.mark.skipif(True, reason="no teapot here")
def test_marked(): pass
@pytest.mark.xfail
def test_known(): assert False
"""
WHOLE_FILE = "import pytest\npytest.importorskip('no_such_teapot', reason='no teapot here')\n"


@pytest.mark.parametrize(
    ("node", "reason", "is_allowed"),
    [
        ("tests/a.py::test_one", "no GPU here", True),
        ("tests/a.py::test_one[x]", "no GPU here", True),
        ("tests/a.py::test_one_more", "no GPU here", False),
        ("tests/a.py::test_two", "no GPU here", False),
        ("tests/a.py::test_one", "broken, and no GPU here", False),
    ],
)
def test_an_entry_fits_one_test_and_its_reason(node, reason, is_allowed):
    assert allowed(node, reason, LISTED) is is_allowed


def run(folder, ci, *options, file=FILE):
    (folder / "test_kettle.py").write_text(file)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "tests.skips", "-p", "no:cacheprovider", *options]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, "-c", "/dev/null", "."], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "by a worker"])
def test_a_skip_that_nobody_listed_fails_where_ci_is_true(tmp_path, options):
    done = run(tmp_path, "true", *options)
    assert done.returncode == 1 and "1 failed, 1 passed, 1 xfailed, 1 error" in done.stdout, done.stdout
    assert done.stdout.count("Skipped (no teapot here), and CI=true: mend that, or list it in skips.toml") >= 2


def test_a_whole_file_that_is_left_out_fails_too(tmp_path):
    done = run(tmp_path, "true", file=WHOLE_FILE)
    assert done.returncode == 2 and "Skipped (no teapot here), and CI=true" in done.stdout, done.stdout


def test_elsewhere_it_is_a_skip(tmp_path):
    done = run(tmp_path, "")
    assert done.returncode == 0 and "1 passed, 2 skipped, 1 xfailed" in done.stdout, done.stdout


def test_a_listed_skip_passes_where_ci_is_true(tmp_path):
    entry = listed()[0]
    folder = tmp_path / entry["test"]
    folder.parent.mkdir(parents=True)
    folder.write_text(f"import pytest\ndef test_it(): pytest.skip({entry['reason']!r})\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.skips", "-p", "no:cacheprovider", "--rootdir", "."]
    environment = {**os.environ, "CI": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "-c", "/dev/null", entry["test"]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "1 skipped" in done.stdout, done.stdout


def test_every_entry_is_of_a_test_that_there_is_and_says_why():
    entries = listed()
    for entry in entries:
        file, _, name = entry["test"].partition("::")
        assert (ROOT / file).is_file() and f"def {name}" in (ROOT / file).read_text(), entry
        assert set(entry) == {"test", "reason", "why"} and len(entry["why"]) > 10, entry
