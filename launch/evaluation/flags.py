"""Which flags of `kvrelay eval` describe the load, what is asked of the answers, and what is done with both?

Each group is a frozen dataclass that turns itself into the values of the pure modules.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import Group, Parameter

from launch.evaluation.arrivals import Arrivals, ClosedLoop, Constant, Gamma, Poisson, TraceClock, TraceRate
from launch.evaluation.campaigns.session import Size
from launch.evaluation.campaigns.shapes import Shape
from launch.evaluation.campaigns.sweep import parse_rates
from launch.evaluation.goodput import Search
from launch.evaluation.scaling import Scale, fit
from launch.evaluation.slo import Slo
from launch.evaluation.sources import Prompts, Source, Synthetic, Trace, parse_lengths, parse_scale, requests_within
from launch.evaluation.traces import TraceRecord, lines_of, read_azure, read_mooncake, read_prompts

WORKLOAD = Group("Workload: which requests", sort_key=1)
LOAD = Group("Load: when they are sent", sort_key=2)
ASKED = Group("SLO: what each request has to keep to", sort_key=3)
CAMPAIGN = Group("Campaigns: many runs; without one of these there is one", sort_key=4)
MEASURING = Group("Measuring", sort_key=5)
OUTPUT = Group("Output", sort_key=6)
CELL = Group("Cells that are started for this", sort_key=7)

_DEFAULT_REQUESTS = 100
_Record = TypeVar("_Record")
_Number = TypeVar("_Number", int, float)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WorkloadFlags:
    prompt_tokens: Annotated[
        str,
        Parameter(
            group=WORKLOAD,
            help="Length of synthetic prompts: 128, 64-512 (uniform), or lognormal:MEDIAN:SIGMA:LOW-HIGH.",
        ),
    ] = "128"
    output_tokens: Annotated[str, Parameter(group=WORKLOAD, help="Length of answers, likewise.")] = "32"
    azure: Annotated[
        Path | None, Parameter(group=WORKLOAD, help="Lengths from a CSV file of the Azure LLM inference traces 2023.")
    ] = None
    mooncake: Annotated[
        Path | None,
        Parameter(group=WORKLOAD, help="Lengths and shared prefixes from a JSONL file of Mooncake's traces."),
    ] = None
    prompts: Annotated[
        Path | None, Parameter(group=WORKLOAD, help='JSONL with {"prompt": ..., "output_tokens": ...} a line.')
    ] = None
    scale: Annotated[
        str | None, Parameter(group=WORKLOAD, help="Shrink the lengths of a trace, such as 1/8; the report says so.")
    ] = None
    fit: Annotated[
        float | None,
        Parameter(group=WORKLOAD, help="Shrink a trace until this share of it fits the model's context: 1 is all."),
    ] = None
    trace_start: Annotated[int, Parameter(group=WORKLOAD, help="Leave out so many requests of the trace.")] = 0
    trace_requests: Annotated[int | None, Parameter(group=WORKLOAD, help="Use so many of the others.")] = None
    seed: Annotated[int, Parameter(group=WORKLOAD, help="The same seed: the same requests at the same times.")] = 0

    @property
    def is_trace(self) -> bool:
        return self.azure is not None or self.mooncake is not None

    @property
    def reads_a_file(self) -> bool:
        return self.is_trace or self.prompts is not None

    def check(self) -> None:
        """What is wrong whatever the files hold and the server says.

        Raises:
            ValueError: and why.
        """
        if sum(file is not None for file in (self.azure, self.mooncake, self.prompts)) > 1:
            raise ValueError("--azure, --mooncake and --prompts: one workload at a time")
        if not self.is_trace and (self.scale is not None or self.fit is not None):
            raise ValueError("--scale and --fit shrink the lengths of a trace: give --azure or --mooncake")
        if self.scale is not None and self.fit is not None:
            raise ValueError("--scale and --fit: one of them")
        if self.fit is not None and not 0.0 < self.fit <= 1.0:
            raise ValueError(f"--fit is {self.fit:g}; it is a share of the trace, such as 0.95")
        not_below_0("--trace-start", self.trace_start)
        if self.trace_requests is not None:
            _above_0("--trace-requests", self.trace_requests)

    def source(self, context_tokens: int | None) -> Source:
        """Blocks: reads files.

        Raises:
            ValueError: flags contradict each other, or a file is not what it should be.
            OSError: a file cannot be read.
        """
        self.check()
        if self.prompts is not None:
            records = self._slice(tuple(read_prompts(lines_of(self.prompts))))
            return Prompts(
                name=self.prompts.name, records=records, outputs=parse_lengths(self.output_tokens), seed=self.seed
            )
        if self.azure is not None:
            return self._trace(self.azure, tuple(read_azure(lines_of(self.azure))), context_tokens)
        if self.mooncake is not None:
            return self._trace(self.mooncake, tuple(read_mooncake(lines_of(self.mooncake))), context_tokens)
        synthetic = Synthetic(
            prompts=parse_lengths(self.prompt_tokens), outputs=parse_lengths(self.output_tokens), seed=self.seed
        )
        if context_tokens is not None and synthetic.longest > context_tokens:
            raise ValueError(
                f"prompt and answer may have {synthetic.longest} tokens together, and the context {context_tokens}"
            )
        return synthetic

    def _trace(self, file: Path, records: tuple[TraceRecord, ...], context_tokens: int | None) -> Trace:
        chosen = self._slice(records)
        if self.fit is not None:
            if context_tokens is None:
                raise ValueError("--fit: the server does not say how long its context is; use --scale")
            scale = fit(chosen, context_tokens, self.fit)
        else:
            block = parse_scale(self.scale) if self.scale is not None else None
            scale = Scale(context_tokens=context_tokens) if block is None else Scale(block_tokens=block)
            if block is not None and context_tokens is not None:
                scale = Scale(block_tokens=block, context_tokens=context_tokens)
        part = f", requests {self.trace_start} to {self.trace_start + len(chosen) - 1} of {len(records)}"
        return Trace(name=f"{file.name}{part}", records=chosen, scale=scale, seed=self.seed)

    def _slice(self, records: tuple[_Record, ...]) -> tuple[_Record, ...]:
        end = None if self.trace_requests is None else self.trace_start + self.trace_requests
        chosen = records[self.trace_start : end]
        if not chosen:
            raise ValueError(f"the file has {len(records)} requests, and none is left")
        return chosen


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LoadFlags:
    rate: Annotated[
        float | None, Parameter(group=LOAD, help="Requests per second, Poisson arrivals; 1 if nothing else is said.")
    ] = None
    burstiness: Annotated[
        float | None,
        Parameter(group=LOAD, help="Shape of a gamma distribution of gaps: 1 is Poisson, less is burstier."),
    ] = None
    constant: Annotated[bool, Parameter(group=LOAD, negative="", help="Equal gaps.")] = False
    trace_clock: Annotated[
        float | None, Parameter(group=LOAD, help="Times as the trace has them, so many times as fast; never reordered.")
    ] = None
    concurrency: Annotated[
        int | None,
        Parameter(
            group=LOAD, help="Closed loop: so many under way at any time. It hides queues: see docs/evaluation.md."
        ),
    ] = None
    requests: Annotated[int | None, Parameter(group=LOAD, help="How many; 100 if --duration says nothing else.")] = None
    duration: Annotated[
        float | None, Parameter(group=LOAD, help="Seconds of arrivals; with --requests, so many at least.")
    ] = None

    def check(self, *, trace: bool) -> None:
        """
        Args:
            trace: whether the requests have times.

        Raises:
            ValueError: flags contradict each other, or a number is out of range.
        """
        ways = {"--constant": self.constant, "--burstiness": self.burstiness is not None}
        clocks = {"--trace-clock": self.trace_clock is not None, "--concurrency": self.concurrency is not None}
        named = [flag for flag, given in (ways | clocks).items() if given]
        if len(named) > 1 or (self.rate is not None and any(clocks.values())):
            raise ValueError(
                f"{', '.join([*named, *(['--rate'] if self.rate is not None else [])])}: one load at a time"
            )
        numbers: dict[str, float | None] = {
            "--rate": self.rate,
            "--burstiness": self.burstiness,
            "--trace-clock": self.trace_clock,
            "--concurrency": self.concurrency,
            "--requests": self.requests,
            "--duration": self.duration,
        }
        for flag, number in numbers.items():
            if number is not None:
                _above_0(flag, number)
        if self.trace_clock is not None and not trace:
            raise ValueError("--trace-clock needs a trace: --azure or --mooncake")

    def arrivals(self, source: Source) -> Arrivals:
        """
        Raises:
            ValueError: flags contradict each other, or a number is out of range.
        """
        self.check(trace=isinstance(source, Trace))
        if self.concurrency is not None:
            return ClosedLoop(self.concurrency)
        if self.trace_clock is not None:
            return TraceClock(self.trace_clock)
        return self.random(1.0 if self.rate is None else self.rate)

    @property
    def names_a_load(self) -> bool:
        return self.rate is not None or self.concurrency is not None

    def at_rate(self, source: Source) -> Callable[[float], Arrivals]:
        """For campaigns, which choose rates themselves: on the trace's clock if that was asked for."""
        return TraceRate if self.trace_clock is not None and isinstance(source, Trace) else self.random

    def count(self, source: Source, arrivals: Arrivals, seed: int, runs: int = 1) -> int:
        """Of each of so many runs, which have different requests.

        Raises:
            ValueError: none, or more than the source has.
        """
        records = source.records if isinstance(source, Trace | Prompts) else None
        recorded = [record.at_s for record in source.records] if isinstance(source, Trace) else []
        count = self.requests
        if self.duration is not None:
            within = requests_within(_above_0("--duration", self.duration), arrivals, seed, recorded)
            count = within if count is None else max(count, within)
        if count is None:
            count = _DEFAULT_REQUESTS if records is None else max(min(len(records) // runs, _DEFAULT_REQUESTS), 1)
        if records is not None and count * runs > len(records):
            raise ValueError(f"{runs} x {count} different requests are asked for, and the file has {len(records)}")
        return _above_0("--requests", count)

    def size(self, seconds: float, at_least: int, left_out_s: float = 0.0) -> Size:
        """Of each run of a campaign."""
        if self.requests is not None and self.duration is None:
            return Size(seconds=1e-9, at_least=self.requests, left_out_s=left_out_s)
        return Size(seconds=self.duration or seconds, at_least=self.requests or at_least, left_out_s=left_out_s)

    def random(self, rate_per_s: float) -> Arrivals:
        if self.constant:
            return Constant(rate_per_s)
        if self.burstiness is not None:
            return Gamma(rate_per_s, self.burstiness)
        return Poisson(rate_per_s)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SloFlags:
    slo_ttft_ms: Annotated[float | None, Parameter(group=ASKED, help="First token - send.")] = None
    slo_tpot_ms: Annotated[float | None, Parameter(group=ASKED, help="Mean gap between the tokens of a request.")] = (
        None
    )
    slo_stall_ms: Annotated[float | None, Parameter(group=ASKED, help="The largest of its gaps.")] = None
    slo_e2e_ms: Annotated[float | None, Parameter(group=ASKED, help="Last token - send.")] = None

    def slo(self) -> Slo | None:
        """None: nothing is asked.

        Raises:
            ValueError: a bound is not above 0.
        """
        given = (self.slo_ttft_ms, self.slo_tpot_ms, self.slo_stall_ms, self.slo_e2e_ms)
        ttft, tpot, stall, e2e = (None if ms is None else _above_0("an SLO", ms) / 1e3 for ms in given)
        return None if given == (None,) * 4 else Slo(ttft_s=ttft, tpot_s=tpot, stall_s=stall, e2e_s=e2e)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CampaignFlags:
    sweep: Annotated[
        str | None, Parameter(group=CAMPAIGN, help="Rates, one after the other: 1,2,4 or LOW:HIGH:STEPS.")
    ] = None
    goodput: Annotated[
        bool, Parameter(group=CAMPAIGN, negative="", help="Search the highest rate at which 90 % keep to the SLO.")
    ] = False
    goodput_from: Annotated[float, Parameter(group=CAMPAIGN, help="The rate that --goodput tries first.")] = 1.0
    probes: Annotated[
        int, Parameter(group=CAMPAIGN, help="Runs that --goodput may add for each system; few leave it unsure.")
    ] = 24
    slo_scale: Annotated[
        str | None, Parameter(group=CAMPAIGN, help="Judge each run by so many times the SLO, too: 0.5,1,2.")
    ] = None
    compare: Annotated[
        str | None,
        Parameter(
            group=CAMPAIGN,
            help="A second system for each campaign. At a --rate or --concurrency, or without other campaigns, --pairs "
            "runs of both alternate on the same requests, and the verdict says who is better.",
        ),
    ] = None
    pairs: Annotated[int | None, Parameter(group=CAMPAIGN, help="Of runs to compare; 10, for each shape 6.")] = None
    regions: Annotated[
        str | None,
        Parameter(group=CAMPAIGN, help="With --compare: who wins for each PROMPTxANSWER length, as 64x64,512x16."),
    ] = None

    def check(self) -> None:
        """
        Raises:
            ValueError: a flag does not say what it should.
        """
        self.rates()
        self.factors()
        self.shapes()
        self.search()
        if self.pairs is not None and self.pairs < 2:
            raise ValueError(f"--pairs is {self.pairs}; fewer than 2 pairs have no uncertainty, so no verdict")

    @property
    def duel_pairs(self) -> int:
        return self.pairs or 10

    @property
    def region_pairs(self) -> int:
        return self.pairs or 6

    def search(self) -> Search:
        first = _above_0("--goodput-from", self.goodput_from)
        highest, lowest = max(10_000.0, first), min(0.01, first)
        return Search(
            first_per_s=first, lowest_per_s=lowest, highest_per_s=highest, probes=_above_0("--probes", self.probes)
        )

    @property
    def chooses_rates(self) -> bool:
        return self.sweep is not None or self.goodput or self.regions is not None

    def rates(self) -> tuple[float, ...]:
        return parse_rates(self.sweep) if self.sweep is not None else ()

    def factors(self) -> tuple[float, ...]:
        try:
            factors = tuple(float(part) for part in self.slo_scale.split(",")) if self.slo_scale is not None else ()
        except ValueError as error:
            raise ValueError(f"--slo-scale {self.slo_scale}: say factors such as 0.5,1,2") from error
        return tuple(_above_0("--slo-scale", factor) for factor in factors)

    def shapes(self) -> tuple[Shape, ...]:
        if self.regions is None:
            return ()
        try:
            pairs = [tuple(map(int, part.split("x"))) for part in self.regions.split(",")]
            shapes = tuple(Shape(prompt_tokens=prompt, output_tokens=output) for prompt, output in pairs)
        except ValueError as error:
            raise ValueError(f"--regions {self.regions}: say lengths such as 64x64,512x16") from error
        if any(min(shape.prompt_tokens, shape.output_tokens) < 1 for shape in shapes):
            raise ValueError("--regions: lengths are above 0")
        return shapes


def not_below_0(flag: str, number: float) -> None:
    """
    Raises:
        ValueError: it is, or it is no number.
    """
    if not (number >= 0 and math.isfinite(number)):
        raise ValueError(f"{flag} is {number:g}; it has to be 0 or more")


def _above_0(flag: str, number: _Number) -> _Number:
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{flag} is {number:g}; it has to be above 0")
    return number
