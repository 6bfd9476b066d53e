"""Exit 1 with one line where a package of the command line cannot be imported by this Python.

    python scripts/needs.py WHO PACKAGE …

Packages with a `+` are imported, with what they need themselves; the others, which take long, are
looked for.
"""

import importlib
import importlib.util
import sys


def lacking(name: str) -> "str | None":
    try:
        if name.startswith("+"):
            importlib.import_module(name[1:])
        elif importlib.util.find_spec(name) is None:
            return name
    except ImportError as error:
        return error.name or name
    return None


who, *names = sys.argv[1:]
if lack := [missing for name in names if (missing := lacking(name))]:
    sys.exit(f"{who}: {sys.executable} lacks {' '.join(lack)}")
