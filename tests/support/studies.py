"""What do studies look like whose servers are simulated?

Two systems answer the queue of tests/support/fifo.py with different service times and gaps between tokens; everything
else is done by the functions of `launch.evaluation`, as for a real server. Nothing sleeps, every seed is fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from launch.evaluation.arrivals import Poisson
from launch.evaluation.compare import Measure, Scale, Side, compare, pairs_of, schedule
from launch.evaluation.compatible import vllm_keys
from launch.evaluation.goodput import Probe, Search, Try, next_step
from launch.evaluation.lengths import Fixed, LogNormal
from launch.evaluation.load import dispatch, saturation
from launch.evaluation.measures import measure
from launch.evaluation.regions import Cell, regions
from launch.evaluation.results import Outcome, RequestResult, arriving, steady
from launch.evaluation.slo import Slo, attain, scale_curve
from launch.evaluation.study import Duel, Goodput, RegionMap, Run, SloScale, Study, System
from launch.evaluation.workload import Request, synthetic
from runtime.stages import DecodeStages, Ledger, PrefillStages
from tests.support.fifo import serve

SLO = Slo(ttft_s=0.4, tpot_s=0.045, stall_s=0.2)
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Simulated:
    """A server: seconds per prompt token, seconds between output tokens, how much these vary."""

    system: System
    prompt_token_s: float
    gap_s: float
    sigma: float
    stall_share: float = 0.0  # of gaps in which somebody else's prompt is computed

    def answer(self, requests: Sequence[Request], seed: int, room: float = 60.0) -> list[RequestResult]:
        draws = np.random.Generator(np.random.Philox(key=[seed, 1]))
        served = serve(requests, lambda one: self.prompt_token_s * (one.prompt_tokens or 0), room=room)
        return [self._streamed(one, draws) if one.token_s else one for one in served]

    def _streamed(self, result: RequestResult, draws: np.random.Generator) -> RequestResult:
        count = len(result.token_s) - 1
        gaps = self.gap_s * draws.lognormal(sigma=self.sigma, size=count)
        gaps += (draws.random(count) < self.stall_share) * draws.uniform(0.05, 0.25, size=count)
        first = result.token_s[0]
        times = (first, *(float(at) for at in first + np.cumsum(gaps)))
        compute_s = self.prompt_token_s * (result.prompt_tokens or 0)
        transfer_s = 0.004 * (self.stall_share == 0.0)
        return replace(
            result,
            token_s=times,
            end_s=times[-1],
            ledger=Ledger(
                queue_s=0.001,
                first_token_s=first - result.sent_s - 0.001,
                handoff_gap_s=float(gaps[0]) if count else 0.0,
                total_s=times[-1] - result.sent_s - 0.001,
                prefill=PrefillStages(
                    queue_s=max(first - result.sent_s - compute_s - 0.003, 0.0),
                    compute_s=compute_s,
                    chunks=1,
                    chunk_s=(compute_s,),
                    transfer_s=2 * transfer_s,
                    transfer_tail_s=transfer_s,
                    transfer_bytes=1 << 20,
                    pieces=1,
                ),
                decode=DecodeStages(
                    intake_s=max(first - result.sent_s - 0.003, compute_s) + transfer_s,
                    verify_s=0.1 * transfer_s,
                    join_s=0.002,
                    decode_s=max(times[-1] - first - 1.1 * transfer_s - 0.002, 0.0),
                    steps=count,
                ),
                prefill_worker="prefill-0",
                decode_worker="decode-0",
            ),
        )


SPLIT = Simulated(System(name="1P1D", description="mock, 1 prefill and 1 decode worker", workers=2), 0.0009, 0.03, 0.25)
AGGREGATED = Simulated(
    System(name="aggregated 2", description="mock, 2 aggregated workers", workers=2), 0.00065, 0.03, 0.25, 0.012
)


class Builder:
    """Collects the runs of a study and the requests of each."""

    def __init__(self, slo: Slo | None = SLO, requests: int = 200) -> None:
        self.slo = slo
        self.requests = requests
        self.runs: list[Run] = []
        self.results: dict[str, tuple[RequestResult, ...]] = {}

    def run(self, of: Simulated, rate_per_s: float, seed: int, purpose: str = "sweep") -> Run:
        prompts = LogNormal(median_tokens=120.0, sigma=0.6, low=8, high=800)
        workload = synthetic(prompts, Fixed(12), Poisson(rate_per_s), self.requests, seed)
        return self.add(of.system.name, purpose, rate_per_s, of.answer(workload.requests, seed))

    def add(self, system: str, purpose: str, rate_per_s: float, results: Sequence[RequestResult]) -> Run:
        span = max(one.arrival_s for one in results) - min(one.arrival_s for one in results)
        window = steady(results, warm_up_s=0.05 * span, cool_down_s=0.0)
        measures, seen = measure(results, window), arriving(results, window)
        run = Run(
            run_id=f"{purpose}-{len(self.runs):03d}",
            system=system,
            purpose=purpose,
            arrivals=Poisson(rate_per_s),
            rate_per_s=rate_per_s,
            requests=len(results),
            seconds=max(one.end_s for one in results),
            prompt_tokens=float(np.mean([one.prompt_tokens or 0 for one in results])),
            output_tokens=12.0,
            measures=measures,
            attainments=attain(seen, self.slo) if self.slo is not None else None,
            dispatch=dispatch(results),
            saturation=saturation(seen),
            vllm=vllm_keys(measures, results, self.slo),
        )
        self.runs.append(run)
        self.results[run.run_id] = tuple(results)
        return run

    def goodput(self, of: Simulated, seed: int) -> Goodput:
        probes: list[Probe] = []
        run_ids: list[str] = []
        search = Search(first_per_s=2.0, tolerance=0.1, probes=14, probes_per_rate=2)
        while isinstance(step := next_step(search, probes), Try):
            run = self.run(of, step.rate_per_s, seed + len(probes), "goodput")
            assert run.attainments is not None
            assert run.saturation is not None
            run_ids.append(run.run_id)
            found = run.saturation.found
            probes.append(Probe(rate_per_s=step.rate_per_s, attainment=run.attainments.every, saturated=found))
        return Goodput(system=of.system.name, search=search, found=step, run_ids=tuple(run_ids))

    def slo_scale(self, run: Run) -> SloScale:
        assert self.slo is not None
        seen = arriving(self.results[run.run_id], run.measures.window)
        return SloScale(run_id=run.run_id, system=run.system, points=scale_curve(seen, self.slo, FACTORS))

    def duel(self, a: Simulated, b: Simulated, rate_per_s: float, pairs: int = 5) -> Duel:
        sides = schedule(pairs)
        runs = [
            self.run(a if side is Side.A else b, rate_per_s, 900 + at // 2, "compare") for at, side in enumerate(sides)
        ]
        values = {
            Measure(name="median TTFT"): [run.measures.ttft.percentiles["p50"].value for run in runs],
            Measure(name="p99 TTFT"): [run.measures.ttft.percentiles["p99"].value for run in runs],
            Measure(name="mean TPOT"): [run.measures.tpot.percentiles["p50"].value for run in runs],
            Measure(name="output throughput", higher_is_better=True): [
                run.measures.output_tokens_per_s or 1.0 for run in runs
            ],
            Measure(name="attainment", scale=Scale.DIFFERENCE, higher_is_better=True): [
                run.attainments.every.met / run.attainments.every.total if run.attainments is not None else 0.0
                for run in runs
            ],
        }
        compared = compare({what: pairs_of(sides, of) for what, of in values.items()})
        return Duel(
            a=a.system.name,
            b=b.system.name,
            run_ids=tuple(run.run_id for run in runs),
            comparisons=compared,
            verdict=f"A is {a.system.name}, B is {b.system.name}. {compared['attainment'].statement}",
            rate_per_s=rate_per_s,
        )

    def study(self, **more: object) -> Study:
        known = {run.system for run in self.runs}
        fields: dict[str, object] = {
            "title": "1P1D against two aggregated workers",
            "command": "kvrelay eval compare --slo ttft=400ms,tpot=45ms,stall=200ms",
            "created": "2026-11-22T20:00:00Z",
            "version": "0.1.0",
            "commit": "0123abc",
            "environment": {"machine": "simulated", "cores": "2", "load before": "0.03"},
            "workload": ("prompts: log-normal, median 120 tokens; 12 output tokens", "seed 0"),
            "slo": self.slo,
            "systems": tuple(of.system for of in (SPLIT, AGGREGATED) if of.system.name in known),
            "runs": tuple(self.runs),
        }
        return Study(**(fields | more))  # type: ignore[arg-type]  # of the fields above


def region_map(a: Simulated, b: Simulated) -> RegionMap:
    """Attainments as a function of the shape, with some luck: what counts here is the map, not the server."""
    draws = np.random.Generator(np.random.Philox(key=[7, 7]))
    cells = {}
    for slo in (Slo(ttft_s=0.2, tpot_s=0.02), Slo(ttft_s=0.4, tpot_s=0.04)):
        for prompt in (64, 256, 1024):
            for output in (16, 64, 256):
                shift = 0.12 * (np.log2(prompt / 256) - np.log2(output / 64)) * (0.04 / (slo.tpot_s or 1.0)) / 2
                pairs = []
                for _ in range(5):
                    base = 0.7 + 0.02 * float(draws.standard_normal())
                    pairs.append((base, min(max(base + shift + 0.02 * float(draws.standard_normal()), 0.0), 1.0)))
                cells[Cell(prompt_tokens=prompt, output_tokens=output, slo=slo)] = pairs
    how = "Each shape runs at 80 % of the goodput of A."
    return RegionMap(a=a.system.name, b=b.system.name, regions=regions(cells), how=how)


def full_study(requests: int = 200) -> tuple[Study, dict[str, tuple[RequestResult, ...]]]:
    """Everything that a report can show."""
    builder = Builder(requests=requests)
    sweeps = {
        of.system.name: [builder.run(of, rate, seed) for seed, rate in enumerate((1.0, 2.0, 4.0, 6.0, 8.0, 10.0))]
        for of in (SPLIT, AGGREGATED)
    }
    goodputs = tuple(builder.goodput(of, 100) for of in (SPLIT, AGGREGATED))
    scales = tuple(builder.slo_scale(run) for runs in sweeps.values() for run in runs)
    duels = (builder.duel(SPLIT, AGGREGATED, 4.0),)
    return builder.study(
        goodputs=goodputs, slo_scales=scales, duels=duels, region_map=region_map(SPLIT, AGGREGATED)
    ), builder.results


def failed(results: Sequence[RequestResult], error: str) -> list[RequestResult]:
    return [
        replace(one, token_s=(), end_s=one.sent_s + 0.1, outcome=Outcome.FAILED, error=error, ledger=None)
        for one in results
    ]
