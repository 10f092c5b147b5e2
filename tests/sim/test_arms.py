"""Each simulated arm behind its own servos: armed, moved along a scripted path and lowered, with the robot file of its
name."""

import dataclasses
import shutil

import numpy as np
import pytest

from firmware_bridge.arms import FAMILIES
from firmware_bridge.arms.koch import Koch
from firmware_bridge.bus.master import Bus
from firmware_bridge.motion.arm import Arm
from firmware_bridge.motion.messages import Command, RequestKind, SafetyState
from firmware_bridge.motion.motor_loop import MotorLoop
from firmware_bridge.virtual.line import MemoryPort
from harmowam.calibration_rig import LiveRig
from runtime.robot import load_robot
from sim import server
from sim.plant import MujocoPlant, servos
from sim.tasks import HOME, Layout
from sim.world import ASSETS, World, WorldError, compiled

S = 1_000_000_000
NAMES = sorted(FAMILIES)
ASIDE = {"plate": (0.35, -0.3, 0.0), "red_cube": (0.35, 0.25, 0.0), "blue_cube": (0.35, 0.35, 0.0)}
CLEAR = Layout("plate", "put the red cube on the plate", ASIDE, HOME)  # nothing stands in the arms' way
MOVING = (SafetyState.HOLD, SafetyState.ACTIVE)


class Rig:
    """One arm in virtual time: MuJoCo, the bytes of its servos, limiter and state machine."""

    def __init__(self, name):
        self.robot = load_robot(f"sim_{name}")
        self.family = self.robot.family
        self.world = World(layout=CLEAR, family=self.family)
        self.port = MemoryPort(servos(self.world, self.robot.arm))
        self.loop = MotorLoop(Arm(Bus(self.port, protocol=self.robot.arm.protocol), self.robot.arm))
        self.now = S
        self.state = self.tick(None, RequestKind.ARM)

    def tick(self, command, request=RequestKind.ARM):
        self.port.time_ns = self.now
        self.state = self.loop.tick(self.now, command, request)
        self.world.advance(0.01)
        self.now += S // 100
        return self.state

    def follow(self, q, qd=None):
        rates = np.zeros(len(q)) if qd is None else qd
        return self.tick(Command(self.now, self.now + S // 10, q.astype(np.float32), rates.astype(np.float32)))


@pytest.fixture(params=NAMES)
def rig(request):
    made = Rig(request.param)
    yield made
    made.world.close()


def path(t):
    """Tool pose of the script at time `t` (s): a circle with a turning tool."""
    a = np.pi * t / 2
    return np.array([0.18 + 0.02 * np.cos(a), 0.03 * np.sin(a), 0.07 + 0.02 * np.sin(a), 1.1, 0.3 * np.sin(a), 0.5])


def test_it_is_armed_follows_a_script_and_is_lowered(rig):
    """The tool stays within 10 mm of the plan, nothing faults, and at the end the arm lies at rest without torque."""
    limits = np.array(rig.robot.arm.lower), np.array(rig.robot.arm.upper)
    plan, exact = rig.family.inverse(path(0.0), *limits)
    start = rig.state.q_rad.astype(float)
    for s in np.linspace(0, 1, 200):
        assert rig.follow(start + s * s * (3 - 2 * s) * (plan - start)).safety in MOVING, rig.state.reason
    away = []
    for k in range(600):
        t = k / 100
        (plan, exact), (ahead, _) = (rig.family.inverse(path(at), *limits) for at in (t, t + 0.01))
        assert exact
        state = rig.follow(plan, (ahead - plan) * 100)
        assert state.safety == SafetyState.ACTIVE and not np.any(state.status_bits), state.reason
        away.append(np.linalg.norm(rig.family.tool(rig.world.q)[:3, 3] - rig.family.tool(plan)[:3, 3]))
    assert max(away) < 0.010
    for _ in range(3000):
        rig.tick(None, RequestKind.LOWER)
        if rig.loop.finished:
            break
    assert rig.loop.finished and not rig.loop.holding and rig.state.safety == SafetyState.SAFE_STOP
    rest = np.array(rig.robot.arm.rest)
    measured = rig.loop.arm.read().q
    assert np.abs(measured - rest)[:-1].max() < 0.25  # the limp arm has sunk a little
    assert not rig.loop.arm.energised()


def test_every_servo_of_the_robot_file_is_on_the_bus(rig):
    arm = rig.loop.arm
    arm.check()
    assert sorted(rig.port.line.bus.ids) == sorted(arm.ids)
    assert {i: s.model.name for i, s in rig.port.line.bus.servos.items()} == {
        i: rig.robot.arm.model_names[arm.joint_of(i)] for i in arm.ids
    }


def test_second_servos_turn_with_their_joint_and_hold_it_alone():
    rig = Rig("viperx")
    arm, bus = rig.loop.arm, rig.port.line.bus
    zero = dict(zip(arm.ids, arm.to_steps(np.zeros(7)), strict=True))
    for servo, joint, direction, _ in rig.robot.arm.shadows:
        first = bus.get(rig.robot.arm.ids[joint], "present_position") - zero[rig.robot.arm.ids[joint]]
        assert bus.get(servo, "present_position") - zero[servo] == pytest.approx(direction * first, abs=1)
    before = rig.world.q
    bus.put(4, "torque_enable", 0)  # the first of the elbow's two servos becomes limp
    rig.world.advance(0.5)
    assert abs(rig.world.q[2] - before[2]) < 0.05
    bus.put(5, "torque_enable", 0)
    rig.world.advance(3.0)
    assert rig.world.q[2] - before[2] > 0.1
    rig.world.close()


def test_gears_directions_and_zeros_of_the_robot_file_are_between_servo_and_joint():
    world = World(0)
    plain = load_robot("sim_so101").arm
    turned = dataclasses.replace(
        plain,
        gear=(1.0, 2.0, 1.0, 1.0, 1.0, 1.0),
        direction=(1, -1, 1, 1, 1, 1),
        zero_step=(2048, 2000, 2048, 2048, 2048, 2048),
    )
    steps, _, load = MujocoPlant(world, turned).present(0)
    reference, _, usual = MujocoPlant(world, plain).present(0)
    assert steps[1] == pytest.approx(2000 - 2 * (reference[1] - 2048)) and load[1] == -usual[1]
    goal = steps.copy()
    goal[1] -= 200  # servo steps of 1/4096 turn
    before = world.q
    MujocoPlant(world, turned).drive(goal, np.ones(6, bool), np.zeros(6), np.ones(6))
    world.advance(1.0)
    assert world.q[1] - before[1] == pytest.approx(100 * 2 * np.pi / 4096, abs=0.03)
    world.close()


@pytest.mark.parametrize(
    ("what", "without"),
    [("site 'tcp'", 'name="tcp"'), ("camera 'wrist'", 'name="wrist"'), ("geom 'moving_jaw'", 'name="moving_jaw"')],
)
def test_a_simulated_arm_without_what_the_simulator_needs_is_refused_by_name(tmp_path, monkeypatch, what, without):
    shutil.copytree(ASSETS, tmp_path / "assets")
    arm = tmp_path / "assets/arms/koch.xml"
    assert without in arm.read_text()
    arm.write_text(arm.read_text().replace(without, 'name="other"'))
    monkeypatch.setattr("sim.world.ASSETS", tmp_path / "assets")
    with pytest.raises(WorldError, match=rf"sim/assets/arms/koch\.xml has no {what}: add it"):
        compiled("trace", FAMILIES["koch"])


def test_an_arm_without_a_simulated_one_is_refused_by_name():
    class Other(Koch):
        NAME = "other"

    with pytest.raises(WorldError, match=r"'other' has no simulated arm: add sim/assets/arms/other\.xml"):
        compiled("plate", Other())


@pytest.mark.parametrize("name", [n for n in NAMES if n != "so101"])
def test_guard_and_motor_process_drive_it_over_its_own_port(name, tmp_path):
    robot = load_robot(f"sim_{name}")
    process, info = server.start(tmp_path, 0, None, 5.0, robot=f"sim_{name}")
    try:
        with LiveRig(robot, tmp_path, info["port"]) as rig:
            rig.enable_torque()
            there = rig.state().q_rad[:-1].astype(float)
            there[0] += 0.2
            there[4] -= 0.2
            assert np.abs(rig.move_to(there) - there).max() < 0.02
            assert rig.state().safety in MOVING
    finally:
        process.terminate()
        process.communicate(timeout=10)
