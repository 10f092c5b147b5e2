"""Sentence encoders: n-grams by default, a Hugging Face folder on request, never the wrong encoder."""

import dataclasses
import importlib.util
import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from export.config import Config
from export.labels import Labels
from export.text import EncoderError, encoder_of, hugging_face
from harmowam.cli import main
from tests.training import SMALL

needs_transformers = pytest.mark.skipif(
    not importlib.util.find_spec("transformers"), reason="transformers is not installed"
)
RED, BLUE = "put the red cube on the blue plate", "press the buttons: left, right"


@pytest.fixture
def folder(tmp_path):
    """An untrained sentence encoder with vectors of 32 numbers, as save_pretrained() writes it."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "tiny").mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({*RED.split(), *BLUE.replace(":", "").replace(",", "").split(), ":", ","}),
    ]
    (tmp_path / "tiny" / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "tiny" / "vocab.txt")).save_pretrained(tmp_path / "tiny")
    shape = transformers.BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(shape).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_the_default_needs_nothing_and_knows_no_other():
    assert encoder_of(Config())(RED).shape == (512,)
    with pytest.raises(EncoderError, match="trained with sentence encoder tiny-123: add --text-encoder FOLDER"):
        encoder_of(dataclasses.replace(Config(), text_encoder="tiny-123"))


def test_a_folder_that_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(EncoderError, match=r"has no config.json: give the folder of a Hugging Face sentence encoder"):
        hugging_face(tmp_path)


def test_without_transformers_the_command_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    result = CliRunner().invoke(main, ["train", "--text-encoder", str(tmp_path), "--run", str(tmp_path / "run")])
    assert result.exit_code == 2 and "pip install 'harmowam-edge[text]'" in result.stderr


@needs_transformers
def test_a_hugging_face_folder_embeds_instead(folder, drawn):
    encode = hugging_face(folder)
    assert encode.size == 32 and encode.name.startswith("tiny-")
    assert np.linalg.norm(encode(RED)) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(encode(RED), encode("  Put the RED cube on the  blue plate")) and not np.allclose(
        encode(RED), encode(BLUE)
    )
    cfg = dataclasses.replace(SMALL, text_encoder=encode.name, text_ngrams=encode.size)
    assert Labels(drawn, cfg, encoder_of(cfg, folder)).text.shape == (len(drawn.pose), 32)
    with pytest.raises(EncoderError, match="trained with ngrams: leave --text-encoder away"):
        encoder_of(SMALL, folder)
    (folder / "vocab.txt").write_text("another")
    with pytest.raises(EncoderError, match="give that one"):
        encoder_of(cfg, folder)
