"""Closed-form kinematics against MuJoCo (forward) and mink (inverse)."""

import mink
import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.kinematics import SO101_LOWER, SO101_UPPER, so101_forward, so101_inverse, tool_rotation
from sim.tasks import TOOL_PITCH
from sim.world import ASSETS


@pytest.fixture(scope="module")
def arm():
    model = mujoco.MjModel.from_xml_path(str(ASSETS / "plate.xml"))
    return model, mujoco.MjData(model)


def test_forward_agrees_with_mujoco(arm):
    model, data = arm
    for q in np.random.default_rng(0).uniform(SO101_LOWER[:5], SO101_UPPER[:5], (200, 5)):
        data.qpos[:5] = q
        mujoco.mj_kinematics(model, data)
        pose = so101_forward(q)
        assert np.allclose(pose[:3], data.site("tcp").xpos, atol=1e-12)
        assert np.allclose(tool_rotation(q[0], pose[3], q[4]), data.site("tcp").xmat.reshape(3, 3), atol=1e-12)


reachable = st.tuples(
    st.floats(0.15, 0.26),
    st.floats(-0.11, 0.11),
    st.floats(0.01, 0.07),
    st.floats(1.2, TOOL_PITCH),
    st.floats(-1.5, 1.5),
)


@given(reachable)
def test_inverse_undoes_forward_over_the_table(pose):
    q, exact = so101_inverse(np.array(pose))
    assert exact
    assert np.allclose(so101_forward(q), pose, atol=1e-9)


@given(st.tuples(*(st.floats(-2, 2) for _ in range(5))))
def test_inverse_always_answers_inside_the_joint_limits(pose):
    q, exact = so101_inverse(np.array(pose))
    assert np.all(q >= SO101_LOWER[:5]) and np.all(q <= SO101_UPPER[:5])
    if exact:
        assert np.allclose(so101_forward(q)[:3], pose[:3], atol=1e-6)


def test_inverse_agrees_with_mink(arm):
    model, _ = arm
    configuration = mink.Configuration(model)
    task = mink.FrameTask("tcp", "site", position_cost=1.0, orientation_cost=0.3)
    # Only the arm may move: the cubes' free joints carry no gripper.
    still = mink.DofFreezingTask(model, dof_indices=list(range(5, model.nv)))
    rng = np.random.default_rng(1)
    for _ in range(5):
        pose = np.array(
            [
                rng.uniform(0.16, 0.25),
                rng.uniform(-0.1, 0.1),
                rng.uniform(0.02, 0.06),
                TOOL_PITCH,
                rng.uniform(-0.6, 0.6),
            ]
        )
        ours, _ = so101_inverse(pose)
        start = model.qpos0.copy()
        start[:5] = ours + rng.uniform(-0.2, 0.2, 5)
        configuration.update(start)
        target = np.eye(4)
        target[:3, :3] = tool_rotation(ours[0], pose[3], pose[4])
        target[:3, 3] = pose[:3]
        task.set_target(mink.SE3.from_matrix(target))
        for _ in range(40):
            velocity = mink.solve_ik(configuration, [task], 0.05, "daqp", damping=1e-4, constraints=[still])
            configuration.integrate_inplace(velocity, 0.05)
        assert np.allclose(configuration.q[:5], ours, atol=2e-3)
