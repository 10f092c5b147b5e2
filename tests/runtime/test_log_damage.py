"""A log that was cut short or damaged: what can be read of it, and what is said of it."""

import shutil
import struct
import tracemalloc
from pathlib import Path

import lz4.frame
import pytest
from click.testing import CliRunner
from mcap.writer import CompressionType, Writer

from benchmarks.fuzz_log import fuzz
from harmowam.cli import main
from runtime.bundle import Bundle
from runtime.observe.log_reader import read_log
from runtime.observe.records import (
    CUT,
    DAMAGED,
    LogError,
)
from runtime.observe.replay import replay
from tests.runtime.recorded import plain, record
from tests.tiny import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("tiny"), gate=0.6))


@pytest.fixture(scope="module")
def log(bundle, tmp_path_factory):
    return record(tmp_path_factory.mktemp("log") / "run.mcap", bundle)


def chunks(path):
    """Where the chunks of a log lie: (first byte of the record, of its data, end) each."""
    raw, at, found = path.read_bytes(), 8, []
    while at < len(raw) - 8:
        opcode, length = struct.unpack_from("<BQ", raw, at)
        if opcode == 6:
            found.append((at, at + 9 + 28 + 4 + len("lz4") + 8, at + 9 + length))
        at += 9 + length
    return found


def spoilt(log, path, at, data):
    path.write_bytes(log.read_bytes())
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)
    return path


def test_a_log_that_was_cut_short_replays_up_to_the_cut(log, tmp_path):
    raw = log.read_bytes()
    (tmp_path / "cut.mcap.partial").write_bytes(raw[: len(raw) * 2 // 3])
    *records, last = read_log(tmp_path / "cut.mcap")
    assert last["kind"] == CUT and len(records) > 40
    assert plain(records) == plain(read_log(log))[: len(records)]
    result = replay(tmp_path / "cut.mcap")
    assert 0 < result.steps < 40 and result.identical and "cut off" in result.gap
    said = CliRunner().invoke(main, ["replay", str(tmp_path / "cut.mcap")])
    assert said.exit_code == 0 and "stopped early: the log was cut off" in said.stdout
    assert said.stdout.endswith("identical, bit for bit, up to there\n")


@pytest.mark.parametrize("left", [0.1, 0.5, 0.99])
def test_wherever_a_log_was_cut_it_is_cut_off_and_not_damaged(log, tmp_path, left):
    """In a chunk, at its end, in a length, in the closing magic."""
    raw = log.read_bytes()
    first, _, end = chunks(log)[1]
    for keep in {int(len(raw) * left), first + 4, end, len(raw) - 3}:
        (tmp_path / "cut.mcap").write_bytes(raw[:keep])
        *_, last = read_log(tmp_path / "cut.mcap")
        assert last["kind"] == CUT, keep


def test_nothing_is_said_of_a_whole_log(log):
    assert not any(isinstance(r, dict) and r.get("kind") in (CUT, DAMAGED) for r in read_log(log))


DAMAGE = {
    "300 kB of zeros": lambda log: (log.stat().st_size * 3 // 10, bytes(300_000)),
    "2 kB of zeros": lambda log: (log.stat().st_size * 3 // 10, bytes(2_000)),
    "one picture's byte": lambda log: (chunks(log)[1][1] + 5_000, b"\x5a\xa5"),
    "the kind of a chunk that names topics": lambda log: (chunks(log)[1][0], b"\x70"),
    "a chunk's kind": lambda log: (chunks(log)[2][0], b"\x70"),
    "the last chunk's kind": lambda log: (chunks(log)[-1][0], b"\x70"),
    "a length beyond the end": lambda log: (chunks(log)[1][0] + 1, struct.pack("<Q", 1 << 50)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_log_is_not_called_identical_and_no_engine_is_blamed(log, tmp_path, damage):
    path = spoilt(log, tmp_path / "run.mcap", *DAMAGE[damage](log))
    result = replay(path)
    assert result.difference is None and result.damaged and not result.identical
    assert 0 < result.steps < 40 and "damaged" in result.gap
    said = CliRunner().invoke(main, ["replay", str(path)])
    assert said.exit_code == 2 and "identical" not in said.output
    assert f"{result.steps} fast steps before that are the same" in said.stderr and "another copy" in said.stderr


def test_a_log_that_is_damaged_at_its_beginning_is_refused_as_such(log, tmp_path):
    path = spoilt(log, tmp_path / "run.mcap", log.read_bytes().index(b'"bundle"'), b"\xff\xff")
    with pytest.raises(LogError, match="is damaged at its beginning"):
        replay(path)


def test_a_newer_log_that_was_cut_off_is_not_taken_for_the_whole_one_unsaid(log, tmp_path):
    whole = Path(shutil.copyfile(log, tmp_path / "run.mcap"))
    assert "note:" not in CliRunner().invoke(main, ["replay", str(whole)]).stderr
    shutil.copyfile(log, tmp_path / "run.mcap.partial")
    said = CliRunner().invoke(main, ["replay", str(whole)])
    assert said.exit_code == 0 and "run.mcap.partial is what another run left that was cut off" in said.stderr


def test_no_crafted_log_ends_in_a_traceback(log):
    """The same as `python -m benchmarks.fuzz_log`, which plays 500 and more: damages with checksums that fit."""
    found = fuzz(log, 30, seed=0)
    assert found.failed == [] and found.slow == []
    assert found.read > 20 and found.refused > 0


@pytest.mark.parametrize("says", [3 * 2**30, 1000])
def test_a_part_that_expands_beyond_all_bounds_is_not_expanded(tmp_path, says):
    """13 MB of lz4 that become 3 GB, and a part that says it is smaller than it is."""
    with open(tmp_path / "bomb.mcap", "wb") as f:
        writer = Writer(f, compression=CompressionType.NONE)
        writer.start()
        writer.finish()
    bomb = lz4.frame.compress(bytes(64 * 2**20))
    head = struct.pack("<QQQII", 0, 0, says, 0, 3) + b"lz4" + struct.pack("<Q", len(bomb))
    raw = (tmp_path / "bomb.mcap").read_bytes()
    header = 8 + 9 + struct.unpack_from("<BQ", raw, 8)[1]
    chunk = struct.pack("<BQ", 6, len(head) + len(bomb)) + head + bomb
    (tmp_path / "bomb.mcap").write_bytes(raw[:header] + chunk + raw[header:])
    tracemalloc.start()
    (last,) = read_log(tmp_path / "bomb.mcap")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert last["kind"] == DAMAGED
    assert last["why"] == (
        "a part of it would take 3221 MB of memory"
        if says > 1000
        else "a part of it does not have the length that it says"
    )
