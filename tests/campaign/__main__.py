"""Kill, fill, cut, flip and mislead fastuiat for some minutes; a table of what held.

    python -m tests.campaign --minutes 20                   # from the root of the repository
    python -m tests.campaign --minutes 5 --seed 3 --parts kills flips
    python -m tests.campaign --minutes 60 --json benchmarks/results/campaign.jsonl

Exit code 1 where anything did not hold. The same seed draws the same trials of each part; how many
of them there is time for depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.campaign.parts import PARTS
from tests.campaign.trial import FAULTS, Trial

ROOT = Path(__file__).parents[2]


def campaign(names: list[str], seconds: float, seed: int, folder: Path) -> list[Trial]:
    """Trials until the time is over: always of the part that has had the least of it so far."""
    end = time.monotonic() + seconds
    spent = dict.fromkeys(names, 0.0)
    trials = []
    rows = {}
    for name in names:
        (folder / name).mkdir()
        rows[name] = PARTS[name](random.Random(f"{name} {seed}"), folder / name)
    try:
        while time.monotonic() < end:
            name = min(names, key=lambda name: spent[name])
            begun = time.monotonic()
            trial = next(rows[name])
            spent[name] += time.monotonic() - begun
            trials.append(trial)
            if trial.faults:
                print(f"{trial.part}: {trial.what}: {', '.join(trial.faults)}", flush=True)
    finally:
        for row in rows.values():
            with closing(row):
                pass
    return trials


def counted(trials: list[Trial]) -> dict[str, dict[str, Any]]:
    """By part: tried, held, how often each fault came, and the trials' own counts."""
    table: dict[str, dict[str, Any]] = {}
    for trial in trials:
        nothing = {"tried": 0, "held": 0, "faults": Counter(), "counts": Counter()}
        row = table.setdefault(trial.part, nothing)
        row["tried"] += 1
        row["held"] += not trial.faults
        row["faults"].update(trial.faults)
        row["counts"].update(dict(trial.counts))
    return table


def as_text(table: dict[str, dict[str, Any]]) -> str:
    """A line for each part; at its end what it counts beside."""
    heads = ("tried", "held", *FAULTS)
    lines = [f"{'':12}" + "".join(f"{head:>17}" for head in heads)]
    for part, row in table.items():
        own = ", ".join(f"{n} {name}" for name, n in row["counts"].items())
        numbers = (row["tried"], row["held"], *(row["faults"][fault] for fault in FAULTS))
        lines.append(f"{part:12}" + "".join(f"{n:17}" for n in numbers) + f"  {own}")
    return "\n".join(lines)


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def described(options: argparse.Namespace, trials: list[Trial]) -> dict[str, Any]:
    """The record of a campaign."""
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "fastuiat", "kernels", "tests")),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minutes": options.minutes,
        "seed": options.seed,
        "parts": counted(trials),
        "faults": [f"{t.part}: {', '.join(t.faults)}: {t.what}"[:300] for t in trials if t.faults],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--json", type=Path, help="a file that gets the record as a line")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        trials = campaign(options.parts, 60 * options.minutes, options.seed, Path(folder))
    print(as_text(counted(trials)))
    if options.json:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(described(options, trials)) + "\n")
    sys.exit(any(trial.faults for trial in trials))


if __name__ == "__main__":
    main()
