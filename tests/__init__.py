"""Tests, and the campaign of faults: `python -m tests.campaign`."""
