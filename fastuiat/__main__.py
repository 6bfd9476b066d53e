"""The `fastuiat` script, and `python -m fastuiat`."""

from fastuiat.interrupts import ending_at_once


def main() -> None:
    with ending_at_once():
        from fastuiat import cli
    cli.main()


if __name__ == "__main__":  # a bench's processes import it as well
    main()
