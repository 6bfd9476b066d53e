"""What `fastuiat bench` measures: one file per suite."""
