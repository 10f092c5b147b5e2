"""What tests of training and export share: a small dataset of drawn pictures, an untrained toy model, its ONNX
files."""

import shutil
from pathlib import Path

import pytest
import torch

from export.checkpoint import save_checkpoint
from export.data import collect, load_demonstrations
from export.models import HarmoWam
from export.observations import pick_samples
from export.origin import samples_path
from tests.dataset import write_all
from tests.once import once
from tests.onnx_files import exporter
from tests.recordings import Spec, like, write
from tests.training import SMALL


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "drawn"
    write_all(folder)
    return folder


@pytest.fixture(scope="session")
def drawn(dataset_folder):
    return load_demonstrations(dataset_folder)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A dataset as `harmowam collect` writes it: one demonstration of each task, and two episodes of play."""

    def make(folder):
        assert collect(folder, episodes=1, play=2, seed=0, workers=1)["kept"] == 8

    return once(tmp_path_factory, "collected", make)


@pytest.fixture(scope="module")
def one_thread():
    """Compared runs must compute in the same way: sums depend on the number of threads, and a time measurement would
    choose between bf16 and float32. Processes of a test (`tests/training.py`) use one thread and float32, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.loop.rounds_bf16", lambda device: False)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def untrained(drawn, tmp_path_factory):
    """Checkpoint of an untrained toy model, with observations beside it."""
    path = tmp_path_factory.mktemp("untrained") / "small.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, HarmoWam(SMALL), drawn.cameras, drawn.task_instructions, {})
    pick_samples(drawn, samples_path(path))
    return path


@pytest.fixture
def export_once(monkeypatch, tmp_path_factory):
    """Each ONNX file is made once per test run."""
    export = exporter(tmp_path_factory)
    monkeypatch.setattr("export.bundle.export_engine", export)
    return export


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A recording of others, v2.1, in degrees; tests that write take `copy`."""
    return write(tmp_path_factory.mktemp("recordings") / "v2", Spec())


@pytest.fixture(scope="module")
def plain_3(tmp_path_factory):
    """The same as v3.0."""
    return write(tmp_path_factory.mktemp("recordings") / "v3", like(Spec(), version="v3.0"))


@pytest.fixture
def copy(plain, tmp_path):
    return Path(shutil.copytree(plain, tmp_path / "set"))


@pytest.fixture
def copy_3(plain_3, tmp_path):
    return Path(shutil.copytree(plain_3, tmp_path / "set3"))
