"""A pytest plugin: with CI=true a skipped test fails, unless tests/skips.toml names it with its reason."""

import os
import re
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIST = Path(__file__).with_name("skips.toml")


def listed() -> list[dict[str, str]]:
    return tomllib.loads(LIST.read_text())["skip"]


def allowed(node: str, reason: str, entries: list[dict[str, str]]) -> bool:
    """Whether an entry of the list fits: `test` is the node id or its beginning, `reason` a pattern that matches from
    the start."""
    return any(
        re.match(re.escape(entry["test"]) + r"($|::|\[|/)", node) and re.match(entry["reason"], reason)
        for entry in entries
    )


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or os.environ.get("CI", "").lower() != "true":
        return
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = said.removeprefix("Skipped: ")
    if not allowed(report.nodeid, reason, listed()):
        report.outcome = "failed"
        report.longrepr = (
            f"Skipped ({reason}), and CI=true: mend that, or list it in {LIST.name} with why it cannot run."
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    result = yield
    _judge(result.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report():
    result = yield
    _judge(result.get_result())
