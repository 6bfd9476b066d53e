"""A trace cut into pieces of one kind each, which sum to its time.

A host operator, and a kernel by the operator that launched it, is of the kind of the outermost
operator around it that stands for one: a copy that a convolution needs is part of the convolution.
Kernels that say what they are by their names need no operator: Inductor's, ours, and the driver's
copies. Of a replayed graph nothing else is known; there a kernel is what one of its name was when
it was launched by an operator, and only one that was not met so is judged by its name alone.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import fastuiat_kernels
from fastuiat.bench.events import MARK, Event, Trace
from fastuiat.bench.layers import BOTH, FORWARD, INPUT, WEIGHTS, Layer, Products, convolution

POINTWISE, OURS, OPTIMISER = "pointwise graphs", "fastuiat kernels", "optimiser"
COPIES, OTHER, IDLE, HOST = "copies", "other", "idle", "host"

COPY_OPERATORS = frozenset(
    f"aten::{name}" for name in ("copy_", "_to_copy", "to", "clone", "contiguous", "_foreach_copy_")
)
OPERATOR = re.compile(r"(?!autograd::|torch::autograd)\w+::\w+|detach_?$")
"""Names of operators: all else on the host are marks and Python."""


@dataclass(frozen=True)
class Piece:
    """Time of one kind, of one or more calls of something."""

    kind: str
    name: str
    ns: float
    calls: float = 1.0
    layer: Layer | None = None
    operator: int = 0
    """The operator by which the layer was called: several kernels may be one call."""


@dataclass(frozen=True)
class Claim:
    """An operator that accounts for all that it is made of."""

    kind: str
    name: str
    id: int
    layer: Layer | None = None


def claim(event: Event, known: Products) -> Claim | None:
    """What kind an operator's whole inside is of; None where that shows in its parts."""
    name = event.name
    found = convolution(name, event.shapes, event.values)
    if found is None and name == "aten::mm":
        a, b = event.shapes[:2] if event.shapes else ((), ())
        found = known.get((a, b))
    if found:
        return Claim(found[0], name, event.id, found[1])
    kind = None
    if name in ("aten::convolution", "aten::convolution_backward"):  # and its shapes are not known
        kind = FORWARD if name == "aten::convolution" else BOTH
    elif name.startswith("Optimizer.") or name == "aten::_fused_sgd_":
        kind = OPTIMISER
    elif name in COPY_OPERATORS:
        kind = COPIES
    elif kernel := our_kernel(name):
        return Claim(OURS, kernel, event.id)
    elif "cpp_fused" in name or name.startswith("cpp_"):
        kind = POINTWISE
    return Claim(kind, shortened(name), event.id) if kind else None


@functools.cache
def our_names() -> re.Pattern[str]:
    """Names of the kernels in fastuiat_kernels, as a driver or Inductor gives them."""
    names = set()
    for info in pkgutil.iter_modules(fastuiat_kernels.__path__, "fastuiat_kernels."):
        if not info.ispkg:
            module = importlib.import_module(info.name)
            names |= {name for name in vars(module) if re.fullmatch(r"_\w+_kernel", name)}
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(rf"_?({'|'.join(n.strip('_') for n in longest_first)})(?![A-Za-z])")


@functools.cache
def our_kernel(name: str) -> str | None:
    """The name of a kernel of fastuiat_kernels without what a compiler adds to it, or None."""
    match = our_names().match(name)
    return match[1] if match else None


@functools.cache
def shortened(name: str) -> str:
    """A name without what differs from process to process."""
    if name == MARK:
        return "Python"
    name = re.sub(r"^graph_\d+_(?=cpp_)", "", name)
    name = re.sub(r"^## Call CompiledFxGraph \w+ ##$", "glue of compiled graphs", name)
    name = re.sub(r"^Torch-Compiled Region: [\d/]+$", "entry of compiled graphs", name)
    name = re.sub(r"^autograd::engine::evaluate_function: ", "autograd: ", name)
    return re.sub(r"^Optimizer\.(\w+)#", r"\1: ", name)


def host_pieces(trace: Trace, known: Products) -> list[Piece]:
    """All of the trace's time by what its thread did: the sum is the time, to the nanosecond."""
    pieces: list[Piece] = []
    open_events: list[tuple[Event, int]] = []  # with the ns of its parts so far

    def close(until: float) -> None:
        while open_events and open_events[-1][0].end <= until:
            event, inside = open_events.pop()
            kind = OTHER if OPERATOR.match(event.name) else HOST
            pieces.append(Piece(kind, shortened(event.name), event.end - event.begin - inside))

    claimed_until = trace.begin
    for event in trace.on_host():
        if event.begin < claimed_until:
            continue  # a part of what is accounted for
        close(event.begin)
        if open_events:
            owner, inside = open_events.pop()
            open_events.append((owner, inside + event.end - event.begin))
        found = claim(event, known)
        if found is None:
            open_events.append((event, 0))
            continue
        ns = event.end - event.begin
        pieces.append(Piece(found.kind, found.name, ns, layer=found.layer, operator=found.id))
        claimed_until = event.end
    close(float("inf"))
    return pieces


def split(pieces: Iterable[Piece], share: Callable[[Layer], float]) -> list[Piece]:
    """Backwards to input and weights as one of each, `share(layer)` being the input's part."""
    parts: list[Piece] = []
    for piece in pieces:
        if piece.kind == BOTH and piece.layer is not None:
            of_input = share(piece.layer)
            parts.append(replace(piece, kind=INPUT, ns=of_input * piece.ns))
            parts.append(replace(piece, kind=WEIGHTS, ns=(1 - of_input) * piece.ns))
        else:
            parts.append(piece)
    return parts


Learned = Mapping[str, Mapping[str, float]]
"""ns of each kind in which a kernel of a name worked."""


def learn(pieces: Iterable[Piece]) -> Learned:
    """What kernels are for, from a profile in which they have operators."""
    learned: dict[str, Counter[str]] = {}
    for piece in pieces:
        learned.setdefault(piece.name, Counter())[piece.kind] += int(piece.ns)
    return learned


def device_pieces(trace: Trace, known: Products, learned: Learned | None = None) -> list[Piece]:
    """All of the trace's time by what the device did, and what it did not (idle).

    A time in which two kernels ran counts for the first of them, so that the sum is the time. A
    backward to input and weights computes them one after the other; where no kernel of it says to
    be of the weights, it is one piece.
    """
    claims, work = claims_by_operator(trace, known), trace.on_device()
    told = {e.operator for e in work if pass_named(e.name) == WEIGHTS}
    told = {claims[operator].id for operator in told if operator in claims}
    reached: dict[int, str] = {}  # the gradient that such a backward is at
    pieces: list[Piece] = []
    covered, idle, gaps = trace.begin, 0, 0
    for event in work:
        if event.begin > covered:
            idle, gaps = idle + event.begin - covered, gaps + 1
        own = max(0, event.end - max(event.begin, covered))
        covered = max(covered, event.end)
        owner = claims.get(event.operator)
        if owner is not None and owner.kind == BOTH and owner.id in told:
            reached[owner.id] = pass_named(event.name) or reached.get(owner.id, INPUT)
            owner = replace(owner, kind=reached[owner.id])
        pieces += kernel_pieces(event, own, owner, learned or {})
    if trace.end > covered:
        idle, gaps = idle + trace.end - covered, gaps + 1
    pieces.append(Piece(IDLE, "nothing runs", idle, gaps))
    return pieces


def kernel_pieces(event: Event, ns: int, owner: Claim | None, learned: Learned) -> list[Piece]:
    """The kind of what ran on the device, or its kinds: a graph does not tell them apart."""
    name = shortened(event.name)
    kind = kind_by_name(event.name)
    if kind is not None:
        return [Piece(kind, our_kernel(name) or name, ns)]
    if owner is not None:
        return [Piece(owner.kind, name, ns, layer=owner.layer, operator=owner.id)]
    if kinds := learned.get(name):
        total = sum(kinds.values()) or 1
        return [Piece(k, name, ns * part / total, part / total) for k, part in kinds.items()]
    return [Piece(guess(event.name), name, ns)]


@functools.cache
def kind_by_name(name: str) -> str | None:
    """The kind of a kernel whose name says it, whoever launched it."""
    if re.match(r"Mem(cpy|set)", name):
        return COPIES
    if our_kernel(name):
        return OURS
    if name.startswith("triton_"):
        is_convolution = name.startswith("triton_tem") and "convolution" in name
        return None if is_convolution else POINTWISE
    return None


def pass_named(name: str) -> str | None:
    """The gradient of a convolution that a kernel of cuDNN or CUTLASS says to be."""
    if re.search(r"wgrad|bwd_?filter|backward_?filter|bwd_?weight", name, re.IGNORECASE):
        return WEIGHTS
    if re.search(r"dgrad|bwd_?data|backward_?data", name, re.IGNORECASE):
        return INPUT
    return None


def guess(name: str) -> str:
    """The kind of a kernel of which nothing but the name is known."""
    if found := pass_named(name):
        return found
    if re.search(r"fprop|convolve|implicit_gemm|winograd|triton_tem\w*convolution", name):
        return FORWARD
    if "multi_tensor_apply" in name:
        return COPIES if "Copy" in name else OPTIMISER
    if re.search(r"fused_?sgd", name, re.IGNORECASE):
        return OPTIMISER
    return COPIES if re.search(r"copy_(kernel|device)", name) else OTHER


def claims_by_operator(trace: Trace, known: Products) -> dict[int, Claim]:
    """By each operator's id, the outermost operator around it that accounts for it; its own, as one
    of the others, where there is none."""
    claims: dict[int, Claim] = {}
    around: list[tuple[int, int, Claim | None]] = []  # thread, end, claim
    for event in trace.on_host():
        while around and (around[-1][0] != event.thread or around[-1][1] <= event.begin):
            around.pop()
        outer = around[-1][2] if around else None
        found = outer or claim(event, known)
        around.append((event.thread, event.end, found))
        if found:
            claims[event.id] = found
        elif OPERATOR.match(event.name):
            claims[event.id] = Claim(OTHER, event.name, event.id)
    return claims
