"""What training and distilling a HarmoWam share beyond the loop: latents, futures, and noisy proprioception."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.data import Demonstrations
from export.labels import HELD_RAD, Labels
from export.loop import Loop
from export.models import HarmoWam
from export.rows import images
from export.schedule import Stage

GRIP_RAD = 0.06  # rad: random change of the jaw's opening on a held thing (`_felt`)


class WorldLoop(Loop[HarmoWam]):
    """`labels` must belong to `data`."""

    def __init__(
        self,
        run: Path,
        model: HarmoWam,
        data: Demonstrations,
        labels: Labels,
        schedule: Mapping[str, Stage],
        seed: int,
        shards: int,
        bf16: bool | None,
        **settings: Any,
    ) -> None:
        """Raises what Loop raises."""
        self.labels = labels
        super().__init__(run, model, model.cfg, data, schedule, seed, shards, bf16, **settings)

    def _row_bytes(self) -> int:
        c = self.cfg
        return int(
            2 * (1 + c.futures) * c.latent_channels * c.latent_size**2 + 2 * c.unet_channels[1] * c.token_size**2
        )

    def _encode_all(self) -> None:
        """The latent of every front picture."""

        def encode(rows: np.ndarray) -> tuple[Tensor]:
            return (self.average.tokeniser.encode(images(self.data.front[rows], self.device)),)

        (self.latents,) = self._every_row("encode", encode, [self.average.tokeniser])

    def _state(self, rows: np.ndarray) -> Tensor:
        return (self._row(self.labels.proprio, rows) - self.model.proprio_mean) / self.model.proprio_std

    def _felt(self, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """`_state` with a little noise. In half of the rows with a held thing, the jaw's opening is changed as if the
        thing had another width, but never as far shut as if the jaw had closed on nothing."""
        state = self._state(rows)
        other = self.labels.holds[rows] & (rng.random(len(rows)) < 0.5)
        jaw = self.cfg.proprio.index("gripper")
        least = np.minimum(HELD_RAD - self.labels.proprio[rows, jaw], 0.0)
        wider = other * np.maximum(rng.uniform(-GRIP_RAD, GRIP_RAD, len(rows)), least)
        state[:, jaw] += torch.from_numpy(wider.astype(np.float32)).to(self.device) / self.model.proprio_std[jaw]
        return state + 0.03 * torch.randn_like(state)

    def _future(self, rows: np.ndarray) -> Tensor:
        return self.latents[torch.from_numpy(self.labels.future[rows])].flatten(1, 2).float()
