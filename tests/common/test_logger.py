"""The log: JSON lines in a rotating file, warnings on the console, and a caller that never waits for either."""

import json
import logging
import threading

from common.logger import WAITING, Logger


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_events_become_json_lines_with_their_numbers_and_both_times(tmp_path):
    with Logger(tmp_path / "run.log", logging.DEBUG, console=False) as log:
        log.debug("frame rejected", camera="front", age_ms=412.5)
        log.info("armed")
    first, second = lines(tmp_path / "run.log")
    assert first["event"] == "frame rejected" and first["camera"] == "front" and first["age_ms"] == 412.5
    assert first["level"] == "debug" and 0 < first["t_ns"] <= second["t_ns"] and first["time"].endswith("Z")


def test_what_is_below_the_level_is_not_written(tmp_path):
    with Logger(tmp_path / "run.log", console=False) as log:
        log.debug("limiter clipped", joint="elbow_flex")
        log.info("armed")
    assert [row["event"] for row in lines(tmp_path / "run.log")] == ["armed"]


def test_the_console_gets_warnings_as_sentences_and_nothing_else(tmp_path, capsys):
    with Logger(tmp_path / "run.log") as log:
        log.info("armed")
        log.warning("the camera is late", camera="wrist", ms=120)
    assert capsys.readouterr().err == "warning: the camera is late (camera=wrist ms=120)\n"


def test_a_disk_that_cannot_be_written_raises_nothing(tmp_path, capsys):
    with Logger(tmp_path / "gone" / "run.log") as log:
        log.error("the port was lost")
    assert "the port was lost" in capsys.readouterr().err


def test_a_full_queue_drops_lines_and_counts_them(tmp_path, monkeypatch):
    """The writing thread is blocked: the caller continues."""
    held = threading.Event()
    monkeypatch.setattr(logging.handlers.RotatingFileHandler, "emit", lambda self, record: held.wait(10))
    with Logger(tmp_path / "run.log", console=False) as log:
        for _ in range(WAITING + 100):
            log.info("tick")
        assert 98 <= log.dropped <= 100
        held.set()


def test_the_file_rotates(tmp_path, monkeypatch):
    monkeypatch.setattr("common.logger.FILE_BYTES", 2000)
    with Logger(tmp_path / "run.log", console=False) as log:
        for k in range(60):
            log.info("tick", number=k)
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == ["run.log", "run.log.1", "run.log.2", "run.log.3"]
    assert all(p.stat().st_size <= 2000 for p in tmp_path.iterdir())
