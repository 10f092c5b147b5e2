"""The Koch v1.1 against places in its maker's drawing (Follower_Arm.STEP of github.com/jess-moss/koch-v1-1, 5 September
2024).

No package ships a model of this arm. The drawing shows it with the pan joint 6 degrees to the left, the upper arm
leaning forward, and the gripper pointing down. Numbers are shafts of its servos, m: ahead, to the left and above the
base's underside, as the panned arm has them.
"""

import numpy as np
import pytest

from firmware_bridge.arms.koch import FAMILY as koch

SHOULDER, ELBOW, WRIST = (0.0, 0.0, 0.0563), (0.02951, 0.0, 0.16154), (0.13000, 0.0, 0.16391)
HINGE = (0.13959, 0.00855, 0.10654)  # of the jaw, at the height of the roll axis' plane
APPROACH = (0.14124, 0.0, -0.98998)  # along the roll axis
LEAN = np.arctan2(0.02951, 0.10524) - np.arctan2(0.0149, 0.1083)  # of the upper arm's printed part


def as_drawn():
    """Joint angles of the drawing, from the directions in it; pan is left out."""
    upper0 = np.arctan2(koch.links.upper_forward, koch.links.upper_up)
    lower0 = np.arctan2(koch.links.lower_up, koch.links.lower_forward)
    lift = np.arctan2(ELBOW[0], ELBOW[2] - SHOULDER[2]) - upper0
    elbow = lower0 - np.arctan2(WRIST[2] - ELBOW[2], WRIST[0] - ELBOW[0]) - lift
    flex = np.arctan2(-APPROACH[2], APPROACH[0]) - lift - elbow
    return np.array([0.0, lift, elbow, flex, 0.0, 0.0])


def test_the_links_are_as_long_as_in_the_drawing():
    assert np.hypot(koch.links.upper_forward, koch.links.upper_up) == pytest.approx(
        np.hypot(ELBOW[0], ELBOW[2] - SHOULDER[2]), abs=1e-4
    )
    assert np.hypot(koch.links.lower_forward, koch.links.lower_up) == pytest.approx(
        np.hypot(WRIST[0] - ELBOW[0], WRIST[2] - ELBOW[2]), abs=1e-4
    )


def test_at_the_drawings_angles_the_joints_are_where_it_has_them():
    q = as_drawn()
    frames = koch.frames(q)
    assert q[1] == pytest.approx(LEAN, abs=1e-3) and ((q >= koch.LOWER) & (q <= koch.UPPER)).all()
    for link, place in ((1, SHOULDER), (2, ELBOW), (3, WRIST)):
        assert np.allclose(frames[link, [0, 2], 3], [place[0], place[2]], atol=2e-4)
    assert np.allclose(frames[4, :3, 0], APPROACH, atol=1e-4)
    assert frames[5, 1, 3] == pytest.approx(HINGE[1], abs=2e-4)  # left of the roll axis: the moving jaw's side
    along = (np.array(HINGE) - WRIST) @ np.array(APPROACH)
    assert (frames[5, :3, 3] - frames[3, :3, 3]) @ np.array(APPROACH) == pytest.approx(along, abs=2e-4)


def test_the_tool_centre_is_4_mm_before_the_fixed_jaws_tip():
    assert koch.links.wrist_to_tcp == pytest.approx(0.11386 - 0.004, abs=2e-4)


@pytest.mark.parametrize(
    ("joint", "says"),
    [
        ("shoulder_pan", lambda a, b: b[1, 3] < a[1, 3] - 0.01),  # to its right
        ("shoulder_lift", lambda a, b: b[2, 3] < a[2, 3] - 0.01),  # down
        ("elbow_flex", lambda a, b: b[2, 3] < a[2, 3] - 0.01),
        ("wrist_flex", lambda a, b: b[2, 3] < a[2, 3] - 0.005),
        ("wrist_roll", lambda a, b: (b[:3, :3] @ a[:3, :3].T)[1, 2] > 0.05),  # counter-clockwise, seen from behind
    ],
)
def test_a_growing_angle_turns_a_joint_as_an_so101s_of_that_name(joint, says):
    q, more = np.zeros(6), np.zeros(6)
    more[koch.JOINTS.index(joint)] = np.radians(5)
    assert says(koch.tool(q), koch.tool(more))
