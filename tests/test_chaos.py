"""The short form of ``make chaos``: kills, cuts and a full disk lose, double and stop nothing."""

import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "chaos.py"

sys.path.append(str(PROGRAM.parent))
chaos = importlib.import_module("chaos")


def test_a_search_under_way_when_something_is_done_is_of_that_and_not_of_what_was_before():
    probe = chaos.Probe("http://127.0.0.1", threading.Event())
    probe.seen = [(0.9, 1.1, False), (1.2, 1.3, True), (9.9, 10.1, False), (10.2, 10.3, True)]

    assert probe.answered_again(1.0, 10.0) == 1.3
    assert probe.answered_again(10.0, 20.0) == 10.3


def test_what_was_acknowledged_survives_kills_and_is_learnt_once(tmp_path):
    told = tmp_path / "figures.json"

    run = subprocess.run(
        [sys.executable, PROGRAM, "--seconds", "45", "--kills", "5", "--json", told],
        env=os.environ | {"MAX_ATTEMPTS": "2"},  # so that who hangs the adjuster is given up in time
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.exists(), run.stderr
    figures = json.loads(told.read_text())
    assert set(figures["wrong"].values()) == {0}, figures["wrong"]
    assert figures["orders"]["failed"] <= 1
    assert min(figures["events acknowledged"], figures["orders"]["done"]) > 0
    assert figures["users with a state to compare"] > 30  # of 36
    assert run.returncode == 0
