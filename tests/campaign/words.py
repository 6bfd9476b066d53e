"""Wrong commands: every subcommand and flag, with values, flags and settings that do not belong.

What the flags are comes from the parsers and their help, so a new one is tried without being named
here. A command must end in exit code 2 and one line, or be at work; what is refused leaves nothing.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from fastuiat import data, methods, recipes
from fastuiat.models.registry import REGISTRY as FAMILIES
from tests.campaign import forked, grammar
from tests.campaign.grammar import Flag
from tests.campaign.places import HAZARDS, filled
from tests.campaign.trial import Trial
from tests.imported import import_all

Words = list[str]

NUMBERS = (
    "nan", "inf", "-inf", "1e999", "-1e999", "-0", "-0.0", "0", "-1", "1e30", "1" + 30 * "0",
    "-1" + 30 * "0", str(1 << 63), str((1 << 63) - 1), str(1 << 31), "1.5", "1e-320", "0x10",
    "1_000", "٣", "½", "１２", "+5", "1e5", "1,2,3", "0.1.2", "1 2", "1/0", "0/0", "8/255/3",
    "nan/255", "1e400/1e400", "-8/255", "True", "None", "null", "[]", "{}", "5" * 5000,
)  # fmt: skip
TEXTS = (
    "", " ", "\t", "\n", "a\nb", "\r", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31m", "\x7f",
    "\x01", "é", "日本語", "👩‍👧", "\u202eabc", "\ufeff", "\u2028", os.fsdecode(b"\xff\xfe"),
    os.fsdecode(b"\xed\xa0\x80"), "a" * 5000, "é" * 5000, "%s%n", "{0}", "{", "$(id)", "-", "--",
    "---x", "=", "--=", "-x", "-5", "[red]x[/red]", "[/]", "\\", "'", '"', ",", ",,", "*", "?", "[",
    ":", ";", "|", "@file", "a,b", "linear:", "linear:nan", "linear:0.5:1", "folder:", "npz:",
    "folder:nothing", "npz:nothing", "npz:../file.txt", "folder:../folder", "timm:",
    "timm:nothing", "torchvision:x", "wrn-0-0", "wrn-10-0", "wrn-10-" + 99 * "9", "dm-wrn-10-1",
    "8/255", "table1/", "table1/cifar10/uiat/", "train", "cuda:0", "mps", "ddpm1m",
)  # fmt: skip
PATHS = (
    *HAZARDS, ".", "..", "../run", "../run/config.json", "../run/checkpoints/last.pt",
    "../run/metrics.jsonl", "../run/checkpoints", "../records.jsonl", "../file.txt/x", "../loop/x",
    "../run/x/y", "../pipe/x", "/proc/self/mem", "/proc/none/x", "n" * 300, "n" * 300 + "/x",
    "x/" * 2500, "new", "new/a/b", "a\nb", "\x1b[31mred", os.fsdecode(b"\xff\xfe"), "日本語",
)  # fmt: skip
"""Nothing outside the folder of the trials that could be written."""

TRAIN = (
    "--dataset", "digits", "--arch", "wrn-10-1", "--device", "cpu", "--no-compile", "--max-steps",
    "1", "--batch-size", "32", "--val-size", "32", "--loader", "resident",
)  # fmt: skip
BASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "train": (TRAIN, TRAIN, ("--resume", "../run"), (*TRAIN, "--out", "../run"),
              (*TRAIN, "--init", "../run"), (*TRAIN, "--config", "../run/config.json"),
              ("--resume-or-start", "--out", "../run", *TRAIN)),
    "eval": (("../run", "--attacks", "clean", "--n", "8"), ("../run/checkpoints/last.pt",), ()),
    "export": (("../run", "--format", "safetensors"), ("../run/checkpoints/last.pt",), ()),
    "bench": (("--device", "cpu", "--no-compile"), ("--json", "new.jsonl"), ()),
    "bench compare": (("../records.jsonl",), ("../records.jsonl", "../run"), ()),
    "bench gpu": ((), ("--out", "report")),
    "data": (("digits",), ("digits", "--data-dir", "new"), ()),
    "recipes": (("table1/cifar10/uiat",), ("table5/n-fgsm+uiat/eps-8",), ()),
    "report": (("../run",), ("../run", "../run", "--out", "new.html"), ()),
    "reproduce": (("table1",), ("cifar10-small", "--jobs", "1"), ("figure2", "--epochs", "1"), ()),
    "doctor": ((), ("--json",)),
}  # fmt: skip
"""What stands behind a command before anything is made wrong."""
COMMON = {"train": 20, "eval": 4, "reproduce": 3, "recipes": 3, "doctor": 0.2}
"""How often a command is drawn, all its kinds together; once is the others' share."""


class Grammar:
    """Commands as they are drawn: of right words, with one to three things wrong."""

    def __init__(self, random: random.Random) -> None:
        self.random = random
        self.commands = grammar.commands()
        kinds = {name: sum(c[0] == name for c in self.commands) for name, *_ in self.commands}
        self.weights = [COMMON.get(name, 1) / kinds[name] for name, *_ in self.commands]
        self.wrongs: list[Callable[[tuple[str, ...], Words], Words]] = [
            self.wrong_value, self.wrong_value, self.wrong_value, self.wrong_value,
            self.other_choice, self.other_choice, self.two_choices, self.flag_of_another,
            self.flag_twice, self.without_value, self.misspelt, self.stray_word, self.lost_word,
            self.replaced_word, self.swapped,
        ]  # fmt: skip

    def drawn(self) -> Words:
        command = self.random.choices(self.commands, self.weights)[0]
        if self.random.random() < 0.02:
            command = (self.text(),)
        bases = BASES.get(" ".join(command)) or BASES.get(command[0]) or ((),)
        words = [*command, *self.random.choice(bases)]
        if command[0] == "train" and "--resume" in words:
            words = ["train", *words[words.index("--resume") :]]
        for _ in range(self.random.choice((1, 1, 1, 2, 2, 3))):
            words = self.random.choice(self.wrongs)(command, words)
        return words

    # What may be wrong.

    def wrong_value(self, command: tuple[str, ...], words: Words) -> Words:
        return self.with_value(words, self.flag(command), self.value)

    def other_choice(self, command: tuple[str, ...], words: Words) -> Words:
        """A right value, that may not go with the others."""
        return self.with_value(words, self.flag(command), self.right_value)

    def two_choices(self, command: tuple[str, ...], words: Words) -> Words:
        return self.other_choice(command, self.other_choice(command, words))

    def flag_of_another(self, command: tuple[str, ...], words: Words) -> Words:
        other = self.random.choice(self.commands)
        return self.with_value(words, self.flag(other), self.right_value)

    def flag_twice(self, command: tuple[str, ...], words: Words) -> Words:
        flag = self.flag(command)
        return self.with_value(self.with_value(words, flag, self.right_value), flag, self.value)

    def without_value(self, command: tuple[str, ...], words: Words) -> Words:
        name = self.random.choice(self.flag(command).names)
        at = self.random.choice((len(words), self.random.randint(1, len(words))))
        return [*words[:at], name + self.random.choice(("", "", "=")), *words[at:]]

    def misspelt(self, command: tuple[str, ...], words: Words) -> Words:
        """A flag cut short, with a sign more, or in another spelling."""
        name = self.random.choice(self.flag(command).names)
        made = self.random.choice((
            name[:-1], name[1:], f"-{name}", name.replace("-", "_"), name.upper(), name + "s",
            name.replace("--", "--no-"), name.replace("--no-", "--"), name + "\u200b", name + " 1",
        ))  # fmt: skip
        return [*words, made, *self.random.choice(([], [self.value(self.flag(command))]))]

    def stray_word(self, command: tuple[str, ...], words: Words) -> Words:
        at = self.random.randint(1, len(words))
        return [*words[:at], self.text(), *words[at:]]

    def lost_word(self, command: tuple[str, ...], words: Words) -> Words:
        at = self.random.randrange(len(words))
        return words[:at] + words[at + 1 :] if len(words) > 1 else words

    def replaced_word(self, command: tuple[str, ...], words: Words) -> Words:
        at = self.random.randrange(len(words))
        return [*words[:at], self.text(), *words[at + 1 :]]

    def swapped(self, command: tuple[str, ...], words: Words) -> Words:
        rest = words[1:]
        self.random.shuffle(rest)
        return [words[0], *rest]

    # Flags and values.

    def flag(self, command: tuple[str, ...]) -> Flag:
        known = [f for f in grammar.flags(command) if f.names != ("--help",)]
        return self.random.choice(known) if known else Flag(("--nothing",), "")

    def with_value(self, words: Words, flag: Flag, value: Callable[[Flag], str]) -> Words:
        name = self.random.choice(flag.names)
        if not flag.metavar and self.random.random() < 0.8:
            return [*words, name]
        count = {"LO HI N": 3, "R G B": 3}.get(flag.metavar, 1)
        if "..." in flag.metavar:
            count = self.random.choice((0, 1, 1, 1, 2, 3))
        values = [value(flag) for _ in range(count)]
        if self.random.random() < 0.2:
            return [*words, f"{name}={' '.join(values)}"]
        return [*words, name, *values]

    def value(self, flag: Flag) -> str:
        """One that is most likely wrong."""
        kind = re.sub(r"\W", "", flag.metavar.replace("None", ""))
        if kind in ("PATH", "FILE", "RUN") and self.random.random() < 0.8:
            return self.random.choice(PATHS)
        if kind in ("INT", "FLOAT", "RADIUS", "N", "RADIUSRADIUS", "INTINT", "LOHIN", "RGB"):
            return self.random.choice(NUMBERS if self.random.random() < 0.8 else TEXTS)
        return self.text()

    def text(self) -> str:
        return self.random.choice(self.random.choice((TEXTS, TEXTS, NUMBERS, PATHS)))

    def right_value(self, flag: Flag) -> str:
        """One of the flag's kind."""
        if flag.choices and flag.choices != ["None"]:
            return self.random.choice(flag.choices)
        named = {
            "--method": methods.names(),
            "--dataset": [*data.DATASETS, "npz:../file.npz", "folder:../folder"],
            "--arch": NETS,
            "--archs": NETS,
            "--methods": methods.names(),
            "--recipe": list(recipes.RECIPES),
            "--schedule": ["one-cycle", "linear:0.5"],
            "--extra-data": ["ddpm1m", "../file.npz", "../images.npy"],
        }.get(flag.names[0])
        if named:
            return self.random.choice(named)
        if "PATH" in flag.metavar or flag.metavar in ("FILE", "RUN"):
            return self.random.choice(PATHS)
        if "INT" in flag.metavar or flag.metavar == "N":
            return self.random.choice(("1", "2", "3", "8", "16", "32", "100", "224", "2000"))
        return self.random.choice(("0", "0.5", "1", "2/255", "8/255", "16/255", "0.1", "3.5"))


NETS = sorted(
    {name for family in FAMILIES.values() for name in (family.example or family.name,)}
    | {"wrn-10-1", "wrn-16-2", "timm:resnet18", "torchvision:resnet18", "timm:vit_tiny_patch16_224"}
)


def shown(words: Words) -> str:
    """A command as it can be tried again: Python's words, a long one as a letter so many times."""
    return "[" + ", ".join(map(shown_word, words)) + "]"


def shown_word(word: str) -> str:
    if len(word) > 200 and len(set(word)) == 1:
        return f"{len(word)} * {word[0]!a}"
    if len(word) > 200 and word == word[:2] * (len(word) // 2):
        return f"{len(word) // 2} * {word[:2]!a}"
    return ascii(word)


def alike(said: str) -> str:
    """A message without what differs from one input to the next."""
    said = re.sub(r"'[^']*'|\S*[/\\]\S*", "…", said)
    return re.sub(r"[^\s\w.…:,-]+|\d+|\w{20,}|[^\x00-\x7f…]+", "#", said)[:160]


def counted(outcome: forked.Outcome, messages: set[str]) -> tuple[tuple[str, int], ...]:
    """What a trial adds to the table beside its faults."""
    if outcome.code != 2 or outcome.has_begun:
        return (("accepted", 1),)
    message = alike(outcome.err)
    new = message not in messages
    messages.add(message)
    return (("refused", 1), *([("messages", 1)] if new else []))


def trials(random: random.Random, folder: Path) -> Iterator[Trial]:
    """Endless; the first makes what stands around the commands."""
    import_all()
    data.ffcv_available()  # few commands come to it, and it takes ten seconds
    drawing = Grammar(random)
    place = forked.Place(folder / "place", filled(folder / "kept"))
    messages: set[str] = set()
    try:
        while True:
            words = drawing.drawn()
            tried = place.run(words)
            what = shown(words) + (tried.told() if tried.faults else "")
            yield Trial("words", what, tried.faults, counted(tried.outcome, messages))
    finally:
        shutil.rmtree(folder / "place", ignore_errors=True)
