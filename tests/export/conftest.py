"""What tests of training share: one small dataset of drawn pictures per session."""

import pytest

from export.data import collect, load_demonstrations
from tests.dataset import write_all


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
    folder = tmp_path_factory.mktemp("collected")
    assert collect(folder, episodes=1, play=2, seed=0, workers=1)["kept"] == 8
    return folder


@pytest.fixture(scope="module")
def one_thread():
    """One thread per process: sums depend on the number of threads, and a test's processes have one each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
