"""The pictures of the pages in docs/images, and the program that takes them."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.screenshots import IMAGES, MOST_BYTES, SHOTS, browser, trimmed

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("shot", SHOTS, ids=lambda s: s.name)
def test_a_picture_is_small_and_a_document_shows_it_with_what_is_on_it_in_words(shot):
    assert 0 < (ROOT / IMAGES / f"{shot.name}.png").stat().st_size <= MOST_BYTES
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    told = [
        m for d in documents for m in re.findall(rf"!\[(.*?)\]\((?:docs/)?images/{shot.name}\.png\)", d.read_text())
    ]
    assert told and all(len(words) > 20 for words in told)


def test_no_picture_lies_in_the_documents_that_none_of_them_shows():
    text = "".join(d.read_text() for d in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert [p.name for p in (ROOT / IMAGES).iterdir() if f"images/{p.name})" not in text] == []


def test_the_empty_rows_below_a_page_are_cut_off():
    picture = np.full((400, 30, 3), 244, np.uint8)
    picture[10:100, 5:20] = 0
    assert trimmed(picture).shape == (124, 30, 3) and trimmed(picture[150:]).shape == (250, 30, 3)


def test_without_chromium_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="install it with `sudo apt-get install chromium`"):
        browser()
