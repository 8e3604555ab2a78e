"""The short form of ``make chaos``: kills, cuts and a full disk lose, double and stop nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "chaos.py"


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
