"""Two servos with one id, whose answers overlap on the line: they are told from one, and neither is renamed."""

import numpy as np
import pytest

from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.config import ArmError
from firmware_bridge.service import PROBE_S, SLOW_S, look, look_at_all, set_id
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.campaign import MIDDLE, SO101
from firmware_bridge.virtual.line import MemoryPort
from firmware_bridge.virtual.plant import KinematicPlant

ALONE = ("STS3215", "SCS0009", "XL330-M288", "XM430-W350")


def line(models, steps, ids=None):
    """Servos of `models` standing at `steps`, all with id 1 where no `ids` are given, and a master that scans."""
    known = [MODELS[m] for m in models]
    servos = VirtualBus(ids or [1] * len(known), KinematicPlant(np.array(steps, float)), known)
    return servos, Bus(MemoryPort(servos, 1_000_000, 300_000), 1_000_000, PROBE_S, known[0].protocol)


def lower_supply(servos):
    servos.all[1].supply_v = servos.all[1].nominal_v - 0.3


def other_offset(servos):
    servos.all[1].put("homing_offset", 85)
    servos.plant.position[1] -= servos.all[1].model.added(85, 3)  # it shows the same position


DIFFERENCES = {
    "position": (400, None),
    "a step": (1, None),
    "voltage": (0, lower_supply),
    "homing offset": (0, other_offset),  # which an SCS0009 does not have
}


@pytest.mark.parametrize(
    ("model", "apart", "differ"),
    [
        pytest.param(m, *case, id=f"{m} {name}")
        for m in ALONE
        for name, case in DIFFERENCES.items()
        if (m, name) != ("SCS0009", "homing offset")
    ],
)
def test_servos_that_differ_anywhere_are_told_from_one_and_none_is_renamed(model, apart, differ):
    servos, master = line([model] * 2, [500, 500 + apart])
    if differ is not None:
        differ(servos)
    stored = [s.stored for s in servos.all]
    found = look(master, 1)
    assert found is not None and found.double
    with pytest.raises(ArmError, match=r"two servos answer as 1.*: connect one servo at a time"):
        set_id(master, found, 4)
    assert servos.ids == [1, 1] and [s.stored for s in servos.all] == stored


def test_hardly_a_pair_is_taken_for_one():
    """The first of two servos differs from the second in position, voltage or offset alone, by however little."""
    draw, seen = np.random.default_rng(7), 0
    for k in range(160):
        model = MODELS[ALONE[k % len(ALONE)]]
        servos, master = line([model.name] * 2, [draw.integers(1, model.steps)] * 2)
        kind = draw.integers(0, 3 if "homing_offset" in model.registers else 2)
        if kind == 0:
            servos.plant.position[0] = draw.integers(0, servos.plant.position[1])
        elif kind == 1:
            servos.all[0].supply_v = servos.all[0].nominal_v + 0.1 * draw.integers(1, 5)
        else:
            offset = int(draw.integers(1, 1000))
            servos.all[0].put("homing_offset", offset)
            servos.plant.position[0] -= model.added(offset, 3)
        seen += look(master, 1).double
    assert seen >= 159


def test_servos_of_two_models_are_found_although_no_answer_is_whole():
    _, master = line(["XL330-M288", "XL430-W250"], [2048, 2048])
    found = look(master, 1)
    assert found is not None and found.double and found.number is None and found.name == "model ?"


@pytest.mark.parametrize("model", ALONE)
def test_one_servo_is_one_wherever_it_stands(model):
    for step in range(0, MODELS[model].steps, MODELS[model].steps // 16):
        _, master = line([model], [step])
        found = look(master, 1)
        assert found is not None and not found.double and found.values["present_position"] == step


@pytest.mark.parametrize("fault", ["echo", "echo-late", "usb-latency-16", "babble", "flip-data", "drop", "late-reply"])
def test_a_bad_line_does_not_make_two_of_one(fault):
    servos, master = line(["STS3215"], [2048])
    servos.faults.inject(fault, servo=1, count=1)
    (found,) = look_at_all(master, [1])
    assert not found.double and found.number == 777


def test_an_adapter_that_hands_over_late_is_given_more_time():
    servos, master = line(["STS3215"] * 2, [2048, 1000], [1, 3])
    servos.faults.inject("usb-latency-16")
    assert [f.servo for f in look_at_all(master, range(6))] == [1, 3]
    assert [f.servo for f in look_at_all(master, [3])] == [3]
    assert PROBE_S < 0.016 < SLOW_S


def test_a_position_that_jumps_between_looks_is_not_one_servos():
    servos, master = line(["STS3215"], [2048])
    turns = iter(range(1000))  # two that answer in turns
    servos.servos[1].sensor = lambda actual, now: actual + 900 * (next(turns) % 2)
    found = look(master, 1)
    assert found is not None and found.double


def test_an_arm_with_twins_is_refused_in_these_words():
    ids, steps = [1, 2, 3, 3, 4, 5, 6], MIDDLE[[0, 1, 2, 2, 3, 4, 5]] * 2048 / np.pi + 2048
    servos, master = line(["STS3215"] * 7, steps + np.arange(7), ids)
    with pytest.raises(ArmError, match=r"two servos answer as 3 on the virtual bus .*: unplug one of them"):
        Arm(master, SO101).check()
