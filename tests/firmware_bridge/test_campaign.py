"""Every known fault against a moving arm: detected in its time, the arm safe, no EEPROM written. (Those with processes:
test_processes.)"""

import pytest

from firmware_bridge.virtual.campaign import CASES, play
from firmware_bridge.virtual.campaign_bus import ON_THE_BUS, SHARED, campaign_port
from firmware_bridge.virtual.campaign_dead import dead_master
from firmware_bridge.virtual.campaign_start import BEFORE, START
from firmware_bridge.virtual.faults import NAMES, FaultError, parse
from tests.firmware_bridge.so101 import bus


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.group} {c.name} {c.config.protocol}")
def test_the_arm_is_safe(case):
    row = play(case)
    assert row["safe"], row


@pytest.mark.parametrize("model", ["XL430-W250", "XL330-M288"])
def test_the_bus_watchdog_stops_a_dynamixel_whose_master_died_but_is_not_trusted_on_small_ones(model):
    assert dead_master(model)["safe"]


@pytest.mark.parametrize("case", BEFORE, ids=lambda c: f"{c[0]} {c[1]}")
def test_what_is_found_before_torque_is_refused_or_set_right(case):
    row = case[2]()
    assert row["safe"], row


@pytest.mark.parametrize("case", ON_THE_BUS, ids=lambda c: f"{c[0]} {c[1]}")
def test_an_echo_answers_nothing_and_two_servos_are_not_taken_for_one(case):
    row = case[2]()
    assert row["safe"], row


@pytest.mark.parametrize("name", [s[0] for s in SHARED])
def test_a_port_has_one_owner(name, tmp_path):
    row = next(r for r in campaign_port(tmp_path, name) if r["name"] == name)
    assert row["safe"], row


def test_every_group_and_every_fault_has_its_row():
    groups = {c.group for c in CASES} | {23} | {group for group, *_ in (*BEFORE, *ON_THE_BUS)} | {31}
    assert groups == {*range(1, 24), *range(26, 32)}  # 24 is a bridge's, 25 a calibration's: not played here
    played = {c.name.removesuffix(" once").removesuffix(" for ever").removesuffix(" at full speed") for c in CASES} | {
        s[1] for s in START
    }
    assert set(NAMES) - played == {"drop", "goal-enables-torque"}


def test_an_unknown_fault_is_refused():
    servos, _ = bus()
    with pytest.raises(FaultError, match="use one of"):
        servos.faults.inject("gremlin")


def test_a_fault_begins_at_once_or_at_its_time():
    assert parse("drop") == parse("drop@") == ("drop", 0.0) and parse("drop@2.5") == ("drop", 2.5)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-3", "soon"])
def test_a_fault_at_a_time_that_never_comes_is_refused(seconds):
    with pytest.raises(FaultError, match=rf"fault 'drop@{seconds}' .*for example drop@2.5"):
        parse(f"drop@{seconds}")
