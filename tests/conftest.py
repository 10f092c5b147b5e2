"""What tests share: how hypothesis behaves on a busy machine, and one INT8 bundle of the shipped checkpoint a session."""

import os

import hypothesis
import pytest

os.environ.setdefault("MUJOCO_GL", "egl")  # before anything imports mujoco

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Path of the bundle and its parity report, exported as `harmowam export` does, but for the gate of speed."""
    from export.bundle import CHECKPOINT, export_bundle

    path = tmp_path_factory.mktemp("bundle") / "so101.bundle"
    return path, export_bundle(CHECKPOINT, path, timed=False)


@pytest.fixture(scope="session")
def bundle_path(exported):
    return exported[0]
