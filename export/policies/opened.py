"""A LeRobot policy opened for one arm: the network with everything round it, from camera pictures and measured angles
to joint targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from export.forms import with_whole_norms
from export.onnx import Specs
from export.policies.act import act
from export.policies.diffusion import diffusion
from export.policies.folder import ACTION, CONFIG, STATE, Folder, PolicyFolderError, read_folder
from export.policies.settings import Plan, Settings
from export.policies.statistics import Affine, Processing, processing
from export.policies.units import Units
from export.quantise import Feeds
from firmware_bridge.arms import Family
from runtime.policies import chunk
from runtime.policies.diffusion import DENOISE, ENCODE, diffused
from runtime.policies.history import earlier

KINDS: Mapping[str, Callable[[Folder, Settings, Sequence[str]], Plan]] = {"act": act, "diffusion": diffusion}
PICTURES = ("observation.images.", "observation.image")  # beginnings of the names of pictures


class Round(nn.Module):
    """What is done round a network: pictures (RGB, 0 to 1) and measured angles (rad) in; joint targets (rad) out."""

    scale: Tensor
    offset: Tensor

    def __init__(self, process: Processing, cameras: Sequence[str], units: Units):
        super().__init__()
        self.pictures = nn.ModuleList(_Normal(process.inputs[name]) for name in cameras)
        self.state = _Normal(process.inputs[STATE])
        self.actions = _Normal(process.outputs[ACTION], back=True)
        self.register_buffer("scale", torch.from_numpy(units.scale).float())
        self.register_buffer("offset", torch.from_numpy(units.offset).float())

    def seen(self, given: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Of one observation, pictures [1,3,h,w] in the policy's order and angles [1,J]: both normalised."""
        *pictures, q = given
        normal = [n(x) for n, x in zip(self.pictures, pictures, strict=True)]
        return normal, self.state(q * self.scale + self.offset)

    def targets(self, actions: Tensor) -> Tensor:
        return (self.actions(actions) - self.offset) / self.scale


class Deployed(nn.Module):
    """One observation -> `chunk` [1,K,J]."""

    def __init__(self, plan: Plan, around: Round):
        super().__init__()
        self.network, self.around = plan.network, around

    def forward(self, *given: Tensor) -> Tensor:
        return self.around.targets(self.network(*self.around.seen(given)))


class Encoding(nn.Module):
    """Every observation, the oldest first -> `condition` [1,C]."""

    def __init__(self, plan: Plan, around: Round):
        super().__init__()
        assert plan.denoising is not None
        self.network, self.around, self.history = plan.network, around, plan.denoising.history

    def forward(self, *given: Tensor) -> Tensor:
        n = len(given) // self.history
        condition: Tensor = self.network([self.around.seen(given[k * n : (k + 1) * n]) for k in range(self.history)])
        return condition


class Step(nn.Module):
    """Sample, condition and the step's place -> the next sample, and the `chunk` [1,K,J] that it would be."""

    def __init__(self, plan: Plan, around: Round):
        super().__init__()
        assert plan.denoising is not None
        self.network, self.around, self.first = plan.denoising.denoiser, around, plan.denoising.history - 1

    def forward(self, sample: Tensor, condition: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        after = self.network(sample, condition, place)
        return after, self.around.targets(after[:, self.first :])


class _Normal(nn.Module):
    def __init__(self, affine: Affine | None, back: bool = False):
        super().__init__()
        self.there, self.back = affine is not None, back
        if affine is not None:
            for key in ("shift", "scale", "add"):
                self.register_buffer(key, getattr(affine, key))

    def forward(self, x: Tensor) -> Tensor:
        if not self.there:
            return x
        affine = Affine(*(self.get_buffer(key) for key in ("shift", "scale", "add")))
        return affine.back(x) if self.back else affine(x)


@dataclass(frozen=True)
class Opened:
    """`cameras`: the robot's camera names in the policy's order. `size`: width and height of their pictures. `does`:
    what is done round the network, part by part, for people. `kind`: the bundle's. `specs`: its engines."""

    folder: Folder
    plan: Plan
    cameras: tuple[str, ...]
    size: tuple[int, int]
    does: Mapping[str, str]
    kind: str
    specs: Specs

    @property
    def sample(self) -> tuple[int, ...]:
        """The shape of what a denoiser works on."""
        return self.specs[DENOISE][1]["sample"]

    def answer(self, run: Callable[[str, Feeds], Feeds], feed: Feeds) -> Feeds:
        """The inputs of every engine's last pass, and "chunk" [1,K,J], for the inputs `feed` of the first. `run(engine,
        inputs)` gives its outputs."""
        if self.plan.denoising is None:
            return {**feed, "chunk": run(chunk.ENGINE, feed)["chunk"]}
        return diffused(run, feed, self.sample, self.plan.denoising.count)


def open_folder(path: Path, arm: Family, units: Units) -> Opened:
    """Raises PolicyFolderError for a folder that cannot be exported for arms of the family `arm`."""
    folder = read_folder(path)
    if folder.kind not in KINDS:
        raise folder.refused(
            f"is a policy of type '{folder.kind}', and {', '.join(KINDS)} can be exported", "train one of these."
        )
    cameras = _checked(folder, arm)
    process = processing(folder)
    settings = Settings(folder)
    try:
        plan = KINDS[folder.kind](folder, settings, cameras)
    except KeyError as e:
        raise folder.refused(f"lacks the weight {e}, which its {CONFIG} asks for", "download the folder again.") from e
    except RuntimeError as e:
        why = str(e).splitlines()[-1].strip().rstrip(".")
        raise folder.refused(f"has weights of other sizes than its {CONFIG} says ({why})", "download it again.") from e
    settings.finish()
    names = _robot_names(folder, process, cameras)
    shape = folder.inputs[cameras[0]].shape
    does = _told(folder, plan, process, dict(zip(cameras, names, strict=True)), units)
    around = Round(process, cameras, units)
    kind, specs = _engines(plan, around, names, (1, 3, shape[1], shape[2]), folder.outputs[ACTION].shape[0])
    for module, _, _ in specs.values():
        with_whole_norms(module.eval().requires_grad_(False))
    return Opened(folder, plan, names, (shape[2], shape[1]), does, kind, specs)


def _engines(
    plan: Plan, around: Round, cameras: Sequence[str], picture: tuple[int, ...], joints: int
) -> tuple[str, Specs]:
    """The kind of the bundle and its engines."""

    def inputs(back: int) -> dict[str, tuple[int, ...]]:
        names = [earlier(name, back) for name in (*cameras, "state")]
        return dict(zip(names, [picture] * len(cameras) + [(1, joints)], strict=True))

    d = plan.denoising
    if d is None:
        return "chunk", {chunk.ENGINE: (Deployed(plan, around), inputs(0), ["chunk"])}
    every: dict[str, tuple[int, ...]] = {}
    for back in reversed(range(d.history)):
        every |= inputs(back)
    sample = (1, plan.steps + d.history - 1, joints)
    step = {"sample": sample, "condition": (1, d.width), "place": (1, d.count)}
    return "diffusion", {
        ENCODE: (Encoding(plan, around), every, ["condition"]),
        DENOISE: (Step(plan, around), step, ["next", "chunk"]),
    }


def _checked(folder: Folder, arm: Family) -> list[str]:
    """The policy's names of its pictures, in its order; raises PolicyFolderError for what no arm of the family has."""
    joints = len(arm.JOINTS)
    for features, name in ((folder.inputs, STATE), (folder.outputs, ACTION)):
        if name not in features:
            raise folder.refused(f"has no '{name}'", "train a policy that has one.")
        width = features[name].shape
        if width != (joints,):
            raise folder.refused(
                f"has a '{name}' of {' x '.join(map(str, width))} numbers, and arms of the family '{arm.NAME}' have "
                f"{joints} joints",
                "name the robot that it was trained for with --robot.",
            )
    cameras = [name for name, f in folder.inputs.items() if f.kind == "VISUAL"]
    strange = next((name for name in (*folder.inputs, *folder.outputs) if name not in (STATE, ACTION, *cameras)), None)
    if strange is not None:
        raise folder.refused(f"takes or gives '{strange}', which a robot here does not have", "train without it.")
    if not cameras:
        raise folder.refused("takes no pictures", "train it with a camera.")
    shapes = {folder.inputs[name].shape for name in cameras}
    if len(shapes) > 1 or len(next(iter(shapes))) != 3 or next(iter(shapes))[0] != 3:
        raise folder.refused("takes pictures of several sizes, or not of three colours", "train it with equal ones.")
    return cameras


def _robot_names(folder: Folder, process: Processing, cameras: Sequence[str]) -> tuple[str, ...]:
    """The robot's camera names: before LeRobot's renaming, and without the beginning that its pictures have."""
    before = {policy: robot for robot, policy in process.rename.items()}
    if STATE in before or STATE in process.rename:
        raise folder.refused(f"renames '{STATE}'", "train it without.")
    made = []
    for name in cameras:
        full = before.get(name, name)
        short = full.removeprefix(PICTURES[0])
        made.append("image" if full == PICTURES[1] else short)
        if not short.replace("_", "").replace("-", "").isalnum() and full != PICTURES[1]:
            raise PolicyFolderError(f"{folder.path} has a picture '{full}', whose name no camera can have: rename it.")
    return tuple(made)


def _told(folder: Folder, plan: Plan, process: Processing, cameras: Mapping[str, str], units: Units) -> dict[str, str]:
    where = "processors" if folder.pre is not None else "weights"
    by = {mode for name, mode in process.modes.items() if name in cameras}
    use = f"{plan.use} of {plan.steps} targets, then the next plan" if plan.use else f"{plan.steps} targets"
    if plan.ensemble is not None:
        use = f"the mean of all plans for an instant, weighted exp(-{plan.ensemble:g} i) from the oldest"
    h, w = folder.inputs[next(iter(cameras))].shape[1:]
    return {
        "source": f"LeRobot {folder.kind}, statistics from its {where}",
        "cameras": ", ".join(f"{robot} as {policy}" for policy, robot in cameras.items()),
        "pictures": f"{w} x {h}, RGB from 0 to 1, then {' and '.join(sorted(by))}",
        "state": f"{units.name}, then {process.modes[STATE]}",
        "actions": f"{process.modes[ACTION]} undone, from {units.name}",
        "chunk": use,
        **_told_of_time(plan),
    }


def _told_of_time(plan: Plan) -> dict[str, str]:
    d = plan.denoising
    if d is None:
        return {}
    return {"history": f"{d.history} observations, a step apart", "noise": f"fixed by a seed, out in {d.count} steps"}
