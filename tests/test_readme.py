"""README and docs: examples that run, links that lead somewhere, flags that exist, true numbers."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from pathlib import Path

import pytest
import torch

import fastuiat
from fastuiat import data, methods
from fastuiat.cli import COMMANDS, main
from fastuiat.methods.base import REGISTRY

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/**/*.md", "kernels/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text_of(page)) if name == language]


def prose(page: str) -> str:
    return FENCE.sub("", text_of(page))


# --- examples


@pytest.mark.slow
def test_the_library_examples_run(tmp_path, monkeypatch):
    """README's as it stands but for the sizes, and docs/library.md's blocks behind it."""
    (example,) = blocks("README.md", "python")
    assert example.count("\n") <= 24
    for large, small in (('"resnet-18"', '"wrn-10-1"'), ("128", "16"), ("= 100,", "= 1,")):
        assert large in example
        example = example.replace(large, small)
    pages = [example, *blocks("docs/library.md", "python")]
    monkeypatch.chdir(tmp_path)
    eager = functools.partial(fastuiat.TrainingStep, compile=False)
    monkeypatch.setattr(fastuiat, "TrainingStep", eager)
    torch.manual_seed(0)
    names = {
        "images": torch.rand(64, 3, 32, 32),
        "labels": torch.arange(64) % 10,
        "test_images": torch.rand(16, 3, 32, 32),
        "test_labels": torch.arange(16) % 10,
    }
    for page in pages:
        exec(compile(page, "example", "exec"), names)
    assert set(names["accuracy"]) == {"clean", "pgd"}
    assert names["accuracy"]["pgd"] <= names["accuracy"]["clean"] <= 1
    assert names["robust"].shape == (16,) and names["robust"].dtype == torch.bool
    difference = (names["x_adv"] - names["test_images"]).abs().amax()
    assert 0 < difference <= 8 / 255 + 1e-6
    assert (Path(names["run"]) / "checkpoints" / "last.pt").exists()


def test_the_method_of_the_docs_is_a_method(small_net, monkeypatch):
    """Known by its name, with its setting; at weight 0 its gradient is SAT's."""
    monkeypatch.setitem(REGISTRY, "pairs", None)
    (example,) = blocks("docs/extending.md", "python")
    exec(compile(example, "example", "exec"), {"__name__": __name__})
    x, y, index = torch.rand(8, 3, 32, 32), torch.arange(8) % 10, torch.arange(8)
    batch = data.Batch(x, y, index, epoch=1, step=0)

    def gradients(name: str, **settings: float) -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = small_net().train()
        method = methods.create(name, num_classes=10, num_samples=8, **settings)
        out = method.loss(net, batch)
        return list(torch.autograd.grad(out.loss, list(net.parameters())))

    plain, paired = gradients("sat"), gradients("pairs", weight=1.0)
    alone = gradients("pairs", weight=0.0)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, alone, strict=True))
    assert not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, paired, strict=True))


# --- links


def slugs(page: str) -> set[str]:
    """The anchors of a page's headings, as they are made on the web."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.resolve().is_relative_to(ROOT) and target.exists(), f"{page}: {link}"
        if anchor:
            there = target.resolve().relative_to(ROOT).as_posix()
            assert anchor in slugs(there), f"{page}: {link}"


def test_every_guide_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\(([^)#\s]+)", prose("README.md")))
    guides = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert linked >= guides | {"CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"}


# --- commands and flags


@functools.cache
def help_of(command: str) -> str:
    """What the real parser says behind `fastuiat COMMAND --help`."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("COLUMNS", "400")
        with contextlib.suppress(SystemExit):
            main([*command.split(), "--help"])
    return said.getvalue()


def flags_of(command: str) -> set[str]:
    return set(FLAG.findall(help_of(command))) | {"--help"}


@functools.cache
def suites() -> set[str]:
    """What `fastuiat bench` can be asked for."""
    found = set(re.findall(r"^  ([a-z]\w+) {2,}", help_of("bench"), re.MULTILINE))
    assert found >= {"step", "kernels", "table2", "compare", "gpu"}
    return found


def command_of(words: list[str]) -> str:
    """The words of `fastuiat …` that choose a parser: command, suite, method."""
    command = words[:1]
    if command == ["data"] or (command == ["bench"] and words[1:2] and words[1] in suites()):
        command = words[:2]
    if command == ["train"] and "--method" in words:
        command += ["--method", words[words.index("--method") + 1]]
    return " ".join(command)


def commands_in(page: str) -> list[list[str]]:
    """Every `fastuiat …` of a page, in its blocks and in its text, as words."""
    lines = [line for _, body in FENCE.findall(text_of(page)) for line in body.splitlines()]
    spans = re.findall(r"`([^`]+)`", prose(page))
    found = [" ".join(line.split("#")[0].split()) for line in [*lines, *spans]]
    return [line.split()[1:] for line in found if re.match(r"fastuiat( |$)", line)]


USER_PAGES = [page for page in PAGES if page.startswith(("README", "docs/", "CONTRIBUTING"))]
PLACEHOLDERS = {"M", "pairs"}
"""What stands for a method's name, and the method that a page adds."""


@pytest.mark.parametrize("page", [*USER_PAGES, "benchmarks/README.md"])
def test_every_command_and_its_flags_exist(page):
    for words in commands_in(page):
        if words in ([], ["kernels"]):  # the name alone, or a kind of a profile's rows
            continue
        assert words[0] in COMMANDS, f"{page}: {' '.join(words)}"
        command = command_of(words)
        own = command.split()[-1] if "--method" in command else ""
        if own in PLACEHOLDERS:
            command = "train"
        used = {flag for word in words for flag in FLAG.findall(word)}
        lacking = used - flags_of(command) - ({"--weight"} if own == "pairs" else set())
        assert not lacking, f"{page}: fastuiat {command} has no {', '.join(sorted(lacking))}"


def test_every_flag_named_in_the_text_exists():
    known = {"--check", "--add"}  # of benchmarks/render.py
    for command in [*COMMANDS, "data prepare", *(f"bench {suite}" for suite in suites())]:
        known |= flags_of(command)
    for method in methods.names():
        known |= flags_of(f"train --method {method}")
    for page in [*USER_PAGES, "benchmarks/README.md"]:
        spans = [s for s in re.findall(r"`([^`]+)`", prose(page)) if "fastuiat_kernels" not in s]
        named = {flag for span in spans if span.startswith("--") for flag in FLAG.findall(span)}
        assert not named - known, f"{page}: {sorted(named - known)}"


def test_every_target_of_make_exists():
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    for page in USER_PAGES:
        lines = [line for _, body in FENCE.findall(text_of(page)) for line in body.splitlines()]
        spans = re.findall(r"`([^`]+)`", prose(page))
        named = [m[1] for line in [*lines, *spans] if (m := re.match(r"make ([a-z-]+)", line))]
        assert set(named) <= targets, page


# --- the claim


def test_the_claim_s_numbers_are_those_of_the_table():
    """And the README is no longer than it may be."""
    readme = text_of("README.md")
    assert readme.count("\n") < 200
    claim = readme.split("\n\n")[1]
    table = re.search(r"<!-- measured: step -->.*?<!-- end -->", readme, re.DOTALL)
    assert table is not None and readme.count("<!-- measured:") == 1
    numbers = re.findall(r"(?<!PyTorch )\b\d+\.\d+(?: ms)?", claim)
    (date,) = re.findall(r"\d{4}-\d\d-\d\d", claim)
    assert len(numbers) == 5 and f"; {date}." in table[0]
    assert all(f"| {number} |" in table[0] for number in numbers), numbers
