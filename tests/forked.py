"""Commands in children of one process that has imported all they need: each in metered memory.

    python -m tests.forked          # answers a line of JSON with another

A start of Python and PyTorch takes seconds, a child forked behind it milliseconds. As one thread
alone is there to be forked, OMP_NUM_THREADS is 1.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
MB = 1 << 20


@dataclass(frozen=True)
class Ended:
    """How a command ended: `code` None where it did not in time; `peak` MB beyond a bare start."""

    code: int | None
    out: str
    err: str
    seconds: float
    peak: float

    @property
    def is_refusal(self) -> bool:
        """Exit code 2, and one line that begins as all do."""
        lines = self.err.splitlines()
        return self.code == 2 and bool(lines) and lines[-1].startswith("fastuiat: ")


class Forked:
    """The process whose children run commands, while this is open."""

    def __init__(self) -> None:
        path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forked"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def __call__(
        self, words: Sequence[Any], cwd: Path, *, seconds: float = 60, megabytes: int = 2048
    ) -> Ended:
        """`fastuiat WORDS` in a folder, ended after so many seconds; so much memory to be had."""
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = {"words": [*map(str, words)], "cwd": str(cwd), "seconds": seconds}
        print(json.dumps(asked | {"megabytes": megabytes}), file=self.process.stdin, flush=True)
        return Ended(**json.loads(self.process.stdout.readline()))


def run_in_child(asked: dict[str, Any], out: int, err: int) -> None:
    """What the child does; it never returns."""
    os.setsid()
    os.chdir(asked["cwd"])
    for descriptor, place in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(descriptor, place)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = taken + asked["megabytes"] * MB
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    from fastuiat.cli import main

    code: Any = 0
    try:
        main(asked["words"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def waited_for(child: int, seconds: float) -> tuple[int | None, float]:
    """(exit code, None where it had to be killed; peak of its memory in MB)."""
    until, killed = time.monotonic() + seconds, False
    while True:
        ended, status, used = os.wait4(child, 0 if killed else os.WNOHANG)
        if ended:
            code = None if killed else os.waitstatus_to_exitcode(status)
            return code, used.ru_maxrss / 1024
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            killed = True
        time.sleep(0.005)


def serve() -> None:
    import fastuiat.commands.published
    import fastuiat.data
    import fastuiat.evaluation
    import fastuiat.export
    import fastuiat.report.document
    import fastuiat.training.run  # noqa: F401

    bare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for line in sys.stdin:
        asked, begun = json.loads(line), time.monotonic()
        out, err = (os.memfd_create(name) for name in ("out", "err"))
        child = os.fork()
        if child == 0:
            run_in_child(asked, out, err)
        code, peak = waited_for(child, asked["seconds"])
        texts = []
        for file in (out, err):
            texts.append(os.pread(file, MB, 0).decode(errors="replace"))
            os.close(file)
        answer = {
            "code": code,
            "out": texts[0],
            "err": texts[1],
            "seconds": time.monotonic() - begun,
            "peak": max(0.0, peak - bare),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
