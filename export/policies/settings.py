"""A policy's `config.json`, of which every key is read, known to have no effect on a robot, or refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from export.policies.folder import CONFIG, Folder, PolicyFolderError

# What LeRobot keeps of a training and of where a policy lies; beginnings of names end with an underscore.
WITHOUT_EFFECT = (
    "type",
    "input_features",
    "output_features",
    "normalization_mapping",
    "device",
    "use_amp",
    "push_to_hub",
    "repo_id",
    "private",
    "tags",
    "license",
    "pretrained_path",
    "pretrained_revision",
    "pretrained_backbone_weights",
    "dropout",
    "optimizer_",
    "scheduler_",
)


@dataclass(frozen=True)
class Denoising:
    """`denoiser(sample, condition, place)`: see `export.policies.diffusion.Denoiser`. `history`: observations that the
    condition, of `width` numbers, is made of; `count`: steps from noise to plan."""

    denoiser: nn.Module
    history: int
    width: int
    count: int


@dataclass(frozen=True)
class Plan:
    """A network and how its answers are used. `steps`: of a plan from the newest observation on.

    `network(pictures, state)` gives normalised actions [1, steps, A] from normalised pictures [1,3,h,w] each and the
    normalised state; with `denoising`, `network(observations)` gives a condition. `use`, `ensemble`: as
    `runtime.manifest.Chunk` says.
    """

    network: nn.Module
    steps: int
    use: int | None = None
    ensemble: float | None = None
    denoising: Denoising | None = None


class Settings:
    """Reads the keys of a configuration and remembers which; `finish` refuses the others."""

    def __init__(self, folder: Folder):
        self.folder, self.read = folder, set[str]()

    def _wrong(self, key: str, wanted: str) -> PolicyFolderError:
        value = self.folder.config.get(key)
        return self.folder.refused(
            f"has '{key}' {value!r} in its {CONFIG}, and this version takes {wanted}",
            "train with that, or export it with a version that takes more.",
        )

    def _get(self, key: str) -> Any:
        self.read.add(key)
        return self.folder.config.get(key)

    def whole(self, key: str, most: int = 100_000) -> int:
        value = self._get(key)
        if type(value) is not int or not 1 <= value <= most:
            raise self._wrong(key, f"a whole number from 1 to {most}")
        return value

    def flag(self, key: str, missing: bool | None = None) -> bool:
        """`missing`: what LeRobot does where the key is absent."""
        value = self._get(key)
        value = missing if value is None else value
        if type(value) is not bool:
            raise self._wrong(key, "true or false")
        return value

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        value = self._get(key)
        if value not in known:
            raise self._wrong(key, " or ".join(known))
        return str(value)

    def number_or_none(self, key: str) -> float | None:
        value = self._get(key)
        if value is not None and (type(value) not in (int, float) or not -1 <= value <= 1):
            raise self._wrong(key, "null or a number from -1 to 1")
        return value if value is None else float(value)

    def number(self, key: str) -> float:
        value = self._get(key)
        if type(value) not in (int, float) or not 0 < value < 1e6:
            raise self._wrong(key, "a number above 0")
        return float(value)

    def share(self, key: str, missing: float) -> float:
        value = self._get(key)
        value = missing if value is None else value
        if type(value) not in (int, float) or not 0 < value <= 1:
            raise self._wrong(key, "a number above 0, at most 1")
        return float(value)

    def whole_or(self, key: str, missing: int) -> int:
        """At most `missing`, which is also what null means."""
        return missing if self._get(key) is None else self.whole(key, missing)

    def wholes(self, key: str) -> list[int]:
        value = self._get(key)
        if not isinstance(value, list) or not value or any(type(n) is not int or not 1 <= n < 100_000 for n in value):
            raise self._wrong(key, "a list of whole numbers")
        return value

    def pair_or_none(self, key: str) -> tuple[int, int] | None:
        if self._get(key) is None:
            return None
        pair = self.wholes(key)
        if len(pair) != 2:
            raise self._wrong(key, "null or two whole numbers")
        return pair[0], pair[1]

    def only(self, key: str, value: Any) -> None:
        """The key may be absent."""
        found = self._get(key)
        if found is not None and found != value:
            raise self._wrong(key, repr(value))

    def ignored(self, *keys: str) -> None:
        """Keys that training alone uses."""
        self.read |= set(keys)

    def finish(self) -> None:
        """Raises PolicyFolderError for a key that was not read and is not known to have no effect."""
        self.only("use_peft", False)
        for key in self.folder.config:
            if key not in self.read and not any(
                key == known or (known.endswith("_") and key.startswith(known)) for known in WITHOUT_EFFECT
            ):
                raise self.folder.refused(
                    f"has '{key}' in its {CONFIG}, which this version does not know",
                    "export it with a version that does.",
                )
