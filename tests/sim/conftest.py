"""Toy bundles and a virtual robot on them, for the tests of evaluation."""

import pytest

from runtime.bundle import Bundle
from runtime.policies.harmowam import FastStep, SlowStep
from sim.world import World
from tests.tiny import TASK, tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def rig(bundle):
    world = World(0)
    cameras = {name: world.camera(name) for name in ("front", "wrist")}
    opened = Bundle.load(bundle)
    yield world, SlowStep(opened, TASK, cameras), FastStep(opened, cameras)
    world.close()


@pytest.fixture(scope="module")
def done_bundle(tmp_path_factory):
    """A policy that says from its first look on that it is done."""
    return tiny_bundle(tmp_path_factory.mktemp("done"), done=0.95)
