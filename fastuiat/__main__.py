"""`python -m fastuiat`: the same as the `fastuiat` script."""

from fastuiat.cli import main

main()
