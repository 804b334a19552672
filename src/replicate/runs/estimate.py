"""What notebooks 05 to 08 cost on a model, from its configuration alone: memory, work, and how much they can measure.

With N parameters, L blocks of width d with an inner width f, prompts of n tokens and V tokens in use, in float64:

    weights      8 N bytes a rung, and 4 N more while rewards are read in float32
    tape         8 L (24 d + 5 f) bytes a token: what a forward pass keeps for the backward pass
    05           the tape of a group of completions and their logits; for exact influences 1024 cotangents at a time and
                 matrices [n d, n d]; with probes as many cotangents as positions x probes
    06, 08, 08b  tapes of 128 tangents at a time through one token, matrices [V, d] and [2 L d, d], Jacobians that are
                 formed (2^24 entries at most); 06 pairs of at most 8192 tokens, the policies at 24 n positions, and the
                 way from the prompt, whose Jacobian [d, n d] is formed up to 2^21 entries
    07           Jacobians of one sublayer at all pairs of positions, [n, n, d, d], eight times at its peak

A pass of one token takes 2 N multiplications and additions, a backward pass twice that. Constants are those of the
implementation, checked in the tests against a measured peak; work is counted, and becomes time at 10 GFLOP/s, which one
core of a laptop does in float64.
"""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from replicate.ladder.checkpoints import Checkpoint
from replicate.lm.logit_path import FORMED as WAYS
from replicate.lm.paths import FORMED

GIGA = 1e9
_SPEED = 1e10  # floating-point operations a second
_MINUTES = 6.0  # a plan is taken if it needs no longer
_PROCESS = 0.6e9  # Python with torch, transformers and the figures' libraries
_COIN = 8192  # tokens among which the worst fair coin is sought


@dataclass(frozen=True)
class Size:
    """What the estimates know of a model and its prompts; ``ends`` are the parameters of embeddings and head."""

    parameters: int
    ends: int
    layers: int
    hidden: int
    inner: int
    heads: int
    rows: int
    vocab: int
    length: int

    @property
    def block(self) -> float:
        """Parameters of one block."""
        return (self.parameters - self.ends) / self.layers


@dataclass(frozen=True)
class Plan:
    """How much a notebook measures: ``prompts`` of the 48, a ``group`` of completions or draws of noise, ``layers``
    blocks spread over the depth (None: all), ``probes`` cotangents in the place of all (None: all), and the first
    ``length`` tokens of a prompt where every pair of positions counts (None: all)."""

    prompts: int
    group: int = 1
    layers: int | None = None
    probes: int | None = None
    length: int | None = None

    def blocks(self, depth: int) -> list[int]:
        """The blocks that are looked at, 1 the first, the last always among them."""
        wanted = min(self.layers or depth, depth)
        return sorted({round(1 + i * (depth - 1) / max(1, wanted - 1)) for i in range(wanted)} | {depth})


PLANS: dict[str, tuple[Plan, ...]] = {
    "05": (
        Plan(prompts=48, group=32),
        Plan(prompts=16, group=8, layers=4, probes=4),
        Plan(prompts=4, group=4, layers=2, probes=2),
    ),
    "06": (Plan(prompts=8, group=32), Plan(prompts=2, group=8), Plan(prompts=1, group=1)),
    "07": (Plan(prompts=24), Plan(prompts=6, layers=2, length=5), Plan(prompts=3, layers=1, length=4)),
    "08": (Plan(prompts=4), Plan(prompts=2), Plan(prompts=1)),
    "08b": (Plan(prompts=4), Plan(prompts=2), Plan(prompts=1)),
}
"""What each notebook may measure, all of it first; of the others the first is taken that fits."""


def size_of(checkpoint: Checkpoint, *, vocab: int, length: int) -> Size:
    """The size of a checkpoint's model, read off its configuration; no weights are touched.

    Raises ``ValueError`` that names the folder for a configuration that cannot be read.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(checkpoint.where)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise ValueError(f"LADDER: {checkpoint.where} has no usable configuration ({error})") from error
    inner = next((n for n in (getattr(config, k, None) for k in ("intermediate_size", "n_inner")) if n), None)
    ends = {
        id(part.weight): part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        ends=sum(p.numel() for p in ends.values()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=inner or 4 * config.hidden_size,
        heads=config.num_attention_heads,
        rows=model.get_input_embeddings().weight.shape[0],
        vocab=vocab,
        length=length,
    )


def memory(notebook: str, size: Size, plan: Plan, *, rungs: int) -> float:
    """Peak of the process in bytes; see the module's text."""
    L, d, f, n, V = size.layers, size.hidden, size.inner, size.length, size.vocab
    tape, logits = 8 * L * (24 * d + 5 * f), 8 * size.rows
    if notebook == "05":
        group = plan.group * (n + 2) * (tape + 5 * logits)
        maps = plan.prompts * n * (tape + 3 * logits)
        cotangents = min(1024, n * d) if plan.probes is None else n * plan.probes
        matrices = 2 * 8 * (n * d) ** 2 if plan.probes is None else 0
        work = max(group, maps, n * (tape + logits) + cotangents * n * 8 * (12 * d + 10 * f) + matrices)
    elif notebook == "07":
        work = 8 * 8 * n**2 * d**2 + 8 * d * n * (6 * d + 4 * f)
    else:
        m, state = (2 * L + 1) * d, (2 * L * n + 1) * d
        formed = (m * state <= FORMED) * (4 * 8 * m * state + m * n * 8 * L * 4 * d)
        policies = 24 * n * (2 * logits + 8 * 8 * V) if notebook == "06" else 0
        coin = 3 * 8 * min(V, _COIN) ** 2 if notebook == "06" else 0
        work = max(policies, 3 * 128 * tape + 3 * 8 * m * d + 6 * 8 * V * d + max(formed, coin))
    return _PROCESS + (8 * rungs + 4) * size.parameters + work


def minutes(notebook: str, size: Size, plan: Plan, *, rungs: int) -> float:
    """How long the cells that look at the model take, in minutes; see the module's text."""
    N, L, d, n, k = size.parameters, size.layers, size.hidden, size.length, plan.layers or size.layers
    m, state = (2 * L + 1) * d, (2 * L * n + 1) * d
    if notebook == "05":
        passes = plan.group * (n + 2) * 2 * N
        pairs = n * d * n * 2 * size.block * (L**3 / 6 + L**2)
        probed = (k + 2) * n * (plan.probes or 0) * n * size.block * L
        # three routes, each layer by differences, a recursion; then states moved one by one, and maps of the prompts
        work = (60 + 24 * (k + 2) + 6 * rungs) * passes + (pairs if plan.probes is None else probed)
        work += (k + 2) * n**2 * 2 * N + rungs * plan.prompts * n * 22 * N
    elif notebook == "07":
        short, decomposition = min(plan.length or n, n), 15 * d**3
        ranks = k * (short**2 / 2 + size.heads * short) * decomposition
        each = 6 * d * n * d**2 + 12 * n**2 * d**2 * (1 + d / size.heads)
        work = rungs * (ranks + 2 * plan.prompts * k * each)
    else:
        formed = m * state <= FORMED
        norm = m * 4 * size.block * L if formed else 40 * 3 * 4 * size.block * L
        states = rungs * plan.prompts
        work = 9 * states * norm
        if notebook == "06":
            temperatures, places, shown = (5, 6, rungs) if plan.group >= 8 else (1, 2, 1)
            fed = (
                temperatures * (plan.group + 1) + plan.group
            )  # distinct embeddings, each with a way from the prompt
            whole = d * n * d <= WAYS
            way = (d if whole else 24) * 6 * size.block * L * n
            ways = shown * (fed + (0 if whole else 4 * temperatures * plan.group))
            work = (shown * fed + states * places) * d * 6 * size.block * L + ways * way
    return work / _SPEED / 60


def limit(gigabytes: float) -> float:
    """How many bytes may be used: ``gigabytes``, or with 0 three quarters of what machine or container has."""
    if gigabytes:
        return gigabytes * GIGA
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or one without a limit
        machine = min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return 0.75 * machine


def plan_for(notebook: str, size: Size, *, rungs: int, gigabytes: float) -> Plan:
    """The largest plan of ``notebook`` that stays below the memory, and below six minutes where one does.

    Raises ``ValueError`` with one line, the estimate and the remedy in it, where none fits into the memory.
    """
    most = limit(gigabytes)
    fits = [plan for plan in PLANS[notebook] if memory(notebook, size, plan, rungs=rungs) <= most]
    if not fits:
        need = memory(notebook, size, PLANS[notebook][-1], rungs=rungs) / GIGA
        fewer = "name one step in RUNGS, " if rungs > 1 else ""
        model = f"{rungs} rung(s) of {size.parameters / 1e6:.0f} M parameters"
        raise ValueError(
            f"LADDER: {model} need about {need:.1f} GB in notebook {notebook}, expected at most {most / GIGA:.1f} GB "
            f"(MAX_MEMORY_GB); {fewer}give a smaller model, or more memory"
        )
    return next((p for p in fits if minutes(notebook, size, p, rungs=rungs) <= _MINUTES), fits[-1])


def said(notebook: str, size: Size, plan: Plan, *, rungs: int) -> str:
    """One line on what is measured and what it is expected to cost."""
    parts = [f"{name} {number}" for name, number in asdict(plan).items() if number is not None]
    need, time = memory(notebook, size, plan, rungs=rungs), minutes(notebook, size, plan, rungs=rungs)
    return (
        f"{size.parameters / 1e6:.1f} M parameters in float64 with eager attention, {rungs} rung(s); measured: "
        f"{', '.join(parts)}; about {need / GIGA:.1f} GB and {time:.1f} minutes"
    )
