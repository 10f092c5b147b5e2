"""Each thing that can go wrong leads to its state, in bounded time; STOPPED is final."""

import numpy as np
import pytest

from benchmarks.soak import judge
from firmware_bridge.arms import FAMILIES
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.messages import Command
from runtime.cameras.watch import BLACK_MEAN, FROZEN_FRAMES, CameraWatch, apart
from runtime.loop.health import Health, HealthLimits, HealthMonitor, Signs, board_temperature, output_fault

HZ = 50
FINE = {"camera_age_s": {"front": 0.02}, "prior_age_s": 0.1, "commanded": True}


class Run:
    """A monitor that lives at 50 Hz."""

    def __init__(self, **limits):
        self.monitor, self.now = HealthMonitor(HZ, HealthLimits(**limits)), 1

    def go(self, seconds, **signs):
        for _ in range(round(seconds * HZ)):
            self.now += 1_000_000_000 // HZ
            self.monitor.step(self.now, Signs(**{**FINE, **signs}))
        return self.monitor.state


def test_a_run_starts_and_stops_when_no_command_ever_comes():
    assert Run().go(1, commanded=False) == Health.STARTING
    assert Run().go(0.1) == Health.RUNNING
    run = Run(start_s=2.0)
    assert run.go(2.5, commanded=False) == Health.STOPPED and "no command within 2 s" in run.monitor.reasons[0]
    assert run.go(1) == Health.STOPPED


CASES = [
    ({"camera_age_s": {"front": 0.2}}, Health.HOLDING, "camera 'front' stopped giving frames"),
    ({"camera_age_s": {"front": 0.01, "wrist": 11.0}}, Health.STOPPED, "camera 'wrist' stopped"),
    ({"camera_faults": ("camera 'front' is black",)}, Health.DEGRADED, "is black"),
    ({"prior_age_s": 0.7}, Health.DEGRADED, "the slow engine is late"),
    ({"prior_age_s": 2.0}, Health.HOLDING, "the slow engine is overdue"),
    ({"prior_age_s": 2.0, "plan_over_s": -1.0}, Health.DEGRADED, "the slow engine is late"),
    ({"plan_over_s": 0.3}, Health.DEGRADED, "the plan ended 0.3 s ago and no newer one came: the arm holds its last"),
    ({"output_fault": "the model gave a number that is not finite"}, Health.HOLDING, "not finite"),
    ({"temperature_c": 95.0}, Health.DEGRADED, "the board is at 95 C"),
    ({"temperature_c": 103.0}, Health.HOLDING, "the board is at 103 C"),
    ({"recording_fault": "recording stopped: no space"}, Health.DEGRADED, "recording stopped"),
    ({"misses": 1}, Health.DEGRADED, "of the deadlines were missed"),
]


@pytest.mark.parametrize(("signs", "state", "reason"), CASES)
def test_what_goes_wrong_has_a_name_within_a_fifth_of_a_second_and_heals(signs, state, reason):
    run = Run()
    run.go(2)
    assert run.go(0.2, **signs) == state
    assert any(reason in r for r in run.monitor.reasons)
    if state != Health.STOPPED:
        assert run.go(1.1) == Health.RUNNING and run.monitor.reasons == ()


def test_holding_for_want_of_an_engine_ends_in_a_stop_but_a_short_one_does_not_add_up():
    run = Run(engine_lost_s=1.0)
    run.go(1)
    for _ in range(5):
        assert run.go(0.6, prior_age_s=2.0) == Health.HOLDING
        assert run.go(0.1) == Health.RUNNING
    assert run.go(1.2, prior_age_s=2.0) == Health.STOPPED


def test_the_engines_are_not_charged_for_the_time_without_pictures():
    run = Run()
    run.go(1)
    assert run.go(9.8, camera_age_s={"front": 5.0}, prior_age_s=9.0) == Health.HOLDING
    # The camera is back, and the slow engine needs this long for its Prior.
    assert run.go(0.5, prior_age_s=9.0) == Health.HOLDING
    assert run.go(1) == Health.RUNNING
    for _ in range(4):  # a wobbling cable does not keep a dead engine from being noticed
        assert run.go(2.4, prior_age_s=9.0) == Health.HOLDING
        run.go(0.2, camera_age_s={"front": 0.2}, prior_age_s=9.0)
    assert run.go(0.7, prior_age_s=9.0) == Health.STOPPED


HELD = [
    {"output_fault": "the model gave a number that is not finite"},
    {"temperature_c": 103.0},
    {"prior_age_s": 2.0},
]


@pytest.mark.parametrize("signs", HELD)
def test_a_hold_that_lasts_ten_seconds_ends_in_a_stop(signs):
    run = Run()
    run.go(1)
    assert run.go(9.9, **signs) == Health.HOLDING
    assert run.go(0.2, **signs) == Health.STOPPED
    assert run.go(1) == Health.STOPPED


@pytest.mark.parametrize("started", [False, True])
def test_a_hold_counts_from_its_own_beginning_also_while_the_run_starts(started):
    run = Run()
    run.go(5, commanded=started)
    assert run.go(9.9, temperature_c=103.0, commanded=False) == Health.HOLDING


@pytest.mark.parametrize("hottest", [0, 1])  # zones come in no order
def test_the_hottest_zone_of_the_board_counts_and_one_that_cannot_be_read_does_not(tmp_path, hottest):
    assert board_temperature(tmp_path) == 0.0
    heat = ["41000", "52000"]
    heat[hottest] = "88500\n"
    for k, said in enumerate((*heat, "", "x", "-256000")):
        (tmp_path / f"thermal_zone{k}").mkdir()
        (tmp_path / f"thermal_zone{k}" / "temp").write_text(said)
    (tmp_path / "thermal_zone9" / "temp").mkdir(parents=True)
    (tmp_path / "cooling_device0").mkdir()
    (tmp_path / "cooling_device0" / "temp").write_text("99000")
    assert board_temperature(tmp_path) == 88.5


def test_history_names_changes_and_stays_small():
    run = Run()
    for _ in range(400):
        run.go(0.02, camera_age_s={"front": 0.3})
        run.go(0.02)
    history = run.monitor.history
    assert len(history) == 256 and [c.state for c in history[:3]] == [Health.HOLDING, Health.RUNNING, Health.HOLDING]
    assert [c.at_s for c in history] == sorted(c.at_s for c in history)


def test_another_reason_in_the_same_state_is_a_change_and_another_figure_is_not():
    run = Run()

    def changed():
        return None if run.monitor.changed is None else run.monitor.changed.reasons

    run.go(0.1)
    for hot in (91.0, 92.0, 93.5):
        run.go(0.1, temperature_c=hot)
    assert [c.reasons for c in run.monitor.history[1:]] == [("the board is at 91 C",)] and changed() is None
    for camera in ("cam2", "cam3"):
        run.go(0.02, camera_faults=(f"camera '{camera}' is black",))
        assert changed() == (f"camera '{camera}' is black",)
    for _ in range(300):  # a full history still tells of changes: the log takes them from here
        run.go(0.02, camera_age_s={"front": 0.3})
        assert changed() is not None
        run.go(0.02)


def test_a_camera_is_not_late_for_the_delay_that_the_robot_file_names():
    picture = np.full((48, 64, 3), 90, np.uint8)
    usual, known = CameraWatch("front", 60.0), CameraWatch("front", 60.0, delay_ns=55_000_000)
    for age_ms, late in ((58, (True, False)), (100, (True, False)), (106, (True, True))):
        now = 1_000_000_000 + age_ms * 10_000_000  # every picture is a new one
        said = [watch.look(now, now - age_ms * 1_000_000, picture) for watch in (usual, known)]
        assert tuple("camera 'front' is late" in s for s in said) == late


ONE = np.ones(6, np.float32)
TARGET = np.array([0.2, 0.0, 0.05, 1.4, 0.0, 1.0])


def command(q=ONE * 0, qd=ONE * 0, gate=0.5):
    return Command(0, 1, np.asarray(q, np.float32), np.asarray(qd, np.float32), gate=gate)


@pytest.mark.parametrize(
    ("made", "target", "fault"),
    [
        (command(), TARGET, ""),
        (command(q=ONE * np.nan), TARGET, "not finite"),
        (command(qd=ONE * np.inf), TARGET, "not finite"),
        (command(), TARGET * np.nan, "not finite"),
        (command(gate=np.nan), TARGET, "no probability"),
        (command(gate=1.2), TARGET, "no probability"),
        (command(), TARGET + np.array([5, 0, 0, 0, 0, 0]), "out of the arm's reach"),
        (command(), TARGET + np.array([0, 0, -0.5, 0, 0, 0]), "out of the arm's reach"),
        (command(), TARGET + np.array([0, 0, 0.7, 0, 0, 0]), "out of the arm's reach"),
        (
            command(),
            TARGET * 0 + np.array([0.6, -0.6, 0.05, 0, 0, 0]),
            "out of the arm's reach",
        ),  # further than either is
        (command(), TARGET * 0 + np.array([-0.4, 0.4, 0.6, 0, 0, 0]), ""),
        (command(q=[0, 0, 1.5, 0, 0, 0]), TARGET, "joint 3 far out of its range"),
        (command(q=[0, 0, 0, -1.5, 0, 0]), TARGET, "joint 4 far out of its range"),
        (command(q=[1.3, -1.3, 0, 0, 0, 0]), TARGET, ""),  # a little: the limiter clips it
    ],
)
def test_outputs_of_a_model_are_checked(made, target, fault):
    said = output_fault(made, so101, -ONE, ONE, target)
    assert (fault in said) if fault else said == ""


@pytest.mark.parametrize("arm", FAMILIES.values(), ids=list(FAMILIES))
def test_a_target_within_an_arms_own_reach_is_not_refused_and_one_far_beyond_is(arm):
    """Stretched out ahead, aside and up, as far as its links go; the limits follow from the family."""
    n = np.zeros(len(arm.JOINTS), np.float32)
    q = np.random.default_rng(0).uniform(arm.LOWER, arm.UPPER, (20_000, len(arm.JOINTS)))
    tool = arm.tool(q)[:, :3, 3]
    above = tool[tool[:, 2] > 0]
    away = np.hypot(above[:, 0], above[:, 1])
    assert away.max() == pytest.approx(arm.reach_m, rel=0.03) and away.max() <= arm.reach_m + 1e-9
    assert above[:, 2].max() == pytest.approx(arm.highest_m, rel=0.03) and above[:, 2].max() <= arm.highest_m + 1e-9
    for at in (above[away.argmax()], above[above[:, 2].argmax()]):
        beyond = at + 0.3 * at / np.linalg.norm(at)
        for place, fault in ((at, ""), (beyond, "the model asked for a place far out of the arm's reach")):
            target = np.append(place, [0.0, 0.0, 0.0])
            assert output_fault(command(n, n), arm, arm.LOWER, arm.UPPER, target) == fault


def picture(seed=0, level=120.0, noise=3.0):
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(level, noise, (240, 320, 3)), 0, 255).astype(np.uint8)


def feed(watch, frames, age_ns=1_000_000, step_ns=20_000_000):
    said: tuple[str, ...] = ()
    for k, frame in enumerate(frames):
        said = watch.look(k * step_ns + age_ns, k * step_ns, frame)
    return said


def test_frozen_black_and_late_pictures_are_noticed():
    fresh = [picture(k) for k in range(40)]
    assert feed(CameraWatch("front", 50), fresh) == ()
    same = [picture()] * (FROZEN_FRAMES + 2)
    assert feed(CameraWatch("front", 50), same) == ("camera 'front' is frozen",)
    assert feed(CameraWatch("front", 50, noisy=False), same) == ()  # a simulated table may stand still
    dark = [picture(k, BLACK_MEAN / 3, 0.5) for k in range(3)]
    assert feed(CameraWatch("front", 50), dark) == ("camera 'front' is black",)
    assert feed(CameraWatch("front", 50), fresh[:3], age_ns=80_000_000) == ("camera 'front' is late",)
    watch = CameraWatch("front", 50, noisy=False)
    for frame in fresh[:5]:
        said = watch.look(1, 1, frame)  # numbers go on, the stamp stands still
    assert said == ("camera 'front' is frozen",)


def test_cameras_out_of_step_are_named():
    assert apart({"front": 0, "wrist": 15}, 20) == ()
    assert apart({"front": 0, "wrist": 25}, 20) == ("cameras 'front' and 'wrist' are out of step",)
    assert apart({"front": 0}, 20) == ()


def test_a_soak_is_judged_fault_by_fault():
    """Frozen cameras must hold at once, whatever was injected must be over soon after, and a hold that nobody asked for
    is told apart."""
    freeze, busy = "cameras frozen for 3 s", "machine overloaded for 5 s"
    injected = [(freeze, 10.0, 13.0), (busy, 40.0, 45.0)]

    def at(*changes):
        return [{"at_s": t, "state": state} for t, state in ((0.0, "running"), *changes)]

    good = at((10.16, "holding"), (13.1, "running"), (41.0, "degraded"), (46.0, "running"))
    assert judge(injected, good) == ([], [])
    assert judge(injected, at((13.1, "degraded"))) == (["cameras frozen for 3 s at 10 s: no hold within 0.5 s"], [])
    late = judge(injected, at((10.9, "holding"), (13.1, "running")))[0]
    assert late == ["cameras frozen for 3 s at 10 s: no hold within 0.5 s"]
    for_ever = judge(injected, at((10.16, "holding")))[0]
    assert for_ever == [
        "cameras frozen for 3 s at 10 s: holding 5 s after its end",
        "machine overloaded for 5 s at 40 s: holding 5 s after its end",
    ]
    assert judge(injected, [*good, {"at_s": 60.0, "state": "holding"}])[1] == [60.0]
