"""What an Orin is prepared with, as far as that can be seen without one: a dry run, and the shell's linter."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "runtime" / "jetson" / "setup.sh"


def commands():
    """Lines that the script would run."""
    done = subprocess.run(["bash", str(SCRIPT), "--dry-run", "someone"], capture_output=True, text=True, check=True)
    return [line.removeprefix("+ ") for line in done.stdout.splitlines() if line.startswith("+ ")]


def test_the_power_mode_comes_last_and_asks_nobody():
    """nvpmodel may ask for a reboot: what stands after it would wait for the answer, or be lost."""
    assert commands()[-2:] == ["nvpmodel -m 0", "jetson_clocks"]
    text = SCRIPT.read_text()
    assert 'nvpmodel -m "$fastest" </dev/null' in text and "/var/lib/nvpmodel/status" in text


@pytest.mark.parametrize("takes", [True, False])
def test_clocks_are_locked_in_the_fastest_mode_only(tmp_path, takes):
    """The script's end, with an nvpmodel that either obeys or asks for a reboot and is not answered."""
    end = SCRIPT.read_text().partition("# Last, for it may not take")[2]
    for path in ("/etc/nvpmodel.conf", "/var/lib/nvpmodel/status"):
        end = end.replace(path, str(tmp_path / Path(path).name))
    (tmp_path / "nvpmodel.conf").write_text("< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=12 NAME=MAXN_SUPER >\n")
    (tmp_path / "status").write_text("pmode:0002 fmode:quiet\n")
    obeys = f"echo pmode:00$2 fmode:quiet > {tmp_path}/status" if takes else "read -r answer"
    head = f"""set -euo pipefail
        dry=
        say() {{ echo "$*"; }}
        run() {{ "$@"; }}
        nvpmodel() {{ {obeys}; }}
        jetson_clocks() {{ echo they are locked; }}
        #"""
    done = subprocess.run(["bash", "-c", head + end], capture_output=True, text=True, check=False, input="YES\n")
    assert done.returncode == 0, done.stderr
    assert ("they are locked" in done.stdout) == takes
    assert ("Type 'sudo nvpmodel -m 12' and answer YES" in done.stdout) != takes


def test_ubuntus_opencv_is_not_installed_over_nvidias():
    packages = next(c for c in commands() if c.startswith("apt-get install"))
    assert "python3-opencv" not in packages and "nvidia-jetpack" in packages


def test_brltty_is_masked_before_the_rules_are_loaded_again():
    ran = commands()
    masked = ran.index("ln -sf /dev/null /etc/udev/rules.d/85-brltty.rules")
    assert masked < ran.index("udevadm control --reload")
    assert "systemctl mask brltty.service brltty-udev.service" in ran


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck: sudo apt-get install shellcheck")
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
