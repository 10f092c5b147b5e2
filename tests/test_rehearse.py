"""`harmowam rehearse`: a new user's way through docs/arm.md, with real commands on a virtual arm."""

import re
import subprocess
from pathlib import Path

import pytest

from common.python import module_command
from harmowam.rehearse import STEPS

pytestmark = pytest.mark.wall_clock

TABLE = (Path(__file__).parents[1] / "docs" / "arm.md").read_text()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("rehearsal") / "arm"


def rehearsed(out, step):
    """What the rehearsal of one step says; it must end well."""
    command = module_command("harmowam.cli", "rehearse", "--out", str(out), "--step", str(step))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_steps_are_those_of_the_document():
    assert [title for title, _ in STEPS] == re.findall(r"^\| \d\. ([^|]+?) \|", TABLE, re.M)[: len(STEPS)]


def test_servos_as_delivered_are_numbered_one_at_a_time(out):
    said = rehearsed(out, 1)
    assert said.count("$ harmowam bus set-id --port") == 6 and "STS3215: id 1 is now 6" in said
    assert re.findall(r"^ *(\d)  STS3215", said, re.M) == list("123456")


def test_a_hand_is_seen_and_another_programs_mode_is_set_right(out):
    said = rehearsed(out, 2)
    pan = {float(a) for a in re.findall(r"shoulder_pan +1 +([-+.\d]+)", said)}
    assert max(pan) - min(pan) > 1 and "shoulder_lift      2      mode      1" in said
    assert said.rstrip().endswith("6 servos hold what they must, and stand where they can be held")
