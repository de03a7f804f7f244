"""Do workloads, measures and verdicts of an evaluation keep their laws for every input?"""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.evaluation.arrivals import Constant, Gamma, Poisson, TraceClock, arrive
from launch.evaluation.content import Content, prompt_ids
from launch.evaluation.goodput import Probe, Search, Try, next_step
from launch.evaluation.intervals import clustered_percentile, mean, percentile, wilson
from launch.evaluation.lengths import Fixed, Lengths, LogNormal, Uniform
from launch.evaluation.measures import latencies, measure
from launch.evaluation.results import Outcome, RequestResult, from_lines, to_lines
from launch.evaluation.scaling import Scale
from launch.evaluation.slo import Attainment, Slo, attain, scale_curve
from launch.evaluation.traces import TraceRecord
from launch.evaluation.workload import from_trace, synthetic

SEEDS = st.integers(0, (1 << 64) - 1)
LENGTHS: st.SearchStrategy[Lengths] = st.one_of(
    st.builds(Fixed, st.integers(1, 50)),
    st.builds(lambda low, more: Uniform(low, low + more), st.integers(1, 50), st.integers(0, 50)),
    st.builds(
        lambda median, sigma, low, more: LogNormal(median, sigma, low, low + more),
        st.floats(1.0, 100.0),
        st.floats(0.0, 2.0),
        st.integers(1, 50),
        st.integers(0, 50),
    ),
)
RATES = st.floats(0.01, 1000.0)
ARRIVALS = st.one_of(
    st.builds(Poisson, RATES), st.builds(Constant, RATES), st.builds(Gamma, RATES, st.floats(0.05, 100.0))
)
FLOATS = st.floats(0.0, 1e3, allow_subnormal=False)


@st.composite
def traces(draw: st.DrawFn) -> list[TraceRecord]:
    times = sorted(draw(st.lists(FLOATS, min_size=1, max_size=8)))
    records = []
    for at_s in times:
        prompt = draw(st.integers(1, 3000))
        blocks = tuple(draw(st.integers(0, 5)) for _ in range(-(-prompt // 512)))
        records.append(
            TraceRecord(at_s=at_s, prompt_tokens=prompt, output_tokens=draw(st.integers(1, 900)), blocks=blocks)
        )
    return records


@st.composite
def results(draw: st.DrawFn) -> list[RequestResult]:
    made = []
    for index in range(draw(st.integers(1, 8))):
        sent_s = draw(FLOATS)
        tokens = sorted(draw(st.lists(st.floats(sent_s, sent_s + 10.0), max_size=6)))
        made.append(
            RequestResult(
                index=index,
                arrival_s=draw(FLOATS),
                sent_s=sent_s,
                token_s=tuple(tokens),
                end_s=sent_s + 10.0,
                outcome=draw(st.sampled_from(Outcome)),
            )
        )
    return made


@given(LENGTHS, LENGTHS, ARRIVALS, st.integers(1, 12), SEEDS)
@settings(max_examples=40)
def test_a_workload_is_reproducible_ordered_and_within_bounds(
    prompts: Lengths, outputs: Lengths, arrivals: Poisson | Gamma | Constant, count: int, seed: int
) -> None:
    workload = synthetic(prompts, outputs, arrivals, count, seed)
    assert workload == synthetic(prompts, outputs, arrivals, count, seed)
    assert workload.requests[: count // 2] == synthetic(prompts, outputs, arrivals, count // 2, seed).requests
    starts = [request.arrival_s for request in workload.requests]
    assert starts == sorted(starts)
    assert [request.index for request in workload.requests] == list(range(count))
    content = Content(seed=seed, low=3, high=40)
    for request in workload.requests:
        ids = prompt_ids(request, content)
        assert len(ids) == request.prompt_tokens
        assert all(3 <= token < 40 for token in ids)


@given(traces(), st.floats(0.01, 100.0), st.integers(1, 512), st.integers(2, 5000), SEEDS)
@settings(max_examples=40)
def test_a_trace_keeps_its_order_its_prefixes_and_its_context(
    records: list[TraceRecord], speed: float, block_tokens: int, context: int, seed: int
) -> None:
    scale = Scale(block_tokens=block_tokens, context_tokens=context)
    requests = from_trace(records, TraceClock(speed), seed, scale).requests
    starts = [request.arrival_s for request in requests]
    assert starts == sorted(starts)
    content = Content(seed=seed, low=0, high=1000)
    prompts = [prompt_ids(request, content) for request in requests]
    for request, ids in zip(requests, prompts, strict=True):
        assert len(ids) == request.prompt_tokens
        assert len(ids) + request.output_tokens <= context
    for one, other in pairwise(range(len(records))):
        shared = 0
        for left, right in zip(records[one].blocks, records[other].blocks, strict=False):
            if left != right:
                break
            shared += block_tokens
        shared = min(shared, len(prompts[one]), len(prompts[other]))
        assert prompts[one][:shared] == prompts[other][:shared]


@given(traces(), st.integers(1, 511))
@settings(max_examples=40)
def test_longer_stays_longer_and_a_larger_scale_makes_nothing_shorter(
    records: list[TraceRecord], block_tokens: int
) -> None:
    small, large = Scale(block_tokens=block_tokens), Scale(block_tokens=block_tokens + 1)
    for record in records:
        assert 1 <= small.apply(record).prompt_tokens <= large.apply(record).prompt_tokens <= record.prompt_tokens
    by_length = sorted(records, key=lambda record: record.prompt_tokens)
    scaled = [small.apply(record).prompt_tokens for record in by_length]
    assert scaled == sorted(scaled)


@given(st.lists(FLOATS, min_size=2, max_size=10), st.floats(0.01, 100.0))
def test_a_trace_clock_stretches_time_and_nothing_else(times: list[float], speed: float) -> None:
    recorded = sorted(times)
    starts = arrive(TraceClock(speed), len(recorded), seed=0, recorded_s=recorded)
    assert starts[0] == 0.0
    assert [start * speed for start in starts] == pytest.approx([at - recorded[0] for at in recorded], abs=1e-6)


@given(st.lists(FLOATS, min_size=1, max_size=60), st.sampled_from([50, 90, 99]))
def test_intervals_hold_their_values_and_ignore_order(values: list[float], percent: int) -> None:
    estimate = percentile(values, percent)
    assert estimate is not None
    assert estimate == percentile(values[::-1], percent)
    assert estimate.low is None or estimate.low <= estimate.value
    assert estimate.high is None or estimate.value <= estimate.high
    wide = percentile(values, percent, confidence=0.99)
    assert wide is not None
    assert wide.low is None or (estimate.low is not None and wide.low <= estimate.low)
    centre = mean(values)
    assert centre is not None
    assert centre.low is None or centre.low <= centre.value
    clustered = clustered_percentile([[value] for value in values], percent)
    assert clustered is not None
    assert clustered.value == estimate.value


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_grows_with_success_and_narrows_with_trials(met: int, total: int) -> None:
    met = min(met, total)
    one, more = wilson(met, total), wilson(10 * met, 10 * total)
    assert one is not None
    assert more is not None
    assert one.low is not None
    assert one.high is not None
    assert more.low is not None
    assert more.high is not None
    assert 0.0 <= one.low <= one.value + 1e-12
    assert one.value - 1e-12 <= one.high <= 1.0
    assert more.high - more.low < one.high - one.low
    if met < total:
        better = wilson(met + 1, total)
        assert better is not None
        assert better.low is not None
        assert better.low > one.low


@given(results())
def test_latencies_of_a_request_agree_with_each_other(made: list[RequestResult]) -> None:
    for result in made:
        seen = latencies(result)
        if seen.ttft_s is None or seen.e2e_s is None:
            assert not result.token_s
            continue
        assert seen.ttft_s + sum(seen.gaps_s) == pytest.approx(seen.e2e_s)
        if seen.tpot_s is not None and seen.longest_stall_s is not None and seen.handoff_gap_s is not None:
            assert seen.tpot_s == pytest.approx(float(np.mean(seen.gaps_s)))
            assert max(seen.tpot_s, seen.handoff_gap_s) <= seen.longest_stall_s + 1e-9
    assert list(from_lines(to_lines(made))) == made
    assert sum(measure(made).outcomes.values()) == len(made)


@given(results(), st.floats(0.001, 10.0), st.floats(0.001, 10.0))
def test_a_laxer_slo_is_met_by_whoever_met_the_stricter(
    made: list[RequestResult], ttft_s: float, tpot_s: float
) -> None:
    slo = Slo(ttft_s=ttft_s, tpot_s=tpot_s)
    curve = [attainments.every.met for _, attainments in scale_curve(made, slo, [0.5, 1.0, 2.0, 1e9])]
    assert curve == sorted(curve)
    attainments = attain(made, slo)
    assert attainments.every.met <= min(attainments.ttft_only.met, attainments.gaps_only.met)
    assert attainments.every.total == len(made)


@given(
    st.floats(0.001, 1000.0),
    st.floats(0.01, 100.0),
    st.floats(0.005, 0.5),
    st.integers(1, 4),
    st.lists(st.floats(0.0, 1.0), min_size=80, max_size=80),
)
@settings(max_examples=60)
def test_every_search_ends_in_order_whatever_the_server_does(
    capacity: float, first: float, tolerance: float, probes_per_rate: int, luck: list[float]
) -> None:
    """Shares are what the luck says: they need not fall with the rate at all."""
    search = Search(first_per_s=first, tolerance=tolerance, probes_per_rate=probes_per_rate, probes=80)
    probes: list[Probe] = []
    while isinstance(step := next_step(search, probes), Try):
        assert len(probes) < search.probes
        assert search.lowest_per_s <= step.rate_per_s <= search.highest_per_s
        share = 0.5 * luck[len(probes)] + 0.5 * (step.rate_per_s <= capacity)
        attainment = Attainment(met=round(share * 100), total=100, effective_total=100.0)
        probes.append(Probe(rate_per_s=step.rate_per_s, attainment=attainment))
    known = [rate for rate in (step.low_per_s, step.goodput_per_s, step.high_per_s) if rate is not None]
    assert known == sorted(known)
    assert [rate.rate_per_s for rate in step.rates] == sorted({probe.rate_per_s for probe in probes})
    assert sum(rate.probes for rate in step.rates) == len(probes)
