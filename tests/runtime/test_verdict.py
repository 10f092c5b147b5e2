"""What a run says of itself: done or not, and why, in a sentence."""

import pytest

from runtime.observe.verdict import reasons, spent, verdict

CALM = {
    "seconds": 20.0,
    "ticks": 1000,
    "deadline_misses": 2,
    "refused_outputs": 0,
    "held_s": 0.0,
    "commanded": True,
    "interrupted": False,
    "success": False,
    "success_at_end": False,
    "failure": "never got to the item",
    "processors": {"busy": 0.97, "stolen": 0.0},
    "health": {"state": "running", "changes": [{"at_s": 0.1, "state": "running", "reasons": []}]},
}
GONE = "camera 'front' stopped giving frames"
LATE = "the slow engine is late"
HELD = [
    {"at_s": 0.1, "state": "running", "reasons": []},
    {"at_s": 4.0, "state": "holding", "reasons": [GONE]},
    {"at_s": 7.0, "state": "degraded", "reasons": [LATE]},
    {"at_s": 18.0, "state": "holding", "reasons": ["the slow engine is overdue"]},
]


NEVER = "in 20.0 s the arm never got to the item"
BUSY = "the processors were 97% busy: end other programs and try again"


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ({}, [NEVER, "nothing held it up, so it is the policy's own mistake: another start (--seed) may go better"]),
        (
            {"seconds": 2.0},
            ["in 2.0 s the arm never got to the item", "that is a short time: give it more with --seconds"],
        ),
        (
            {"health": {"state": "holding", "changes": HELD}},
            [NEVER, f"the loop held the arm for 5.0 s ({GONE})", f"it ran degraded for 11.0 s ({LATE})", BUSY],
        ),
        ({"held_s": 3.4}, [NEVER, "the motor process held the arm for 3.4 s, for commands came too late", BUSY]),
        ({"deadline_misses": 130}, [NEVER, "13% of the deadlines were missed", BUSY]),
        (
            {"refused_outputs": 4, "processors": {"busy": 0.5, "stolen": 0.2}},
            [
                NEVER,
                "4 outputs of the model were refused",
                "20% of the processors' time went to other machines on the same host",
            ],
        ),
        (
            {"error": "the arm stopped (elbow is blocked): mend that."},
            ["the arm stopped (elbow is blocked): mend that", NEVER],
        ),
        ({"interrupted": True, "seconds": 2.0, "failure": ""}, ["the run was interrupted after 2.0 s"]),
        (
            {"commanded": False, "error": "no command within 10 s."},
            ["no command within 10 s", "no command came from the policy"],
        ),
    ],
)
def test_a_run_that_did_not_do_its_task_says_what_is_known_of_why(known, why):
    assert reasons({**CALM, **known}) == why
    assert verdict({**CALM, **known}) == "not done: " + "; ".join(why)


def test_a_run_that_did_its_task_says_what_came_after():
    assert verdict({**CALM, "success": True, "success_at_end": True}) == "done"
    assert verdict({**CALM, "success": True}) == "done, and undone since"
    ended = {"success": True, "success_at_end": True, "error": "a servo did not let go."}
    assert verdict({**CALM, **ended}) == "done, then a servo did not let go"
    stopped = {"success": True, "success_at_end": True, "said_done": False, "interrupted": True, "seconds": 6.2}
    said = "done, and the policy did not say so; the run was interrupted after 6.2 s"
    assert verdict({**CALM, **stopped}) == said


def test_whether_the_policy_said_so_is_told():
    won = {**CALM, "success": True, "success_at_end": True}
    assert verdict({**won, "said_done": True}) == "done, and the policy said so"
    assert verdict({**won, "said_done": False}) == "done, and the policy did not say so"
    wrong = verdict({**CALM, "seconds": 4.0, "said_done": True})
    assert wrong == "not done: the policy said done after 4.0 s, and was wrong; in 4.0 s the arm never got to the item"
    real = {k: v for k, v in CALM.items() if k not in ("success", "success_at_end", "failure")}
    assert verdict({**real, "said_done": True}) == "the policy said done"


def test_a_run_that_nobody_judged_says_how_it_ended():
    real = {k: v for k, v in CALM.items() if k not in ("success", "success_at_end", "failure")}
    assert verdict(real) == "driven to the end"
    assert verdict({**real, "error": f"{GONE}: check its cable."}) == f"{GONE}: check its cable"


def test_time_in_a_state_is_told_by_its_reason_the_longest_first():
    report = {**CALM, "health": {"state": "holding", "changes": HELD}}
    assert spent(report, "holding") == pytest.approx({GONE: 3.0, "the slow engine is overdue": 2.0})
    assert next(iter(spent(report, "holding"))) == GONE and spent(report, "stopped") == {}
