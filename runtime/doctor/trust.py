"""Whose bundles a robot runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from runtime.doctor.finding import Finding
from runtime.engines.listed import reach
from runtime.robot import Robot


def trust(robot: Robot) -> Iterator[Finding]:
    """Whether bundles have to be signed, and whether that can be checked here."""
    if robot.trust is None:
        mend = '[trust] signers = "FILE" in the robot file (docs/export.md, "Signed bundles")'
        yield Finding("signatures", "ok" if robot.simulated else "warn", "off: anybody's bundle is run", mend)
        return
    signers = robot.trust.signers
    if shutil.which("ssh-keygen") is None:
        mend = "`sudo apt-get install openssh-client`"
        yield Finding("signatures", "bad", "ssh-keygen is missing: no bundle can be verified", mend)
    elif not signers.is_file() or not os.access(signers, os.R_OK):
        yield Finding("signatures", "bad", f"{signers} cannot be read: no bundle is run", "correct [trust] signers")
    elif os.access(signers, os.W_OK) and os.geteuid():
        mend = f"`sudo chown root:root {signers} && sudo chmod 644 {signers}`"
        yield Finding("signatures", "warn", f"asked for, but this user may add signers to {signers}", mend)
    else:
        yield Finding("signatures", "ok", f"bundles must be signed by somebody of {signers}")
    if engines := robot.trust.engines:
        why, _, mend = reach(engines).partition(": ")
        if why:
            yield Finding("listed engines", "bad", f"{engines} protects nothing, for {why}", mend)
        else:
            yield Finding("listed engines", "ok", f"{engines} is out of this user's reach")
