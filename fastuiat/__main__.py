"""The `fastuiat` script, and `python -m fastuiat`."""

from fastuiat.interrupts import end_at_once, ending_at_once


def main() -> None:
    """One command; Ctrl-C before it and behind it, while Python tidies up, ends the process."""
    with ending_at_once():
        from fastuiat import cli
    try:
        cli.main()
    finally:
        end_at_once()


if __name__ == "__main__":  # a bench's processes import it as well
    main()
