"""`python -m fastuiat`: the same as the `fastuiat` script."""

from fastuiat.cli import main

if __name__ == "__main__":  # a bench's processes import it as well
    main()
