"""What each preset of a knob does to quality, beside what is served by default, on simulated users.

    python benchmarks/presets.py ../shared/data/cranfield ../shared/data/nfcorpus

It writes ``src/embedding_studio/presets.json``, of which docs/tuning.md has its table and the console its
figures.
Users and seeds are those of ``what_was_tried.py``, which docs/does-it-help.md does not report on.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from embedding_studio.evaluation.methods import Product
from embedding_studio.settings import KNOBS
from what_was_tried import CLICKS, SEEDS, by_adjuster, measured, worlds_of

MEASURED = ("adjustment_rate", "num_iterations")
"""Of the others, one acts on objects of several parts alone, and one on when it is learnt."""

PAGE = Path(__file__).resolve().parents[1] / "src/embedding_studio/presets.json"
DIGITS = 4


def _told(value: float) -> float:
    return int(value) if value == int(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="collection folders with judgements")
    parser.add_argument("--users", type=int, default=30)
    given = parser.parse_args()
    tried = {"": {"": Product}} | {
        knob: {preset: by_adjuster(**{knob: _told(value)}) for preset, value in KNOBS[knob].presets.items()}
        for knob in MEASURED
    }
    found: dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]] = {}
    for folder in given.folders:
        worlds = worlds_of(folder, SEEDS, given.users)
        for knob, presets in tried.items():
            for preset, open_method in presets.items():
                print(f"{folder.name}: {knob} {preset}", file=sys.stderr)
                cells = measured(worlds, open_method)
                found.setdefault(knob, {}).setdefault(preset, {})[folder.name] = {
                    clicks: {name: round(number, DIGITS) for name, number in cells[clicks].items()}
                    for clicks in CLICKS
                }
    told = {
        "command": f"python {shlex.join(sys.argv)}",
        "users": given.users,
        "seeds": list(SEEDS),
        "served": found.pop("")[""],
        "presets": found,
    }
    PAGE.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
