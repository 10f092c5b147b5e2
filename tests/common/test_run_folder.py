"""Folders of slots: kept as long as a process uses them, in whatever PID namespace; then removed."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from common import run_folder
from common.run_folder import LOCK, hold, sweep
from common.slots import SlotError, SlotWriter

LONG_AGO = 1_000_000_000  # s: in 2001


@pytest.fixture
def where(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "memory_folder", lambda: str(tmp_path))
    return tmp_path


def made(where, name, locked=True):
    folder = where / name
    folder.mkdir()
    (folder / "state.slot").write_bytes(b"x")
    if locked:
        os.close(hold(folder))
    os.utime(folder, (LONG_AGO, LONG_AGO))
    return folder


def user(folder):
    """Another process that uses `folder`, as a guard does."""
    imports = "from pathlib import Path; from common.run_folder import hold"
    code = f"{imports}; hold(Path({str(folder)!r})); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_a_folder_whose_processes_are_gone_is_removed_and_nothing_else(where):
    gone, unlocked = made(where, "harmowam-1-abc"), made(where, "harmowam-2-abc", locked=False)
    young = where / "harmowam-3-abc"
    young.mkdir()
    kept = [made(where, name) for name in ("harmowam-abc-x", "harmowam-1", "other")]
    link = where / "harmowam-4-abc"
    link.symlink_to(kept[-1])
    sweep(where)
    assert not gone.exists() and not unlocked.exists()
    assert young.exists() and link.is_symlink() and all((k / "state.slot").exists() for k in kept)


def test_a_folder_that_another_process_uses_is_left_whatever_its_name_says(where):
    """Its process id means nothing in another PID namespace, and the run may be dead while its guard lives."""
    used = made(where, "harmowam-999999999-abc")
    process = user(used)
    sweep(where)
    assert (used / "state.slot").exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    sweep(where)
    assert not used.exists()


def test_a_run_removes_its_folder_unless_its_guard_still_uses_it(where):
    with run_folder.run_folder() as folder:
        assert (folder / LOCK).exists() and folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()
    with run_folder.run_folder() as folder:
        process = user(folder)
    assert folder.exists()
    process.communicate(b"\n")
    sweep(where)
    assert not folder.exists()


def test_what_cannot_be_removed_stops_nobody(where):
    deep = made(where, "harmowam-4194999-x")
    at = os.open(deep, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    os.utime(deep, (LONG_AGO, LONG_AGO))
    sweep(where)
    sweep(where / "none")
    subprocess.run(["rm", "-rf", str(deep)], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_folders_of_other_users_are_left_alone(where):
    theirs = made(where, "harmowam-5-abc")
    os.chown(theirs, 65534, 65534)
    sweep(where)
    assert theirs.exists()


def test_a_slot_that_finds_no_room_is_refused_in_a_sentence(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a full memory folder
    try:
        with pytest.raises(SlotError, match=r"x.slot cannot be made \(.*\): make room in"):
            SlotWriter(tmp_path / "x.slot", 4000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_link_where_a_slot_is_being_made_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "x.slot.partial").symlink_to(victim)
    SlotWriter(tmp_path / "x.slot", 16).write(b"12")
    assert victim.read_text() == "precious" and not (tmp_path / "x.slot").is_symlink()
