"""Every number that shapes the models and their training; a checkpoint holds these numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    # "flow": flow matching in a few Euler steps. "one_step": one pass each, with a finish signal (export/one_step.py).
    form: str = "flow"
    # pictures and latents
    image: int = 96
    latent_channels: int = 16
    latent_size: int = 12
    encoder_channels: tuple[int, int, int] = (32, 64, 96)
    # predicted visual evolution: +0.4 s, +0.8 s, and the frame of the next gripper event (or the end)
    horizon_s: tuple[float, float] = (0.4, 0.8)
    futures: int = 3
    # world model
    unet_channels: tuple[int, int] = (128, 192)
    token_channels: int = 96
    token_size: int = 6
    condition: int = 192
    text_encoder: str = "ngrams"  # export/text.py
    text_ngrams: int = 512  # width of a sentence embedding
    text_dim: int = 32
    world_steps: int = 2
    # proprioception given to the models: no absolute position
    proprio: tuple[str, ...] = ("z", "pitch", "roll", "gripper")
    # predictive expert
    chunk: int = 16
    chunk_dt_s: float = 0.05
    width: int = 128
    layers: int = 3
    heads: int = 4
    action_steps: int = 4
    contact_map: int = 24  # cells per side, over the wrist view
    headings: int = 24  # bins of the turn from the present heading to the heading at the contact
    heading_range: float = math.pi / 3  # rad, to either side
    # Pose of the wrist camera on the SO-101's gripper, from the tool's centre: m forward, m up, rad tilted down. Used
    # for labels only, and only where the dataset has no hand-eye calibration.
    wrist_mount: tuple[float, float, float] = (-0.0861, 0.058, math.pi / 6)
    # reactive expert
    heatmap: int = 48
    # data
    rate_hz: float = 20.0
    # gate labels, from proprioception alone
    gate_window_s: float = 0.35
    gate_height_m: float = 0.062
    gate_radius_m: float = 0.030

    def __post_init__(self) -> None:
        if self.form not in ("flow", "one_step"):
            raise ValueError(f"form '{self.form}' is not known: use flow or one_step")
        if self.form == "one_step" and (self.world_steps, self.action_steps) != (1, 1):
            raise ValueError("a model of form one_step takes one step each: set world_steps = 1 and action_steps = 1")
