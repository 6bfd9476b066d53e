"""The command line: dispatch, exit code."""

from __future__ import annotations

import errno
import io
import logging
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fastuiat import __version__
from fastuiat.children import end_with_parent
from fastuiat.commands.parsing import refuse_empty
from fastuiat.commands.process import settle_process
from fastuiat.config import UserError, printable
from fastuiat.interrupts import Interrupted, ending_at_once
from fastuiat.torchrun import (
    RankFailed,
    is_first_rank,
    leave_for_good,
    left_for_good,
    place,
    wait_for_the_first,
)

USAGE = """usage: fastuiat COMMAND [--help] | --version

  train          train a robust classifier; --resume RUN goes on with one
  eval           measure clean, PGD, CW and AutoAttack accuracy of a run or checkpoint
  bench [SUITE]  measure this machine: a step, the kernels, the loaders, the paper's tables
  export         write a net for RobustBench, safetensors, ONNX or torch.export
  data prepare   write and check the .beton file that FFCV reads
  recipes        list the paper's settings by name, or print one
  report RUN …   write one page of figures and tables about runs
  reproduce      run a table of the paper and set it beside the paper's values
  doctor         what this machine can do

All but bench take --quiet (the result alone) and --json (one JSON document on stdout).
"""


DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOMEM,
}  # fmt: skip
"""A full or unwritable disk, a path that cannot be, no memory: the user's to mend, wherever it
shows."""

COMMANDS = {
    "train": "train:train",
    "eval": "evaluate:evaluate",
    "export": "export:export",
    "bench": "bench:bench",
    "data": "prepare:prepare",
    "recipes": "recipes:recipes",
    "report": "report:report",
    "reproduce": "recipes:reproduce",
    "doctor": "doctor:doctor",
}
"""The function of each, by its place in fastuiat.commands: imported when it is called for."""


def function_of(name: str) -> Callable[[list[str]], None]:
    """The function of a command, called with the words behind its name."""
    with ending_at_once():
        function: Callable[[list[str]], None]
        function = pkgutil.resolve_name(f"fastuiat.commands.{COMMANDS[name]}")
    return function


BY_ALL_RANKS = ("train", "eval")
BY_ONE_PROCESS = {
    "bench": "it measures a machine from one process",
    "reproduce": "it starts its own processes, as many as --jobs says",
}
"""Commands that several ranks would make nonsense of. All others are done by rank 0."""


def is_mine(command: str) -> bool:
    """Whether this rank takes part in a command; UserError where no rank may."""
    world = place().world
    if world == 1 or command in BY_ALL_RANKS:
        return True
    if command in BY_ONE_PROCESS:
        raise UserError(
            f"{command} cannot be {world} ranks of torchrun: {BY_ONE_PROCESS[command]}; start it "
            "without torchrun"
        )
    return is_first_rank()


MOST_LETTERS = 400
"""Of a word of a message: what is longer was given to us."""


def in_a_line(text: object) -> str:
    """What an error says, as a terminal can show it: a word of thousands of letters is cut."""
    words = printable(" ".join(str(text).split())).split(" ")
    return " ".join(w if len(w) <= MOST_LETTERS else f"{w[:100]}…{w[-40:]}" for w in words)


OUT_OF_MEMORY = (
    "can't allocate memory",  # PyTorch's allocator of the CPU
    "Cannot allocate memory",  # its mapping of a file
    "could not create a primitive",  # oneDNN's code of a convolution
    "failed to map segment from shared object",  # an import
    "can't start new thread",
)
"""What says so in a RuntimeError or an ImportError."""


def is_out_of_memory(error: BaseException) -> bool:
    """As Python and PyTorch say it; the allocator of the CPU has no class of its own."""
    kinds: tuple[type[BaseException], ...] = (MemoryError,)
    if torch := sys.modules.get("torch"):
        kinds += (torch.OutOfMemoryError,)
    return isinstance(error, kinds) or any(words in str(error) for words in OUT_OF_MEMORY)


def is_endless_link(error: BaseException) -> bool:
    """What Path.resolve raises for a link that leads to itself; of Python 3.13 it is an OSError."""
    return isinstance(error, RuntimeError) and str(error).startswith("Symlink loop")


def folder_that_is_gone(error: OSError) -> Path | None:
    """The folder in which a file was to be, where that is why there is none."""
    if error.errno != errno.ENOENT or not isinstance(error.filename, str | os.PathLike):
        return None
    folder = Path(os.fsdecode(error.filename)).parent
    return None if folder.exists() else folder


def said_of_disk(error: OSError) -> str | None:
    """What is wrong where the user can mend it, or None."""
    if (gone := folder_that_is_gone(error)) is not None:
        return f"{gone} was removed or renamed meanwhile: put it back, and go on"
    if error.errno not in DISK_ERRORS:
        return None
    place = error.filename2 or error.filename  # where a file was to be moved to, or was to be
    where = f"{place}: " if place else ""
    return f"{where}{error.strerror}; nothing written before is lost"


def end(code: int, line: str) -> NoReturn:
    """Say in one line, of all ranks once, why the command has ended, and exit."""
    wait_for_the_first(code)
    print(f"fastuiat: {line}", file=sys.stderr)
    sys.exit(code)


def main(argv: list[str] | None = None) -> None:
    """Run one command; a user's error is one line on stderr and exit code 2."""
    end_with_parent()
    if (code := left_for_good()) is not None:
        sys.exit(code)
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    if not is_first_rank():
        sys.stdout = io.StringIO()  # one rank speaks for all
        logging.getLogger("fastuiat").setLevel(logging.ERROR)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if argv[0] == "--version":
        print(f"fastuiat {__version__}")
        return
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"unknown command '{argv[0]}': choose from {', '.join(COMMANDS)}")
        refuse_empty(argv)
        if is_mine(argv[0]):
            run = function_of(argv[0])
            settle_process(argv[0])
            run(argv[1:])
    except UserError as error:
        leave_for_good(2)
        end(2, in_a_line(error))
    except RankFailed as error:
        if error.asked_to_end and not is_first_rank():
            sys.exit(1)  # rank 0 says it
        end(1, str(error))
    except KeyboardInterrupt:
        leave_for_good(130)
        sys.exit(130)
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        if (said := said_of_disk(error)) is None:
            raise
        leave_for_good(2)
        end(2, in_a_line(said))
    except Exception as error:
        if is_out_of_memory(error):
            leave_for_good(2)
            end(2, "not enough memory: a smaller net, --batch-size or data set takes less")
        if is_endless_link(error):
            leave_for_good(2)
            end(2, in_a_line(f"{error}: a link that leads to itself"))
        if not isinstance(error, Interrupted):
            raise
        code = 128 + error.signum
        leave_for_good(code)
        wait_for_the_first(code, patience=1.0)  # its launcher may have been asked as well
        if is_first_rank():
            print(f"fastuiat: stopped by {error}, checkpoint saved", file=sys.stderr)
        sys.exit(code)
