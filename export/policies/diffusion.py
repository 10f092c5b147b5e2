"""LeRobot's Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): a U-Net over time that takes the noise out of a plan.

Two networks: `Encoder` makes one condition of the newest observations, `Denoiser` takes one step of the schedule. What
depends on the step alone (features of its time, coefficients of DDPM or DDIM, its noise) are tables that the step's
place picks from: the noise is fixed by a seed, so that the same observations give the same plan.

Source of the schedules: Ho et al. 2020 (arXiv 2006.11239), Song et al. 2021 (arXiv 2010.02502), Nichol and Dhariwal
2021 (arXiv 2102.09672); of the key points: Finn et al. 2016 (arXiv 1509.06113).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.policies.folder import ACTION, STATE, Folder
from export.policies.resnet import DEPTHS, Norm, resnet_of
from export.policies.settings import Denoising, Plan, Settings

AT = "diffusion."
PARTS = ("0", "1", "4", "5", "6", "7")  # of the ResNet, by their places in a sequence
SEED = 0
NEVER = 1e9  # a bound that no sample reaches


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) of operators that every engine has (Misra 2019, arXiv 1908.08681)."""
    e = torch.exp(torch.clamp(x, max=20.0))
    n = e * (e + 2)
    return x * (n / (n + 2))


class Taken:
    """Weights under one name, and which of them were asked for."""

    def __init__(self, weights: Mapping[str, Tensor], taken: set[str], at: str):
        self.weights, self.taken, self.at = weights, taken, at

    def under(self, name: str) -> Taken:
        return Taken(self.weights, self.taken, f"{self.at}{name}.")

    def has(self, name: str) -> bool:
        return self.at + name in self.weights

    def __getitem__(self, name: str) -> Tensor:
        self.taken.add(self.at + name)
        return self.weights[self.at + name]

    def into(self, module: nn.Module, name: str) -> None:
        """Fill in `weight` and `bias` of a layer."""
        module.load_state_dict({k: self[f"{name}.{k}"] for k in ("weight", "bias")})

    def conv(self, name: str, stride: int = 1) -> nn.Conv1d:
        o, i, k = self[f"{name}.weight"].shape
        layer = nn.Conv1d(i, o, k, stride, k // 2)
        self.into(layer, name)
        return layer

    def linear(self, name: str) -> nn.Linear:
        o, i = self[f"{name}.weight"].shape
        layer = nn.Linear(i, o)
        self.into(layer, name)
        return layer


class Look(nn.Module):
    """Pictures [N,3,h,w] to features [N,F]: resized and cropped in the middle, a ResNet, key points."""

    grid: Tensor

    def __init__(self, w: Taken, s: Settings, size: tuple[int, int]):
        """`size`: height and width of the picture."""
        super().__init__()
        self.resize = s.pair_or_none("resize_shape")
        crop, ratio = s.pair_or_none("crop_shape"), s.share("crop_ratio", 1.0)
        if self.resize is not None:
            crop = None if ratio == 1.0 else (int(self.resize[0] * ratio), int(self.resize[1] * ratio))
            for name, n, m in (("down", self.resize[0], size[0]), ("across", self.resize[1], size[1])):
                self.register_buffer(name, _resizing(m, n))
            size = self.resize
        self.crop = crop
        self.corner = (round((size[0] - crop[0]) / 2), round((size[1] - crop[1]) / 2)) if crop else (0, 0)
        inner = {
            k.removeprefix(f"{w.at}backbone."): t for k, t in w.weights.items() if k.startswith(w.at + "backbone.")
        }
        norm = Norm.GROUPS if s.flag("use_group_norm") else Norm.FROZEN
        self.backbone = resnet_of(inner, DEPTHS[s.choice("vision_backbone", tuple(DEPTHS))], norm, PARTS)
        w.taken |= {f"{w.at}backbone.{k}" for k in self.backbone.take(inner, PARTS)}
        self.points = nn.Conv2d(self.backbone.channels, len(w["pool.nets.weight"]), 1)
        w.into(self.points, "pool.nets")
        self.out = w.linear("out")
        h, wide = (-(-n // 32) for n in (crop or size))
        self.register_buffer("grid", torch.zeros(h * wide, 2))
        self.grid.copy_(w["pool.pos_grid"])  # x and y of each cell, from -1 to 1

    def forward(self, x: Tensor) -> Tensor:
        if self.resize is not None:
            x = self.get_buffer("down") @ x @ self.get_buffer("across").T
        if self.crop is not None:
            (top, left), (h, w) = self.corner, self.crop
            x = x[..., top : top + h, left : left + w]
        share = torch.softmax(self.points(self.backbone(x)).flatten(2), -1)
        return F.relu(self.out((share @ self.grid).flatten(1)))


def _resizing(old: int, new: int) -> Tensor:
    """The matrix [new, old] of the bilinear filter, widened where it shrinks, along one side of a picture."""
    eye = torch.eye(old)[None, None]
    return F.interpolate(eye, (new, old), mode="bilinear", antialias=True, align_corners=False)[0, 0]


class Encoder(nn.Module):
    """Normalised pictures and states of every observation, the oldest first -> condition [1,C]."""

    def __init__(self, w: Taken, s: Settings, size: tuple[int, int], cameras: int):
        super().__init__()
        apart = s.flag("use_separate_rgb_encoder_per_camera")
        names = [f"rgb_encoder.{k}" for k in range(cameras)] if apart else ["rgb_encoder"]
        looks = [Look(w.under(name), s, size) for name in names]
        self.features = looks[0].out.out_features * cameras
        self.looks = nn.ModuleList(looks)

    def forward(self, observations: Sequence[tuple[Sequence[Tensor], Tensor]]) -> Tensor:
        every = [list(pictures) for pictures, _ in observations]
        looks = list(self.looks) if len(self.looks) > 1 else [self.looks[0]] * len(every[0])
        seen: list[list[Tensor]] = [[state] for _, state in observations]
        for look in dict.fromkeys(looks):  # each once, for all pictures that it looks at
            mine = [(k, c) for k in range(len(every)) for c, other in enumerate(looks) if other is look]
            made = look(torch.cat([every[k][c] for k, c in mine]))
            for n, (k, _) in enumerate(mine):
                seen[k].append(made[n : n + 1])
        return torch.cat([x for parts in seen for x in parts], 1)


class Part(nn.Module):
    """Convolution, group normalisation, mish."""

    def __init__(self, w: Taken, groups: int):
        super().__init__()
        self.conv = w.conv("block.0")
        self.norm = nn.GroupNorm(groups, self.conv.out_channels)
        w.into(self.norm, "block.1")

    def forward(self, x: Tensor) -> Tensor:
        return mish(self.norm(self.conv(x)))


class Residual(nn.Module):
    """Two parts and a skip; the condition shifts, and may scale, what is between them."""

    def __init__(self, w: Taken, groups: int, scaled: bool):
        super().__init__()
        self.a, self.b, self.scaled = Part(w.under("conv1"), groups), Part(w.under("conv2"), groups), scaled
        self.film = w.linear("cond_encoder.1")
        self.skip = w.conv("residual_conv") if w.has("residual_conv.weight") else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h, film = self.a(x), self.film(mish(condition))[..., None]
        if self.scaled:
            scale, shift = film.chunk(2, 1)
            h = h * scale + shift
        else:
            h = h + film
        return self.b(h) + self.skip(x)


class UNet(nn.Module):
    """Sample [1,T,A], condition [1,C] and features of the step's time [1,E] -> the model's answer [1,T,A]."""

    def __init__(self, w: Taken, s: Settings):
        super().__init__()
        groups, scaled = s.whole("n_groups"), s.flag("use_film_scale_modulation")
        depth = len(s.wholes("down_dims"))

        def two(at: Taken) -> nn.ModuleList:
            return nn.ModuleList(Residual(at.under(str(k)), groups, scaled) for k in range(2))

        self.down = nn.ModuleList(two(w.under(f"down_modules.{k}")) for k in range(depth))
        self.less = nn.ModuleList(w.conv(f"down_modules.{k}.2", 2) for k in range(depth - 1))
        self.middle = two(w.under("mid_modules"))
        self.up = nn.ModuleList(two(w.under(f"up_modules.{k}")) for k in range(depth - 1))
        self.more = nn.ModuleList()
        for k in range(depth - 1):
            i, o, width = w[f"up_modules.{k}.2.weight"].shape
            self.more.append(nn.ConvTranspose1d(i, o, width, 2, 1))
            w.into(self.more[-1], f"up_modules.{k}.2")
        self.last, self.out = Part(w.under("final_conv.0"), groups), w.conv("final_conv.1")

    def forward(self, sample: Tensor, condition: Tensor, time: Tensor) -> Tensor:
        x, given = sample.transpose(1, 2), torch.cat([time, condition], 1)
        kept = []
        for k, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, given)
            kept.append(x)
            x = self.less[k](x) if k < len(self.less) else x
        for block in self.middle:
            x = block(x, given)
        for blocks, more in zip(self.up, self.more, strict=True):
            x = torch.cat([x, kept.pop()], 1)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, given)
            x = more(x)
        return self.out(self.last(x)).transpose(1, 2)


class Denoiser(nn.Module):
    """One step of the schedule: sample [1,T,A], condition [1,C], place [1,N] (1 at the step, 0 elsewhere) -> the next
    sample. The first step begins with pure noise, which it adds to what it is given: zeros."""

    start: Tensor
    times: Tensor
    factors: Tensor
    noise: Tensor

    def __init__(self, w: Taken, s: Settings, shape: tuple[int, int]):
        """`shape`: steps and width of a sample."""
        super().__init__()
        self.unet, self.shape = UNet(w, s), shape
        steps, factors, self.bound = schedule(s)
        encode = w.under("diffusion_step_encoder")
        with torch.no_grad():
            wide = encode.linear("3")(mish(encode.linear("1")(_features(steps, s.whole("diffusion_step_embed_dim")))))
        self.register_buffer("times", wide)
        self.register_buffer("factors", factors)
        noise = torch.randn((len(steps) + 1, *shape), generator=torch.Generator().manual_seed(SEED))
        self.register_buffer("start", noise[:1])
        self.register_buffer("noise", noise[1:].flatten(1))

    def forward(self, sample: Tensor, condition: Tensor, place: Tensor) -> Tensor:
        sample = sample + place[:, :1, None] * self.start
        said = self.unet(sample, condition, place @ self.times)
        f = (place @ self.factors).transpose(0, 1)[:, :, None]  # [8,1,1]
        clean = torch.clamp(f[0:1] * sample + f[1:2] * said, -self.bound, self.bound)
        error = f[2:3] * sample + f[3:4] * said
        fresh = (place @ self.noise).reshape(1, *self.shape)
        return f[4:5] * clean + f[5:6] * sample + f[6:7] * error + f[7:8] * fresh


def _features(steps: Tensor, dim: int) -> Tensor:
    """Sinusoidal features [N,dim] of the steps' times."""
    frequency = torch.exp(torch.arange(dim // 2) * -(math.log(10000) / (dim // 2 - 1)))
    angle = steps.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], 1)


def schedule(s: Settings) -> tuple[Tensor, Tensor, float]:
    """Times int64[N] of the steps, from noise to plan; their factors float32[N,8]: of sample and answer in the clean
    plan, of both in the error, of clean plan, sample, error and noise in the next sample; and the bound of a clean
    plan."""
    trained = s.whole("num_train_timesteps", 10_000)
    count = s.whole_or("num_inference_steps", trained)
    kept = np.cumprod(1 - _betas(s, trained))  # share of the plan in a sample, squared
    steps = np.arange(count)[::-1] * (trained // count)
    ddim = s.choice("noise_scheduler_type", ("DDPM", "DDIM")) == "DDIM"
    error = s.choice("prediction_type", ("epsilon", "sample")) == "epsilon"
    bound = s.number("clip_sample_range") if s.flag("clip_sample") else NEVER
    rows = []
    for t in steps:
        a = kept[t]
        before = kept[t - trained // count] if t >= trained // count else 1.0
        clean = (1 / np.sqrt(a), -np.sqrt(1 - a) / np.sqrt(a)) if error else (0.0, 1.0)
        wrong = (0.0, 1.0) if error else (1 / np.sqrt(1 - a), -np.sqrt(a) / np.sqrt(1 - a))
        if ddim:
            rows.append((*clean, *wrong, np.sqrt(before), 0.0, np.sqrt(1 - before), 0.0))
            continue
        now = a / before
        spread = np.sqrt(max((1 - before) / (1 - a) * (1 - now), 1e-20)) if t > 0 else 0.0
        stay = np.sqrt(now) * (1 - before) / (1 - a)
        rows.append((*clean, *wrong, np.sqrt(before) * (1 - now) / (1 - a), stay, 0.0, spread))
    return torch.from_numpy(steps.copy()), torch.tensor(np.array(rows), dtype=torch.float32), bound


def _betas(s: Settings, trained: int) -> np.ndarray:
    """The share of noise that each step of the training adds, float64[trained]."""
    kind = s.choice("beta_schedule", ("squaredcos_cap_v2", "linear", "scaled_linear"))
    first, last = s.number("beta_start"), s.number("beta_end")
    if kind == "linear":
        return np.linspace(first, last, trained)
    if kind == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, trained) ** 2
    left = np.cos((np.arange(trained + 1) / trained + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - left[1:] / left[:-1], 0.999)


def diffusion(folder: Folder, s: Settings, cameras: Sequence[str]) -> Plan:
    """The networks of a folder of type diffusion. Raises KeyError for a weight that is missing, RuntimeError for one of
    another size, PolicyFolderError for its settings."""
    history, horizon, use = s.whole("n_obs_steps", 16), s.whole("horizon", 1000), s.whole("n_action_steps", 1000)
    if use > horizon - history + 1:
        raise folder.refused(
            f"uses {use} actions, and a plan of {horizon} has {horizon - history + 1} from the newest observation on",
            "train with fewer n_action_steps.",
        )
    s.ignored("crop_is_random", "drop_n_last_frames", "do_mask_loss_for_padding", "compile_model", "compile_mode")
    s.ignored("gradient_checkpointing")
    s.ignored("kernel_size", "spatial_softmax_num_keypoints")  # the weights say them
    taken: set[str] = set()
    w = Taken(folder.weights, taken, AT)
    size = folder.inputs[cameras[0]].shape[1:]
    encoder = Encoder(w, s, (size[0], size[1]), len(cameras))
    denoiser = Denoiser(w.under("unet"), s, (horizon, folder.outputs[ACTION].shape[0]))
    folder.all_taken(taken, ())
    wide = history * (folder.inputs[STATE].shape[0] + encoder.features)
    taken_by = w["unet.down_modules.0.0.cond_encoder.1.weight"].shape[1] - denoiser.times.shape[1]
    if taken_by != wide:
        raise RuntimeError(f"its U-Net takes a condition of {taken_by} numbers, and {history} observations make {wide}")
    steps = horizon - history + 1
    return Plan(encoder, steps, use=use, denoising=Denoising(denoiser, history, wide, len(denoiser.times)))
