"""What tests share: reruns on a busy machine, when a skip fails, and one INT8 bundle of the shipped checkpoint per
session."""

import json
import os
from functools import partial

import hypothesis
import pytest

from tests.once import once
from tests.witness import Witness

pytest_plugins = ["tests.skips"]

os.environ.setdefault("MUJOCO_GL", "egl")  # must be set before anything imports mujoco

# The time of an example depends on the machine more than on the code.
hypothesis.settings.register_profile("shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("shared")


WITNESS = pytest.StashKey[Witness]()
ABSENT_S = pytest.StashKey[float]()


def pytest_itemcollected(item):
    """Mark tests on the bench as wall-clock tests: virtual servos and films run in real time."""
    if "bench" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("wall_clock"):
        item.add_marker("wall_clock")


@pytest.hookimpl(trylast=True)  # after -m has left out deselected tests
def pytest_collection_modifyitems(config, items):
    """A wall-clock test that fails while the machine held back its processors is run again, at most twice, and the
    summary lists it. A test that fails on a machine that kept time has failed."""
    clocked = [item for item in items if item.get_closest_marker("wall_clock")]
    if clocked and not config.option.collectonly:
        config.stash[WITNESS] = Witness(config._tmp_path_factory.mktemp("witness") / "absent_s")
    for item in clocked:
        item.add_marker(pytest.mark.flaky(reruns=2, condition=partial(machine_was_late, item)))


def pytest_runtest_setup(item):
    if WITNESS in item.config.stash:
        item.stash[ABSENT_S] = item.config.stash[WITNESS].absent_s()


def machine_was_late(item):
    return item.config.stash[WITNESS].absent_s() > item.stash[ABSENT_S]


def pytest_unconfigure(config):
    if WITNESS in config.stash:
        config.stash[WITNESS].close()


@pytest.fixture(scope="session", autouse=True)
def _runs(tmp_path_factory):
    """Runs of which no folder is named leave theirs outside the checkout."""
    os.environ["HARMOWAM_RUNS"] = str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Path of the bundle and its parity report, exported like `harmowam export` but without the gates of speed."""
    from export.bundle import export_bundle
    from export.plan import Plan
    from tests.onnx_files import exporter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.bundle.export_engine", exporter(tmp_path_factory))
        path = once(
            tmp_path_factory, "shipped", lambda folder: export_bundle(Plan(), folder / "so101.bundle", timed=False)
        )
    bundle = path / "so101.bundle"
    return bundle, json.loads((bundle / "reports" / "parity.json").read_text())


@pytest.fixture(scope="session")
def bundle_path(exported):
    return exported[0]


@pytest.fixture
def bench(tmp_path):
    """A real robot's file with virtual servos on a pseudo-terminal and films as cameras (`tests/rig.py`)."""
    from tests.rig import Bench, undo_real_time

    made = Bench(tmp_path / "bench")
    yield made
    made.close()
    undo_real_time()
