"""Instruction embedding: a sentence encoder turns the text into a vector, and a learnt layer of the world model
projects it.

The default encoder needs no download: hashed character n-grams. Any sentence encoder of Hugging Face can be used
instead, from a folder. Encoders run in training and export only; the robot looks up projected vectors.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import Mendable
from export.config import Config


class EncoderError(Mendable):
    """A sentence encoder that cannot be used; the text says why and what to do next."""


@dataclass(frozen=True)
class Encoder:
    """`encoder(text)` is a unit-length float32[size]. `name` goes into the checkpoint and tells later whether the same
    encoder is used."""

    name: str
    size: int
    embed: Callable[[str], np.ndarray]

    def __call__(self, text: str) -> np.ndarray:
        return self.embed(text)


def ngrams(text: str, size: int) -> np.ndarray:
    """Unit-length float32[size] of hashed counts: character n-grams of 3 to 5 characters, and, with three times the
    weight, sequences of one to three words.

    Without the word sequences, "stack the red cube on the blue cube" and "stack the blue cube on the red cube" would
    have the same vector.
    """
    words = text.lower().split()
    padded = f" {' '.join(words)} "
    pieces = [(" ".join(words[i : i + n]), 3.0) for n in (1, 2, 3) for i in range(len(words) - n + 1)]
    pieces += [(padded[i : i + n], 1.0) for n in (3, 4, 5) for i in range(len(padded) - n + 1)]
    out = np.zeros(size, np.float32)
    for piece, weight in pieces:
        h = zlib.crc32(piece.encode())
        out[h % size] += weight if h & 0x80000000 else -weight
    return out / max(float(np.linalg.norm(out)), 1e-6)


def encoder_of(cfg: Config, folder: Path | None = None) -> Encoder:
    """The encoder with which a model of this configuration was trained; a Hugging Face one is read from `folder`.

    Raises EncoderError when `folder` holds another one or is missing.
    """
    if folder is not None:
        encoder = hugging_face(folder)
        if encoder.name != cfg.text_encoder:
            raise EncoderError(
                f"{folder} is sentence encoder {encoder.name} and the model was trained with {cfg.text_encoder}: "
                + ("leave --text-encoder away." if cfg.text_encoder == Config.text_encoder else "give that one.")
            )
        return encoder
    if cfg.text_encoder != Config.text_encoder:
        raise EncoderError(
            f"the model was trained with sentence encoder {cfg.text_encoder}: add --text-encoder FOLDER with its files."
        )
    return Encoder(cfg.text_encoder, cfg.text_ngrams, lambda text: ngrams(text, cfg.text_ngrams))


def hugging_face(folder: Path) -> Encoder:
    """The encoder in a folder that `save_pretrained` wrote (config.json, model.safetensors, tokenizer.json): mean over
    tokens.

    Nothing is downloaded and no code from the folder is run. Raises EncoderError, and ModuleNotFoundError without
    `transformers`.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise EncoderError(
                f"{folder} has no {name}: give the folder of a Hugging Face sentence encoder, as save_pretrained() "
                "writes it."
            )
    import torch
    from transformers import AutoModel, AutoTokenizer  # an optional package

    try:
        tokenise = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = AutoModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True).eval()
    except (OSError, ValueError, KeyError) as e:
        raise EncoderError(f"{folder} cannot be read ({e}): copy it again.") from e
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())

    def embed(text: str) -> np.ndarray:
        with torch.no_grad():
            tokens = tokenise(" ".join(text.lower().split()), return_tensors="pt", truncation=True)
            mean = model(**tokens).last_hidden_state[0].mean(0).float().numpy()
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-6), np.float32)

    return Encoder(f"{folder.resolve().name}-{digest.hexdigest()[:12]}", int(model.config.hidden_size), embed)
