"""What lerobot's own policies answer, for `test_lerobot_policies.py`: golden/lerobot.json.

In an environment that has lerobot 0.4.4: `python -m tests.export.make_lerobot_golden`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from diffusers.schedulers import scheduling_ddpm
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy, ACTTemporalEnsembler
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE

from tests.export.lerobot_golden import GOLDEN, observation, weight

SMALL = {
    "dim_model": 32,
    "n_heads": 4,
    "dim_feedforward": 48,
    "n_encoder_layers": 2,
    "latent_dim": 4,
    "n_vae_encoder_layers": 1,
    "chunk_size": 8,
    "n_action_steps": 8,
    "pretrained_backbone_weights": None,
}
NARROW = {
    "down_dims": (16, 32),
    "horizon": 8,
    "n_action_steps": 4,
    "diffusion_step_embed_dim": 16,
    "spatial_softmax_num_keypoints": 4,
    "num_train_timesteps": 20,
}
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "act": (ACTConfig, ACTPolicy, SMALL),
    "act-pre-norm": (
        ACTConfig,
        ACTPolicy,
        {**SMALL, "pre_norm": True, "n_decoder_layers": 2, "feedforward_activation": "gelu", "n_action_steps": 5},
    ),
    "diffusion": (DiffusionConfig, DiffusionPolicy, {**NARROW, "crop_shape": (36, 60)}),
    "diffusion-ddim": (
        DiffusionConfig,
        DiffusionPolicy,
        {
            **NARROW,
            "noise_scheduler_type": "DDIM",
            "num_inference_steps": 6,
            "prediction_type": "sample",
            "beta_schedule": "linear",
            "resize_shape": (33, 50),
            "crop_ratio": 0.9,
            "use_group_norm": False,
            "use_film_scale_modulation": False,
            "use_separate_rgb_encoder_per_camera": True,
        },
    ),
}


def features(*pictures: str) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    inputs = {f"observation.images.{k}": PolicyFeature(FeatureType.VISUAL, (3, 40, 72)) for k in pictures}
    inputs["observation.state"] = PolicyFeature(FeatureType.STATE, (6,))
    return inputs, {"action": PolicyFeature(FeatureType.ACTION, (6,))}


def statistics(names: dict[str, tuple[int, ...]]) -> dict[str, dict[str, np.ndarray]]:
    rng, out = np.random.default_rng(7), {}
    for name, shape in names.items():
        shape = (3, 1, 1) if len(shape) == 3 else shape
        low, apart = rng.uniform(-1, 0, shape), rng.uniform(0.5, 1.5, shape)
        out[name] = {"mean": low + apart / 2, "std": apart / 4, "min": low, "max": low + apart}
    return out


def answered(kind: str) -> dict[str, Any]:
    config_of, policy_of, settings = CASES[kind]
    inputs, outputs = features("wrist", "front")
    config = config_of(input_features=inputs, output_features=outputs, device="cpu", **settings)
    policy = policy_of(config)
    shapes = {k: list(v.shape) for k, v in policy.state_dict().items()}
    made = {k: torch.from_numpy(np.asarray(weight(k, s))) for k, s in shapes.items()}
    policy.load_state_dict(made)
    stats = statistics({k: f.shape for k, f in {**inputs, **outputs}.items()})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        policy.save_pretrained(folder)
        for processor in make_pre_post_processors(config, dataset_stats=stats):
            processor.save_pretrained(folder)
        files = {p.name: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
        states = {
            p.name: {k: v.tolist() for k, v in safetensors.torch.load_file(p).items()}
            for p in sorted(folder.glob("policy_*.safetensors"))
        }
        files["config.json"].setdefault("type", config.type)  # newer versions of its parser leave it out
        policy = policy_of.from_pretrained(folder, config=config).eval()
        pre, post = make_pre_post_processors(config, pretrained_path=folder)
    raw = {k: {"type": f.type.value, "shape": f.shape} for k, f in inputs.items()}
    older, seen = (pre({k: torch.from_numpy(v) for k, v in observation(raw, n).items()}) for n in (2, 1))
    with torch.no_grad():
        if kind.startswith("act"):
            chunk = policy.predict_action_chunk(seen)
        else:
            chunk = denoised(policy, [older, seen])
    actions = torch.stack([post(chunk[:, k]) for k in range(chunk.shape[1])], 1)
    return {"files": files, "states": states, "shapes": shapes, "actions": actions[0].tolist()}


def denoised(policy: DiffusionPolicy, observations: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Actions from these observations, the oldest first, with noise that a seed fixes."""
    config, model = policy.config, policy.diffusion
    shape = (model.num_inference_steps + 1, config.horizon, 6)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    fresh = iter(noise[1:])
    scheduling_ddpm.randn_tensor = lambda *args, **how: next(fresh)[None]
    batch = {OBS_STATE: torch.stack([o[OBS_STATE] for o in observations], 1)}
    pictures = [torch.stack([o[key] for key in config.image_features], 1) for o in observations]
    return model.generate_actions({**batch, OBS_IMAGES: torch.stack(pictures, 1)}, noise=noise[:1])


def ensembled(coefficient: float, steps: int = 6, updates: int = 12) -> dict[str, Any]:
    chunks = np.random.default_rng(3).uniform(-1, 1, (updates, steps, 6)).astype(np.float32)
    ensembler = ACTTemporalEnsembler(coefficient, steps)
    actions = [ensembler.update(torch.from_numpy(c)[None])[0].tolist() for c in chunks]
    return {"coefficient": coefficient, "chunks": np.round(chunks, 7).tolist(), "actions": actions}


if __name__ == "__main__":
    made = {kind: answered(kind) for kind in CASES} | {"ensemble": ensembled(0.1)}
    GOLDEN.write_text(json.dumps(made, sort_keys=False, separators=(",", ":")) + "\n")
    print(GOLDEN, GOLDEN.stat().st_size, "bytes")
