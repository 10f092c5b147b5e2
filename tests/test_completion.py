"""The Tab key in a real bash, after the line that the README names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
PRESS_TAB = 'COMP_WORDS=(harmowam "$@"); COMP_CWORD=$#; _harmowam_completion harmowam; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["cal"], "calibrate"),
        (["calibrate", "ha"], "hand-eye"),
        (["replay", "--v"], "--view"),
    ],
)
def test_bash_completes_commands_and_options(words, offered):
    line = re.search(r"`(eval .*?_HARMOWAM_COMPLETE=.*?)`", README)
    assert line is not None
    bash = ["bash", "--norc", "-c", f"{line[1]}; {PRESS_TAB}", "bash", *words]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(bash, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [offered]
