"""When a run that stops at success ends."""

from harmowam import live


def test_success_has_to_last_before_it_ends_a_run(monkeypatch):
    """A cube that is let go is in its place for an instant and then rolls off: the run continues."""
    now, seen = [0.0], [True]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    done = live.true_for(lambda: seen[0], 0.2)
    assert not done()
    now[0] = 0.19
    assert not done()
    seen[0] = False
    assert not done()
    seen[0], now[0] = True, 0.5
    assert not done()
    now[0] = 0.71
    assert done()
