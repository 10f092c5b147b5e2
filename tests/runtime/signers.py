"""Throw-away keys of OpenSSH, files of signers, and robots that trust them."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from runtime.robot import SHIPPED


@dataclass(frozen=True)
class Signer:
    name: str
    key: Path

    @property
    def line(self):
        """Its line of a signers file."""
        return f"{self.name} {self.key.with_name(self.key.name + '.pub').read_text()}"


def signer(folder, name):
    """A signer with an ed25519 key without a passphrase."""
    key = folder / f"{name}_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key], check=True)
    return Signer(name, key)


def trusting(folder, trust, more=""):
    """The simulated SO-101 with a [trust] table of these lines. `more`: lines at the top of its file."""
    file = folder / "robot.toml"
    shipped = (SHIPPED / "sim_so101.toml").read_text()
    file.write_text(f"{more}\n{shipped}\n[trust]\n{trust}\n")
    return file
