"""Normalisation as LeRobot does it, read from a folder's processors or, in an older folder, from its weights.

Every step of a processor is known by name and does one known thing, or the folder is refused: a step that is passed
over would be a policy that does something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from export.policies.folder import PRE, STATISTICS, Feature, Folder, Step

EPS = 1e-8  # LeRobot's own, where a folder does not say one
BOUNDS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
# Names of the steps that LeRobot 0.4 to 0.6 writes for the policies read here.
RENAME, BATCH, DEVICE = "rename_observations_processor", "to_batch_processor", "device_processor"
NORMALISE, UNNORMALISE = "normalizer_processor", "unnormalizer_processor"
TRAIN_AGAIN = "train with these statistics in the dataset, or save the policy again with its processors."


@dataclass(frozen=True)
class Affine:
    """`(x - shift) / scale + add`, each float32 of the feature's shape (pictures [3,1,1])."""

    shift: Tensor
    scale: Tensor
    add: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale + self.add

    def back(self, y: Tensor) -> Tensor:
        return (y - self.add) * self.scale + self.shift


@dataclass(frozen=True)
class Processing:
    """What comes before and after the network. `rename`: the robot's name of an observation -> the policy's.

    `inputs`, `outputs`: by the policy's name; None where a feature is taken as it is (IDENTITY). `modes`: by name.
    """

    inputs: Mapping[str, Affine | None]
    outputs: Mapping[str, Affine | None]
    modes: Mapping[str, str]
    rename: Mapping[str, str] = field(default_factory=dict)


def processing(folder: Folder) -> Processing:
    """Raises PolicyFolderError for a statistic that is missing or impossible, and for a step that is not known."""
    if folder.pre is None or folder.post is None:
        return _from_weights(folder)
    rename: dict[str, str] = {}
    inputs: dict[str, Affine | None] | None = None
    outputs: dict[str, Affine | None] | None = None
    modes: dict[str, str] = {}
    for before, step in [(True, s) for s in folder.pre] + [(False, s) for s in folder.post]:
        if step.name == RENAME and before:
            rename = _renamed(folder, step)
        elif step.name == DEVICE:
            _refuse_other(folder, step, {"device"}, {"float_dtype": (None, "float32")})
        elif step.name == BATCH and before:
            _refuse_other(folder, step, set(), {})
        elif step.name == NORMALISE and before and inputs is None:
            inputs = _normals(folder, step, folder.inputs, False, modes)
        elif step.name == UNNORMALISE and not before and outputs is None:
            outputs = _normals(folder, step, folder.outputs, True, modes)
        else:
            raise folder.refused(
                f"has the processor step '{step.name}', which this version does not know",
                "export it with a version that does, or train without that step.",
            )
    missing = NORMALISE if inputs is None else UNNORMALISE if outputs is None else ""
    if inputs is None or outputs is None:
        raise folder.refused(f"has processors without the step '{missing}'", TRAIN_AGAIN)
    return Processing(inputs, outputs, modes, rename)


def _renamed(folder: Folder, step: Step) -> dict[str, str]:
    _refuse_other(folder, step, {"rename_map"}, {})
    rename = step.config.get("rename_map") or {}
    if not isinstance(rename, dict) or not all(isinstance(v, str) for v in rename.values()):
        raise folder.refused(f"has a '{RENAME}' whose rename_map is no table of names", "download the folder again.")
    if len(set(rename.values())) < len(rename):
        raise folder.refused("renames two observations to one name", "correct rename_map in " + PRE + ".")
    return dict(rename)


def _refuse_other(folder: Folder, step: Step, free: set[str], only: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises PolicyFolderError for a setting of a step that is neither in `free` nor one of the values in `only`."""
    for key, value in step.config.items():
        if key not in free and value not in only.get(key, ()):
            raise folder.refused(
                f"sets '{key}' of the processor step '{step.name}' to {value!r}, which this version does not do",
                "train without it.",
            )


def _normals(
    folder: Folder, step: Step, wanted: Mapping[str, Feature], inverse: bool, modes: dict[str, str]
) -> dict[str, Affine | None]:
    """The affine map of each feature in `wanted`; fills in `modes`."""
    _refuse_other(folder, step, {"eps", "features", "norm_map"}, {"normalize_observation_keys": (None,)})
    features, norm_map = step.config.get("features"), step.config.get("norm_map")
    eps = step.config.get("eps", EPS)
    if not isinstance(features, dict) or not isinstance(norm_map, dict) or not isinstance(eps, float):
        raise folder.refused(f"has a '{step.name}' without features and norm_map", "download the folder again.")
    made = {}
    for name, feature in wanted.items():
        if name not in features:
            raise folder.refused(f"does not normalise '{name}', which the policy takes", TRAIN_AGAIN)
        modes[name] = mode = str(norm_map.get(feature.kind, "IDENTITY"))
        stats = {k.rpartition(".")[2]: t for k, t in step.state.items() if k.rpartition(".")[0] == name}
        made[name] = _affine(folder, name, feature, mode, stats, eps, inverse)
    return made


def _affine(
    folder: Folder,
    name: str,
    feature: Feature,
    mode: str,
    stats: Mapping[str, Tensor],
    eps: float,
    inverse: bool,
) -> Affine | None:
    """None for IDENTITY. Where the bounds of MIN_MAX are equal LeRobot puts `eps` for their distance."""
    if mode == "IDENTITY":
        return None
    if mode != "MEAN_STD" and mode not in BOUNDS:
        raise folder.refused(f"normalises '{name}' by {mode}, which this version does not know", TRAIN_AGAIN)
    keys = BOUNDS.get(mode, ("mean", "std"))
    for key in keys:
        if key not in stats:
            raise folder.refused(f"lacks the statistic '{key}' of '{name}', by which it is normalised", TRAIN_AGAIN)
    shape = (feature.shape[0], 1, 1) if feature.kind == "VISUAL" else feature.shape
    a, b = (stats[key].float().reshape(-1) for key in keys)
    if len(a) != shape[0] or len(b) != shape[0]:
        raise folder.refused(f"has statistics of '{name}' for {len(a)} numbers, and it has {shape[0]}", TRAIN_AGAIN)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()) or bool(
        ((b if mode == "MEAN_STD" else b - a) < 0).any()
    ):
        raise folder.refused(f"has impossible statistics of '{name}' ({' and '.join(keys)})", TRAIN_AGAIN)
    a, b = a.reshape(shape), b.reshape(shape)
    if mode == "MEAN_STD":
        return Affine(a, b if inverse else b + eps, torch.zeros(shape))
    apart = b - a
    return Affine(a, torch.where(apart == 0, torch.full_like(apart, eps), apart) / 2, -torch.ones(shape))


def _from_weights(folder: Folder) -> Processing:
    """Statistics of a folder from before processors: `normalize_inputs.buffer_observation_state.mean` and the like,
    some with a robot's name in them."""
    mapping = folder.config.get("normalization_mapping")
    if not isinstance(mapping, dict):
        raise folder.refused(
            f"has neither {PRE} nor a normalization_mapping in its config.json", "download the folder again."
        )
    if not any(k.startswith(STATISTICS) for k in folder.weights):
        raise folder.refused(
            f"is incomplete, {PRE} is missing and the weights hold no statistics", "download the folder again."
        )
    modes: dict[str, str] = {}
    made: list[dict[str, Affine | None]] = []
    for layer, wanted in (("normalize_inputs", folder.inputs), ("unnormalize_outputs", folder.outputs)):
        maps: dict[str, Affine | None] = {}
        for name, feature in wanted.items():
            plain = re.escape(name).replace(r"\.", "[._]")
            pattern = re.compile(rf"^{layer}\.(?:[\w-]+\.)?buffer[._]{plain}\.(\w+)$")
            stats = {m[1]: t for k, t in folder.weights.items() if (m := pattern.match(k))}
            modes[name] = str(mapping.get(feature.kind, "IDENTITY"))
            maps[name] = _affine(folder, name, feature, modes[name], stats, EPS, layer.startswith("un"))
        made.append(maps)
    return Processing(made[0], made[1], modes)
