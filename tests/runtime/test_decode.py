"""Labels and targets are each other's inverse; the heat map reads back the point that was drawn."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from calibration.camera import policy_camera
from runtime.policies.decode import absolute_chunk, heatmap_cell, heatmap_point, proprio, relative_chunk
from sim.tasks import ARM
from sim.world import World

poses = st.tuples(
    st.floats(0.12, 0.3),
    st.floats(-0.15, 0.15),
    st.floats(0.0, 0.2),
    st.floats(0.5, 1.6),
    st.floats(-1, 1),
    st.floats(0, 1),
)


@given(poses, st.lists(poses, min_size=3, max_size=3))
def test_relative_and_absolute_chunks_are_inverse(pose, targets):
    pose, targets = np.array(pose), np.array(targets)
    assert np.allclose(absolute_chunk(pose, relative_chunk(pose, targets, ARM).astype(float), ARM), targets, atol=1e-6)


def test_relative_chunk_does_not_know_where_on_the_table_it_is():
    """Turning pose and target together about the pan axis leaves the label as it was."""
    pan = 0.0388353
    label = []
    for angle in (0.0, 0.4):
        c, s = np.cos(angle), np.sin(angle)

        def turn(p, c=c, s=s):
            return np.array([pan + c * (p[0] - pan) - s * p[1], s * (p[0] - pan) + c * p[1], *p[2:]])

        label.append(
            relative_chunk(
                turn(np.array([0.2, 0.0, 0.05, 1.4, 0.1, 1.0])),
                turn(np.array([0.21, 0.02, 0.03, 1.4, 0.2, 1.0]))[None],
                ARM,
            )
        )
    assert np.allclose(label[0], label[1], atol=1e-6)


def test_proprioception_holds_no_absolute_position():
    a, b = np.array([0.2, 0.1, 0.05, 1.4, 0.0, 1.0]), np.array([0.15, -0.1, 0.05, 1.4, 0.0, 1.0])
    assert np.array_equal(proprio(a), proprio(b))


def test_heatmap_point_reads_back_a_drawn_point():
    world = World(0)
    camera = policy_camera(world.camera("front"))
    rows, columns = np.mgrid[:48, :48]
    for point in ([0.2, 0.05, 0.014], [0.16, -0.1, 0.02], [0.25, 0.0, 0.09]):
        cell = heatmap_cell(camera, np.array(point), 48)
        logits = -((columns - cell[0]) ** 2 + (rows - cell[1]) ** 2) / (2 * 0.8**2)
        got, mass = heatmap_point(camera, logits.ravel(), 48, point[2])
        assert np.linalg.norm(got - point) < 1e-3
        assert mass > 0.9
