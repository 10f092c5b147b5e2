"""A LeRobot policy's folder: its configuration, its weights, and what its processors do, or one sentence why not.

`config.json`, `model.safetensors`, and of 0.4 on `policy_preprocessor.json` and `policy_postprocessor.json` with their
state files. Older folders have no processors, and the statistics lie among the weights (`export.policies.statistics`).
Weights are read from safetensors alone: a pickle runs the code of whoever made it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from common.errors import Mendable
from common.schema import Malformed, parse_json, read_bounded, shown

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
MOST_BYTES = 4 * 1024 * 1024  # of a JSON file
MOST_WEIGHTS = 16 * 1024**3  # bytes of a file of weights
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
POINTER = b"version https://git-lfs"
AGAIN = "download the folder again."
STATE, ACTION = "observation.state", "action"
STATISTICS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")  # among the weights of older folders


class PolicyFolderError(Mendable):
    """A LeRobot folder that cannot be exported; one sentence and the next step."""


@dataclass(frozen=True)
class Step:
    """One step of a processor. `state`: its tensors by name, empty where it has no state file."""

    name: str
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class Feature:
    """`kind`: STATE, VISUAL, ACTION or another of LeRobot's; `shape` without a batch, pictures [3,h,w]."""

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Folder:
    """What lies in a LeRobot folder. `pre`, `post`: steps of its processors, None in a folder that has none."""

    path: Path
    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Feature]
    outputs: Mapping[str, Feature]
    weights: Mapping[str, Tensor]
    pre: tuple[Step, ...] | None
    post: tuple[Step, ...] | None

    def refused(self, why: str, mend: str) -> PolicyFolderError:
        return PolicyFolderError(f"{self.path} {why}: {mend}")

    def all_taken(self, taken: AbstractSet[str], unused: tuple[str, ...]) -> None:
        """Raises PolicyFolderError for a weight that is not in `taken`, no statistic, and whose name does not begin
        with one of `unused`: a network that has it does something else than what was built."""
        left = sorted(k for k in self.weights if k not in taken and not k.startswith((*STATISTICS, *unused)))
        if left:
            raise self.refused(
                f"holds the weight '{left[0]}', which its {CONFIG} does not explain ({len(left)} in all)", AGAIN
            )


def read_folder(path: Path) -> Folder:
    """Raises PolicyFolderError for a folder that is no policy, is incomplete or damaged, or holds pickles only."""
    path = Path(path)
    if (path / "pretrained_model" / CONFIG).is_file():  # the folder of a training step
        path = path / "pretrained_model"
    if not (path / CONFIG).is_file():
        raise PolicyFolderError(
            f"{path} is no LeRobot policy (no {CONFIG}): name the folder that lerobot-train saved, checkpoints/last."
        )
    _refuse_incomplete(path)
    config = _json(path / CONFIG)
    kind = config.get("type")
    if not isinstance(kind, str):
        raise PolicyFolderError(f"{path / CONFIG} does not say the policy's type: {AGAIN}")
    features = {k: _features(path, config, k) for k in ("input_features", "output_features")}
    weights = _tensors(path / WEIGHTS)
    there = [(path / name).is_file() for name in (PRE, POST)]
    if any(there) and not all(there):
        raise PolicyFolderError(f"{path} is incomplete, {(PRE, POST)[there.index(False)]} is missing: {AGAIN}")
    steps = [_steps(path, name) for name in (PRE, POST)] if all(there) else [None, None]
    return Folder(path, kind, config, features["input_features"], features["output_features"], weights, *steps)


def _refuse_incomplete(path: Path) -> None:
    """Raises PolicyFolderError for what a broken download leaves, and for weights in another form."""
    part = next((p for p in sorted(path.rglob("*.incomplete"))), None)
    if part is not None:
        raise PolicyFolderError(f"{path} was downloaded in part only ({part.name} is left): {AGAIN}")
    if (path / WEIGHTS).is_file():
        return
    pickle = next((p for p in sorted(path.iterdir()) if p.suffix in PICKLES), None)
    if pickle is not None:
        raise PolicyFolderError(
            f"{path} has its weights in {pickle.name}, a pickle, which could run any program here: save the policy "
            "with a lerobot that writes model.safetensors."
        )
    raise PolicyFolderError(f"{path} is incomplete, {WEIGHTS} is missing: {AGAIN}")


def _json(file: Path) -> dict[str, Any]:
    try:
        raw = parse_json(read_bounded(file, MOST_BYTES))
    except OSError as e:
        raise PolicyFolderError(f"{file} cannot be read ({e.strerror}): {AGAIN}") from e
    except Malformed as e:
        raise PolicyFolderError(f"{file} is damaged ({e}): {AGAIN}") from e
    if not isinstance(raw, dict):
        raise PolicyFolderError(f"{file} is damaged (no table): {AGAIN}")
    return raw


def _features(path: Path, config: Mapping[str, Any], key: str) -> dict[str, Feature]:
    try:
        made = {str(k): Feature(str(f["type"]), tuple(map(int, f["shape"]))) for k, f in config[key].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise PolicyFolderError(f"{path / CONFIG} is damaged ('{key}' is no table of features): {AGAIN}") from e
    if any(not f.shape or min(f.shape) < 1 or max(f.shape) > 65536 for f in made.values()):
        raise PolicyFolderError(f"{path / CONFIG} is damaged ('{key}' holds an impossible shape): {AGAIN}")
    return made


def _steps(path: Path, name: str) -> tuple[Step, ...]:
    raw = _json(path / name)
    made = []
    try:
        for step in raw["steps"]:
            file = step.get("state_file")
            if file is not None and (not isinstance(file, str) or Path(file).name != file):
                raise ValueError("a state file in another folder")
            state = _tensors(path / file) if file else {}
            made.append(
                Step(str(step.get("registry_name") or step.get("class")), dict(step.get("config") or {}), state)
            )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise PolicyFolderError(f"{path / name} is damaged ({shown(str(e))}): {AGAIN}") from e
    return tuple(made)


def _tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file as float32. Raises PolicyFolderError: absent, a pointer, cut short, not what
    its publisher has, not finite."""
    try:
        with open(file, "rb") as f:
            start = f.read(len(POINTER))
        if start == POINTER:
            raise PolicyFolderError(f"{file} is a git-LFS pointer, not the weights: run `git lfs pull` in its folder.")
        if file.stat().st_size > MOST_WEIGHTS:
            raise PolicyFolderError(f"{file} is larger than {MOST_WEIGHTS // 1024**3} GiB: name another policy.")
        _check_hash(file)
        tensors = safetensors.torch.load_file(file)
    except FileNotFoundError as e:
        raise PolicyFolderError(f"{file.parent} is incomplete, {file.name} is missing: {AGAIN}") from e
    except (OSError, safetensors.SafetensorError) as e:
        raise PolicyFolderError(f"{file} is damaged or was downloaded in part ({shown(str(e))}): {AGAIN}") from e
    made = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
    strange = next((k for k, t in made.items() if t.is_floating_point() and not torch.isfinite(t).all()), None)
    if strange is not None:
        raise PolicyFolderError(f"{file} holds numbers in {strange} that are not finite: train the policy again.")
    return made


def _check_hash(file: Path) -> None:
    """Compare with the SHA-256 that the download noted: the name of the blob in the hub's cache, or the etag that
    `--local-dir` leaves under .cache. Raises PolicyFolderError."""
    noted = file.resolve().name if file.is_symlink() else ""
    note = file.parent / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    if note.is_file():
        lines = note.read_text(errors="replace").splitlines()
        noted = lines[1].strip() if len(lines) > 1 else ""
    if len(noted) != 64 or set(noted) - set("0123456789abcdef"):  # a small file's etag is git's hash
        return
    with open(file, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(f)
    if digest != noted:
        raise PolicyFolderError(f"{file} does not match its hash in the hub ({noted[:12]}...): {AGAIN}")


def _sha256(f: Any) -> str:
    digest = hashlib.sha256()
    while block := f.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
