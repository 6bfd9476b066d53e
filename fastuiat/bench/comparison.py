"""Records of several devices side by side: which belong together, and what they say of each other.

Two records stand in one row where suite, case, provider and configuration are the same; of one
device the newest counts. Whatever differs in its configuration is another row.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastuiat import machine
from fastuiat.bench import floors, suites
from fastuiat.bench.columns import Record
from fastuiat.bench.suite import Suite
from fastuiat.config import UserError

MOST_DEVICES = 100
"""Side by side: a column each."""
MOST_NOTES = 20
"""Lines of one kind under a table."""
MOST_NAMED = 20
"""In a sentence."""


def listed(names: Sequence[str], between: str = ", ") -> str:
    """All of a few, the first of many and how many more there are."""
    more = len(names) - MOST_NAMED
    said = between.join(names[:MOST_NAMED])
    return f"{said} and {more:,} more" if more > 0 else said


def device_of(record: Mapping[str, Any]) -> str:
    """A device as it ran: a CPU with other threads, a GPU with other power, is another one."""
    gpu, cpu = record.get("gpu"), record.get("cpu") or {}
    if record.get("device_type") == "cuda" or gpu:
        watts = (gpu or {}).get("power_limit_w")
        return f"{record['device']}, {watts:.0f} W" if watts else record["device"]
    return counted(record["device"], cpu.get("threads"), "thread")


def counted(name: str, number: int | None, what: str) -> str:
    """`name, 2 threads`; the name alone where the number is not known."""
    return f"{name}, {number} {what}{'s' if number != 1 else ''}" if number else name


def newest(records: Iterable[Record]) -> dict[tuple[str, str, str, str], Record]:
    """The last made record of each (suite, case, provider, config_hash)."""
    found: dict[tuple[str, str, str, str], Record] = {}
    for record in records:
        key = (record["suite"], record["case"], record["provider"], record["config_hash"])
        if key not in found or record["time"] >= found[key]["time"]:
            found[key] = record
    return found


@dataclass
class ComparedRow:
    """One case by one provider in one configuration: a record for each device that has it."""

    suite: str
    case: str
    provider: str
    config: dict[str, Any]
    config_hash: str
    cells: dict[str, Record] = field(default_factory=dict)
    differs: str = ""
    """What sets it apart from another row of the same case and provider."""
    _works: dict[int, floors.Work | None] = field(default_factory=dict, repr=False)

    @property
    def first(self) -> Record:
        return next(iter(self.cells.values()))

    def work(self, record: Record | None) -> floors.Work | None:
        """Behind one of its records; every bound and share asks for it."""
        if record is None:
            return None
        if id(record) not in self._works:
            self._works[id(record)] = floors.work_of(record)
        return self._works[id(record)]

    @property
    def is_phase(self) -> bool:
        """Whether it is a part of a one-off run, beside a row that is the whole."""
        return "phase_share" in self.first

    @property
    def suite_of_it(self) -> Suite:
        return suites.of(self.suite)

    @property
    def label(self) -> str:
        """Its name inside a group: a table's row, an operation, or the provider."""
        return self.suite_of_it.label(self.first)

    @property
    def group(self) -> str:
        """What a chart is about: rows of one group stand in one."""
        return self.suite_of_it.group(self.first)

    def seconds(self, device: str) -> float | None:
        """What is compared: an epoch where the suite is about epochs, else the call."""
        record = self.cells.get(device)
        return self.suite_of_it.seconds(record) if record else None

    def ratio(self, device: str, reference: str) -> float | None:
        """This device's time over the reference's: 2 is twice as slow."""
        own, other = self.seconds(device), self.seconds(reference)
        return own / other if own and other else None

    def paper_seconds(self) -> float | None:
        """The paper's A100 at the same method, net and batch."""
        return self.suite_of_it.paper_seconds(self.first)

    def ratio_names(self) -> list[str]:
        """The ratios inside a table that its records carry: to natural, to uiat, …"""
        names = {name: None for record in self.cells.values() for name in record.get("ratios", {})}
        return list(names)

    def inner_ratio(self, device: str, name: str) -> float | None:
        """Made inside each round of one run, unlike those between devices."""
        ratios = self.cells.get(device, {}).get("ratios", {})
        return (ratios.get(name) or {}).get("median")

    def paper_ratio(self, name: str) -> float | None:
        """The paper's for the same net, or for its first where it has not that one."""
        return self.suite_of_it.paper_ratio(self.first, name)

    def share(self, device: str) -> float | None:
        """Of the device's peak; the record's own, which knows its machine, before a datasheet."""
        record = self.cells.get(device)
        if record is None or record["error"]:
            return None
        if record.get("peak_share"):
            return record["peak_share"]
        work, rates = self.work(record), floors.datasheet_of(record["device"])
        if work is None or rates is None or not work.flops:
            return None
        return work.flops / record["median_s"] / rates.flops_per_s[work.precision]

    def bound(self, rates: floors.Rates) -> float | None:
        """Seconds at least on another device, in the row's unit."""
        work = self.work(self.first)
        if work is None or (work.flops and work.precision not in rates.flops_per_s):
            return None
        return floors.bound_s(work, rates) * self.suite_of_it.steps(self.first)

    def own_bound(self, device: str) -> float | None:
        """Seconds at least on the device that measured, by its own rates."""
        record = self.cells.get(device)
        work = self.work(record)
        if record is None or work is None:
            return None
        bound = record.get("bound_s")
        if bound is None and work.moved_bytes and record.get("copy_bytes_per_s"):
            bound = work.moved_bytes / record["copy_bytes_per_s"]
        if bound is None:
            rates = floors.datasheet_of(record["device"])
            if rates is None and record.get("cpu") == machine.cpu() and not record.get("gpu"):
                rates = floors.cpu_rates(work.precision)
            bound = floors.bound_s(work, rates) if rates else None
        return bound * self.suite_of_it.steps(record) if bound is not None else None


def letter(i: int) -> str:
    """A … Z, then A2, B2, …"""
    return chr(ord("A") + i % 26) + (str(i // 26 + 1) if i >= 26 else "")


@dataclass
class Comparison:
    """Rows of all devices; ratios between devices refer to `reference`."""

    devices: list[str]
    rows: list[ComparedRow]
    reference: str
    with_paper: bool
    notes: list[str]

    @functools.cached_property
    def _by_suite(self) -> dict[str, list[ComparedRow]]:
        found: dict[str, list[ComparedRow]] = {}
        for row in self.rows:
            found.setdefault(row.suite, []).append(row)
        return found

    def suites(self) -> list[str]:
        found, known = self._by_suite, suites.names()
        return [*(s for s in known if s in found), *(s for s in found if s not in known)]

    def of(self, suite: str) -> list[ComparedRow]:
        return self._by_suite[suite]

    def letters(self) -> dict[str, str]:
        """A short name of each device, for tables: a letter where there are several."""
        if len(self.devices) == 1:
            return {device: device for device in self.devices}
        return {device: letter(i) for i, device in enumerate(self.devices)}

    def records(self, device: str) -> list[Record]:
        return [row.cells[device] for row in self.rows if device in row.cells]


def compare(
    records: Sequence[Record],
    *,
    baseline: Sequence[Record] = (),
    baseline_name: str = "",
    with_paper: bool = False,
) -> Comparison:
    """Side by side; `baseline` records are a device of their own that ratios refer to.

    UserError where nothing is to be compared, or the baseline holds several devices.
    """
    columns: dict[str, list[Record]] = {}
    for record in records:
        columns.setdefault(device_of(record), []).append(record)
    if len(columns) > MOST_DEVICES:
        raise UserError(
            f"these files hold {len(columns):,} devices ({listed(list(columns))}), and a "
            f"comparison has a column for each: give files of {MOST_DEVICES} at most"
        )
    reference = next(iter(columns), "")
    if baseline:
        names = list(dict.fromkeys(map(device_of, baseline)))
        if len(names) > 1:
            raise UserError(
                f"--baseline {baseline_name} holds {len(names)} devices ({'; '.join(names)}): "
                "give a file of one"
            )
        reference = f"{names[0]} ({baseline_name})" if names[0] in columns else names[0]
        columns = {reference: list(baseline), **columns}
    ordered = arrange(columns)
    apart = tell_apart(ordered)
    if not any(is_compared(row, with_paper) for row in ordered):
        raise UserError(nothing_common(list(columns), apart, with_paper))
    notes = [f"not mixed, for the configurations differ: {line}" for line in apart[:MOST_NOTES]]
    if len(apart) > MOST_NOTES:
        notes.append(f"configurations differ in {len(apart) - MOST_NOTES:,} more cases: see --csv")
    return Comparison(list(columns), ordered, reference, with_paper, notes + remarks(columns))


def arrange(columns: Mapping[str, Iterable[Record]]) -> list[ComparedRow]:
    """The rows of some devices, in the order in which their cases first appear."""
    rows: dict[tuple[str, str, str, str], ComparedRow] = {}
    for device, own in columns.items():
        for key, record in newest(own).items():
            row = rows.setdefault(key, ComparedRow(*key[:3], record["config"], key[3]))
            row.cells[device] = record
    return list(rows.values())


def is_compared(row: ComparedRow, with_paper: bool) -> bool:
    measured = sum(row.seconds(device) is not None for device in row.cells)
    beside = with_paper and any(
        [row.paper_seconds(), *(row.paper_ratio(name) for name in row.ratio_names())]
    )
    return measured + bool(beside and measured) >= 2


def tell_apart(rows: Sequence[ComparedRow]) -> list[str]:
    """Name in each row what sets it apart from its like; a line for each such case."""
    alike: dict[tuple[str, str, str], list[ComparedRow]] = {}
    for row in rows:
        alike.setdefault((row.suite, row.case, row.provider), []).append(row)
    lines = []
    for (suite, case, provider), group in alike.items():
        if len(group) < 2:
            continue
        keys = list(dict.fromkeys(key for row in group for key in row.config))
        texts = {
            key: [json.dumps(row.config.get(key), sort_keys=True).strip('"') for row in group]
            for key in keys
        }
        texts = {key: values for key, values in texts.items() if len(set(values)) > 1}
        for i, row in enumerate(group):
            row.differs = ", ".join(f"{key} {values[i]}" for key, values in texts.items())
        said = "; ".join(f"{k}: {listed(list(dict.fromkeys(v)))}" for k, v in texts.items())
        lines.append(f"{suite} {case} {provider} ({said})")
    return lines


def nothing_common(devices: Sequence[str], apart: Sequence[str], with_paper: bool) -> str:
    if not with_paper and len(devices) == 1:
        return (
            f"only {devices[0]} was measured in these files: give records of another device, "
            "or --baseline paper for table2 and table5"
        )
    said = f"no case in common between {listed(devices, '; ')}" + (" and the paper" * with_paper)
    nearest = f"; the nearest differ: {apart[0]}" if apart else ""
    return f"{said}{nearest}: measure the same case in the same configuration"


def remarks(columns: Mapping[str, Sequence[Record]]) -> list[str]:
    """What a reader must know of the machines before he believes a ratio."""
    notes = []
    software = {
        device: {r["versions"]["torch"] for r in own if (r.get("versions") or {}).get("torch")}
        for device, own in columns.items()
    }
    if len(set().union(*software.values())) > 1:
        said = [f"{listed(sorted(v))} on {device}" for device, v in software.items()]
        notes.append(f"PyTorch differs: {listed(said, '; ')}")
    changed = [device for device, own in columns.items() if any(r.get("dirty") for r in own)]
    if changed:
        notes.append(f"measured from changed source: {listed(changed, '; ')}")
    return notes
