"""The audit passes on the kernels as they are, and fails on kernels made worse on purpose."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastuiat_kernels
from fastuiat_kernels import SIZES, SPECS, Size
from fastuiat_kernels.audit import compiling, report, sass
from fastuiat_kernels.audit.__main__ import main
from fastuiat_kernels.audit.targets import TARGETS
from fastuiat_kernels.conv3x3_kernel import Tile
from fastuiat_kernels.spec import Variant

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
    """What CI holds: sm_80, sm_90 and sm_100, every dtype, every kernel but the convolutions'."""
    file = tmp_path / "audit.json"
    kernels = [spec for spec in SPECS if not any(v.by_tiles for v in spec.variants)]
    names = [spec.name for spec in kernels]
    done = audit("--target", "sm_80", "sm_90", "sm_100", "--kernel", *names, "--json", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ": 0 failures" in done.stdout.splitlines()[-1]
    figures = json.loads(file.read_text())
    assert figures["failures"] == [] and set(figures["targets"]) == {"sm_80", "sm_90", "sm_100"}
    seen = {
        (r["target"], r["case"]["variant"], r["case"]["dtype"]) for r in figures["machine_code"]
    }
    for spec in kernels:
        for variant in spec.variants:
            for dtype in variant.dtypes:
                for target in figures["targets"]:
                    assert (target, variant.name, str(dtype).removeprefix("torch.")) in seen
    for row in figures["machine_code"]:
        assert row["compiled"]["registers"] > 0 and row["compiled"]["widths"]
        assert row["programs"] > 0 and row["compiled"]["matrix_instructions"] is None
    for row in figures["traffic"]:
        assert row["counted"] == row["floor"]
    # 128 × 3 × 32 × 32 elements, 16 bytes each, at 2039 GB/s.
    (bound,) = [
        r["bound_us"]
        for r in figures["bounds"]
        if r["target"] == "sm_80"
        and r["case"]["variant"] == "sign_step"
        and r["case"]["dtype"] == "float32"
    ]
    assert bound == pytest.approx(128 * 3 * 32 * 32 * 16 / 2039e9 * 1e6)


@pytest.mark.parametrize("size", [Size(1, 1, 1, 1, 2, 1), Size(7, 5, 3, 11, 13, 61)])
def test_odd_shapes_compile_without_spills(size, monkeypatch):
    """One of everything too, where Triton folds arguments that are 1 into the code."""
    monkeypatch.setitem(SIZES, "odd", size)
    for spec in SPECS:
        for variant in spec.variants:
            if variant.sizes is not SIZES:
                continue
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


# --- the convolution ---

CONVOLUTIONS = {v.name: v for spec in SPECS if spec.name == "conv3x3" for v in spec.variants}


def convolution(name: str, dtype: torch.dtype, *targets: str) -> list[report.CodeRow]:
    (size,) = CONVOLUTIONS[name].audit_sizes
    case = report.Case("conv3x3", name, str(dtype), size)
    return report.code_rows(case, CONVOLUTIONS[name], dtype, targets)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_pass_on_hopper(name):
    """Products from shared memory, nothing spilled, 16 bytes wide where pixels are written."""
    dtype = torch.float16 if "second" in name else torch.bfloat16
    product, *rest = convolution(name, dtype, "sm_90")
    assert product.failures() == []
    assert product.compiled.matrix_instructions > 0 < product.programs
    assert [row.compiled.kernel for row in rest] == ["_add_parts_kernel"] * ("split" in name)
    for row in rest:
        assert row.failures() == [] and row.compiled.matrix_instructions is None
    # What a tensor descriptor brings is no access of a thread; all else is told apart.
    declared = set().union(*(row.compiled.widths for row in (product, *rest)))
    assert declared == set(product.declared) - {"x_desc", "weight_desc"}


def test_the_convolution_elsewhere():
    """tcgen05 on Blackwell; where no tiles are copied it compiles to the matrix instruction, by
    accesses of one element, and is not launched."""
    blackwell, ampere, amd = convolution(
        "conv3x3_backward, both", torch.bfloat16, "sm_100", "sm_80", "gfx942"
    )
    for row in (blackwell, ampere, amd):
        assert row.compiled.matrix_instructions > 0 and row.failures() == []
    assert blackwell.launched and not ampere.launched and not amd.launched
    assert ampere.compiled.widths["x_desc"] == 2
    assert amd.programs is None and amd.compiled.widths is None


def changed(name: str, changes: list[tuple[str, str]], folder: Path):
    """The file of kernels with other words here and there, as a module."""
    text = (PACKAGE / name).read_text()
    for good, bad in changes:
        assert text.count(good) == 1, good
        text = text.replace(good, bad)
    file = folder / "worse.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("worse", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["worse"] = module  # where Triton looks for what a kernel names
    spec.loader.exec_module(module)
    return module


WORSE_CONVOLUTIONS = {
    "operands the other way round, filters backwards": (
        [
            ("tl.zeros((BLOCK_K, PIXELS), tl.float32)", "tl.zeros((PIXELS, BLOCK_K), tl.float32)"),
            ("tl.dot(weight.T, x.T, total)", "tl.dot(x, weight, total)"),
            ("    total = total.T\n", ""),
            ("k + tl.arange(0, BLOCK_K)", "k + BLOCK_K - 1 - tl.arange(0, BLOCK_K)"),
        ],
        Tile(images=1, rows=8, filters=64),
        [r"operands by registers: \d", r"out_ptr is accessed 2 bytes at a time, 16 declared"],
    ),
    "too large a tile": (
        [],
        Tile(images=4, rows=8, filters=128, stages=5),
        [r"\d+ bytes or accesses of local memory", r"245\d+ bytes of shared memory, a program has"],
    ),
    "half a warp group": (
        [],
        Tile(images=1, rows=8, filters=64, warps=2),
        ["its product takes no HGMMA"],
    ),
}


@pytest.mark.parametrize("name", WORSE_CONVOLUTIONS)
def test_convolutions_made_worse_fail(name, tmp_path):
    changes, tile, complaints = WORSE_CONVOLUTIONS[name]
    worse = changed("conv3x3_kernel.py", changes, tmp_path)
    variant = dataclasses.replace(
        CONVOLUTIONS["conv3x3, alone"],
        launcher=lambda **inputs: worse.launch(**inputs, tile=tile),
        sizes={"cifar10": Size(8, 128, 8, 8, 10, 1)},
    )
    case = report.Case("conv3x3", name, "bfloat16", "cifar10")
    (row,) = report.code_rows(case, variant, torch.bfloat16, ["sm_90"])
    for complaint in complaints:
        assert any(re.search(complaint, failure) for failure in row.failures()), row.failures()


STRIDED = {v.name: v for spec in SPECS if spec.name == "strided3x3" for v in spec.variants}
STRIDED_CASES = [
    (name, size)
    for name, variant in STRIDED.items()
    for size in variant.audit_sizes[-1 if name == "strided3x3_backward" else 0 :]
]


def strided(variant: Variant, size: str, *targets: str) -> list[report.CodeRow]:
    case = report.Case("strided3x3", variant.name, "bfloat16", size)
    return report.code_rows(case, variant, torch.bfloat16, targets)


@pytest.mark.parametrize(("name", "size"), STRIDED_CASES)
def test_strided_convolutions_pass_on_hopper(name, size):
    """By every tile of their table."""
    (row,) = strided(STRIDED[name], size, "sm_90")
    assert row.failures() == []
    assert row.compiled.matrix_instructions > 0 < row.programs
    assert set(row.compiled.widths) == {p for p in row.declared if not p.endswith("_desc")}


def test_strided_convolutions_elsewhere():
    blackwell, ampere, amd = strided(
        STRIDED["strided3x3"], "128 at 16", "sm_100", "sm_80", "gfx942"
    )
    for row in (blackwell, ampere, amd):
        assert row.compiled.matrix_instructions > 0 and row.failures() == []
    assert blackwell.launched and not ampere.launched and not amd.launched


def test_strided_convolutions_made_worse_fail(tmp_path):
    """The operands of the shortcut's product the other way round."""
    changes = [
        (
            "tl.dot(weight1_desc.load([c, k]).T, x.T, total)",
            "tl.dot(x, weight1_desc.load([c, k]), total)",
        ),
        ("    short = total.T + tl", "    short = total + tl"),
        (
            "    total = tl.zeros((BLOCK_K, PIXELS), tl.float32)\n    for step in range(0, IN_TAP)",
            "    total = tl.zeros((PIXELS, BLOCK_K), tl.float32)\n    for step in range(0, IN_TAP)",
        ),
    ]
    worse = changed("strided3x3_kernel.py", changes, tmp_path)
    variant = dataclasses.replace(STRIDED["strided3x3"], launcher=worse.launch)
    (row,) = strided(variant, "128 at 16", "sm_90")
    assert any("operands by registers" in failure for failure in row.failures()), row.failures()


IMAGE = {v.name: v for spec in SPECS if spec.name == "conv3x3_sign_step" for v in spec.variants}


def image_step(*targets: str) -> list[report.CodeRow]:
    name = "conv3x3_sign_step, counted"
    case = report.Case("conv3x3_sign_step", name, "bfloat16", "cifar10")
    return report.code_rows(case, IMAGE[name], torch.bfloat16, targets)


def test_the_step_by_an_image_s_gradient():
    """Its product from shared memory, nothing spilled, several programs at once."""
    hopper, blackwell, ampere = image_step("sm_90", "sm_100", "sm_80")
    for row in (hopper, blackwell, ampere):
        assert row.failures() == [] and row.compiled.matrix_instructions > 0
    for row in (hopper, blackwell):
        assert row.launched and row.programs >= 4 and row.compiled.registers <= 64
        assert set(row.compiled.widths) == {p for p in row.declared if not p.endswith("_desc")}
    assert not ampere.launched


def test_the_step_by_an_image_s_gradient_made_worse_fails(monkeypatch):
    module = sys.modules["fastuiat_kernels.conv3x3_sign_step"]
    monkeypatch.setattr(module, "_NUM_WARPS", 2)
    (row,) = image_step("sm_90")
    assert any("its product takes no HGMMA" in failure for failure in row.failures())


def test_parameters_lie_where_the_code_says(monkeypatch):
    """Behind descriptors of 128 bytes, or what they are taken apart into."""
    code = {}
    tool = compiling._tool

    def keep(name, *words):
        if name == "cuobjdump":
            code["elf"] = tool("cuobjdump", "-elf", words[-1])
        return tool(name, *words)

    monkeypatch.setattr(compiling, "_tool", keep)
    read = sass.read

    def watch(text, pointers):
        code["pointers"] = pointers
        return read(text, pointers)

    monkeypatch.setattr(sass, "read", watch)
    variant = CONVOLUTIONS["conv3x3_backward, both"]  # compiled above: out of Triton's cache
    (launch,) = compiling.launches(variant, torch.bfloat16, "cifar10")
    for name, first in (("sm_80", 0x160), ("sm_90", 0x210), ("sm_100", 0x380)):
        compiling.compile_launch(launch, TARGETS[name])
        found = re.findall(r"Offset\s*:\s*(0x\w+)\s+Size\s*:\s*(0x\w+)", code["elf"])
        sizes = {int(offset, 16): int(size, 16) for offset, size in found}
        pointers = {name: offset - first for offset, name in code["pointers"].items()}
        descriptors = sum(size == 128 for size in sizes.values())
        assert descriptors == (0 if name == "sm_80" else 2)
        assert set(pointers) >= {"out_ptr"} and ("x_desc" in pointers) == (name == "sm_80")
        assert all(sizes[offset] == 8 for offset in pointers.values())
        # Behind out: three numbers (that of tiles in an image is 1 and folded into the code), and
        # the two pointers that Triton adds.
        behind = [size for offset, size in sorted(sizes.items()) if offset > pointers["out_ptr"]]
        assert behind == [4, 4, 4, 8, 8]


def test_programs_of_a_multiprocessor():
    """By registers, by shared memory, by warps, by their number."""
    hopper = TARGETS["sm_90"]
    assert hopper.programs(registers=128, threads=128, shared=0) == 65536 // (128 * 128)
    assert hopper.programs(registers=90, threads=128, shared=98336) == 2
    assert hopper.programs(registers=97, threads=256, shared=1024) == 2  # 97 count as 104
    assert hopper.programs(registers=16, threads=1024, shared=0) == 2
    assert hopper.programs(registers=16, threads=32, shared=0) == 32
    assert hopper.programs(registers=16, threads=32, shared=300_000) == 0


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
