"""Files are there whole, or as they were before."""

import os

import pytest

from common.files import write_whole


@pytest.mark.parametrize("content", ["grüß\n", "grüß\n".encode(), ("grü", "ß", "\n")], ids=["text", "bytes", "pieces"])
def test_text_bytes_and_pieces_come_back_and_the_folder_is_made(tmp_path, content):
    path = tmp_path / "a" / "b" / "file.json"
    write_whole(path, content)
    assert path.read_bytes() == "grüß\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    write_whole(path, b"", mode=0o444)
    assert path.read_bytes() == b"" and path.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("before", [None, b"as it was"])
def test_what_fails_on_the_way_leaves_what_was_there_and_nothing_beside(tmp_path, monkeypatch, step, before):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ([] if before is None else ["file"])
    assert before is None or path.read_bytes() == before


def test_the_new_name_is_flushed_after_the_file_is(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace

    def flush(fd):
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    def rename(a, b):
        order.append("rename")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    write_whole(tmp_path / "file", b"x")
    assert order == ["file", "rename", "folder"]
