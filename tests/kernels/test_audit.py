"""The audit passes on the kernels as they are, and fails on kernels made worse on purpose."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastuiat_kernels
from fastuiat_kernels import SPECS, Size
from fastuiat_kernels.audit import compiling, sass
from fastuiat_kernels.audit.__main__ import main
from fastuiat_kernels.audit.targets import TARGETS

pytestmark = pytest.mark.slow

PACKAGE = Path(fastuiat_kernels.__file__).parent


def audit(*words: str | Path, root: Path = PACKAGE.parent) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastuiat_kernels.audit", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
    )


def test_every_kernel_passes_on_three_generations(tmp_path):
    """What CI holds: sm_80, sm_90 and sm_100, every kernel, every dtype."""
    file = tmp_path / "audit.json"
    done = audit("--target", "sm_80", "sm_90", "sm_100", "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": 0 failures" in done.stdout.splitlines()[-1]
    report = json.loads(file.read_text())
    assert report["failures"] == [] and set(report["targets"]) == {"sm_80", "sm_90", "sm_100"}
    seen = {(r["target"], r["case"]["variant"], r["case"]["dtype"]) for r in report["machine_code"]}
    for spec in SPECS:
        for variant in spec.variants:
            for dtype in variant.dtypes:
                for target in report["targets"]:
                    assert (target, variant.name, str(dtype).removeprefix("torch.")) in seen
    for row in report["machine_code"]:
        assert row["compiled"]["registers"] > 0 and row["compiled"]["widths"]
    for row in report["traffic"]:
        assert row["counted"] == row["floor"]
    # 128 × 3 × 32 × 32 elements, 16 bytes each, at 2039 GB/s.
    (bound,) = [
        r["bound_us"]
        for r in report["bounds"]
        if r["target"] == "sm_80"
        and r["case"]["variant"] == "sign_step"
        and r["case"]["dtype"] == "float32"
    ]
    assert bound == pytest.approx(128 * 3 * 32 * 32 * 16 / 2039e9 * 1e6)


@pytest.mark.parametrize("size", [Size(1, 1, 1, 1, 2, 1), Size(7, 5, 3, 11, 13, 61)])
def test_odd_shapes_compile_without_spills(size, monkeypatch):
    """One of everything too, where Triton folds arguments that are 1 into the code."""
    monkeypatch.setitem(compiling.SIZES, "odd", size)
    for spec in SPECS:
        for variant in spec.variants:
            for launch in compiling.launches(variant, variant.dtypes[0], "odd"):
                compiled = compiling.compile_launch(launch, TARGETS["sm_90"])
                assert compiled.spilled == compiled.unattributed == 0, compiled


def test_amd():
    done = audit("--target", "gfx942", "--kernel", "bank_apply", "memory_update")
    assert done.returncode == 0, done.stdout + done.stderr


WORSE = [
    (
        "augment.py",
        "    pixel = tl.div_rn(",
        "    byte |= tl.load(images_ptr + sample * elements + source, mask=there, other=0)\n"
        "    pixel = tl.div_rn(",
        r"augment, uint8, small: images_ptr moves \d+ bytes, its floor is \d+",
    ),
    (
        "augment.py",
        "BLOCK + tl.arange(0, BLOCK)",
        "BLOCK + BLOCK - 1 - tl.arange(0, BLOCK)",
        r"_augment_kernel: out_ptr is accessed 4 bytes at a time, 16 declared",
    ),
    (
        "class_rows.py",
        "_RANKED = 16",
        "_RANKED = 128",
        r"_group_rows_kernel: \d+ bytes or accesses of local memory",
    ),
]


def test_kernels_made_worse_fail(tmp_path):
    """One reads its bytes twice and stores backwards, another asks for too many registers."""
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file, good, bad, _ in WORSE:
        text = (copy / file).read_text()
        assert text.count(good) == 1
        (copy / file).write_text(text.replace(good, bad))
    kernels = ("augment", "bank_apply", "bank_step")
    done = audit("--target", "sm_80", "--kernel", *kernels, root=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    failures = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    for *_, complaint in WORSE:
        assert any(re.search(complaint, line) for line in failures), done.stdout
    assert not any("bank_apply" in line for line in failures)  # nobody touched it


@pytest.mark.parametrize(
    "words", [("--target", "sm_1"), ("--kernel", "softmax"), ("--json", "no/such/folder/a.json")]
)
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    assert words[1] in capsys.readouterr().err.splitlines()[-1]


def test_reading_machine_code_through_branches_and_reuse():
    """A register that held one pointer on another path says nothing about this one."""
    text = """
        /*0000*/                   LDC.64 R4, c[0x0][0x210] ;
        /*0010*/              @P0 BRA `(.L_x_1) ;
        /*0020*/                   IMAD.WIDE R6, R3, 0x10, R4 ;
        /*0030*/                   LDG.E.128 R8, desc[UR4][R6.64] ;
        /*0040*/                   STL [R1], R8 ;
        /*0050*/                   EXIT ;
.L_x_1:
        /*0060*/                   LDC.64 R4, c[0x0][0x218] ;
        /*0070*/                   LEA R4, P1, R9, R4, 0x2 ;
        /*0080*/                   LEA.HI.X.SX32 R5, R9, R5, 0x2, P1 ;
        /*0090*/                   LDG.E.U16 R9, desc[UR4][R4.64] ;
        /*00a0*/                   STG.E.64 desc[UR4][R8.64], R4 ;
        /*00b0*/                   EXIT ;
    """
    code = sass.read(text, {0x210: "a", 0x218: "b"})
    assert code.local_accesses == 1
    assert code.accesses == (
        sass.Access("load", 16, frozenset({"a"})),
        sass.Access("load", 2, frozenset({"b"})),
        sass.Access("store", 8, frozenset()),
    )
