"""One minute of the whole campaign, with a fixed seed, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_of_the_campaign_holds():
    words = [sys.executable, "-m", "tests.campaign", "--minutes", "1", "--seed", "12"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
