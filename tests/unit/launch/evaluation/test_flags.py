"""Do the flags of an evaluation become the load that they name, and are contradictions refused?"""

import json
from pathlib import Path

import pytest

from launch.evaluation.arrivals import ClosedLoop, Constant, Gamma, Poisson, TraceClock
from launch.evaluation.campaigns.shapes import Shape
from launch.evaluation.flags import CampaignFlags, LoadFlags, SloFlags, WorkloadFlags
from launch.evaluation.lengths import Fixed, LogNormal, Uniform
from launch.evaluation.sources import Synthetic, parse_lengths, parse_scale, requests_within
from launch.evaluation.vocabulary import longest_run

TRACES = Path(__file__).parent / "traces"
SOURCE = Synthetic(prompts=Fixed(8), outputs=Fixed(4), seed=0)


def mooncake(tmp_path: Path) -> Path:
    file = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 1000 * second, "input_length": 512 * (1 + second), "output_length": 64, "hash_ids": ids}
        for second, ids in enumerate([[0], [0, 1], [0, 1, 2], [5, 6, 7, 8]])
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("128", Fixed(128)),
        ("64-512", Uniform(64, 512)),
        ("lognormal:200:0.8:16-1024", LogNormal(median_tokens=200.0, sigma=0.8, low=16, high=1024)),
    ],
)
def test_lengths(text: str, lengths: object) -> None:
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    "text", ["", "x", "0", "-5", "9-2", "1-", "lognormal:1", "lognormal:0:1:1-2", "normal:1:2:3-4"]
)
def test_what_is_no_length_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(ValueError, match="uniform"):
        parse_lengths(text)


def test_scales() -> None:
    assert [parse_scale(text) for text in ("1/8", "0.125", "64/512", "1", "1/512")] == [64, 64, 64, 512, 1]
    for text in ("", "2", "0", "1/0", "x/2", "1/4096"):
        with pytest.raises(ValueError, match="--scale"):
            parse_scale(text)


@pytest.mark.parametrize(
    ("flags", "arrivals"),
    [
        (LoadFlags(), Poisson(1.0)),
        (LoadFlags(rate=2.5), Poisson(2.5)),
        (LoadFlags(rate=2.0, burstiness=0.5), Gamma(2.0, 0.5)),
        (LoadFlags(rate=2.0, constant=True), Constant(2.0)),
        (LoadFlags(concurrency=4), ClosedLoop(4)),
    ],
)
def test_arrivals(flags: LoadFlags, arrivals: object) -> None:
    assert flags.arrivals(SOURCE) == arrivals


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (LoadFlags(rate=0.0), "--rate"),
        (LoadFlags(rate=1.0, concurrency=2), "one load"),
        (LoadFlags(constant=True, burstiness=2.0), "one load"),
        (LoadFlags(trace_clock=1.0), "--azure"),
        (LoadFlags(concurrency=0), "--concurrency"),
        (LoadFlags(rate=1.0, burstiness=float("nan")), "--burstiness"),
    ],
)
def test_loads_that_are_none(flags: LoadFlags, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        flags.arrivals(SOURCE)


def test_a_duration_is_the_requests_that_arrive_in_it() -> None:
    assert LoadFlags(rate=10.0, duration=30.0, constant=True).count(SOURCE, Constant(10.0), 0) == 300
    count = requests_within(100.0, Poisson(50.0), seed=3)
    starts = [request.arrival_s for request in SOURCE.workload(Poisson(50.0), 6000, 0).requests]
    assert count == pytest.approx(5000, rel=0.1)
    assert len(starts) == 6000
    with pytest.raises(ValueError, match="--requests"):
        LoadFlags(duration=1.0).count(SOURCE, ClosedLoop(2), 0)
    with pytest.raises(ValueError, match="no request"):
        LoadFlags(duration=1e-6).count(SOURCE, Poisson(1.0), 0)
    both = LoadFlags(rate=10.0, duration=30.0, requests=400, constant=True)
    assert both.count(SOURCE, Constant(10.0), 0) == 400, "the requests are the fewest that are enough"


def test_a_trace_is_sliced_fitted_and_goes_on_from_any_request(tmp_path: Path) -> None:
    flags = WorkloadFlags(mooncake=mooncake(tmp_path), fit=1.0, trace_start=1)
    source = flags.source(1056)
    first = source.workload(TraceClock(2.0), 3, 0)
    assert [request.arrival_s for request in first.requests] == [0.0, 0.5, 1.0]
    assert all((request.prompt_tokens or 0) + request.output_tokens <= 1056 for request in first.requests)
    assert first.requests[0].blocks == (0, 1)
    assert any("/512" in words for words in source.words())
    later = source.workload(Poisson(1.0), 2, 1).requests
    assert [request.index for request in later] == [1, 2]
    assert [request.blocks for request in later] == [request.blocks for request in first.requests[1:]]
    with pytest.raises(ValueError, match="there are 3"):
        source.workload(Poisson(1.0), 3, 1)


def test_a_campaign_on_the_clock_of_a_trace_offers_the_rate_that_it_asks_for(tmp_path: Path) -> None:
    """The first half of the trace comes at one a second, the other at a hundred."""
    file = tmp_path / "trace.jsonl"
    at_ms = [1000 * number for number in range(20)] + [20_000 + 10 * number for number in range(20)]
    record = {"input_length": 512, "output_length": 64, "hash_ids": [0]}
    file.write_text("\n".join(json.dumps({"timestamp": at, **record}) for at in at_ms))
    source = WorkloadFlags(mooncake=file).source(None)
    at_rate = LoadFlags(trace_clock=1.0).at_rate(source)
    for first in (0, 20):
        starts = [request.arrival_s for request in source.workload(at_rate(4.0), 20, first).requests]
        assert 19 / (starts[-1] - starts[0]) == pytest.approx(4.0)
    assert LoadFlags().at_rate(source)(4.0) == Poisson(4.0)
    assert LoadFlags(trace_clock=1.0).at_rate(SOURCE)(4.0) == Poisson(4.0)


def test_workloads_that_contradict_themselves(tmp_path: Path) -> None:
    trace = mooncake(tmp_path)
    for flags, context, why in (
        (WorkloadFlags(mooncake=trace, azure=trace), None, "one workload"),
        (WorkloadFlags(scale="1/8"), None, "of a trace"),
        (WorkloadFlags(mooncake=trace, fit=1.0), None, "context"),
        (WorkloadFlags(mooncake=trace, fit=1.0, scale="1/2"), 100, "one of them"),
        (WorkloadFlags(mooncake=trace, trace_start=4), None, "none is left"),
        (WorkloadFlags(prompt_tokens="100", output_tokens="29"), 128, "129 tokens"),
    ):
        with pytest.raises(ValueError, match=why):
            flags.source(context)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "output_tokens": 7}\n{"prompt": "b"}\n')
    requests = WorkloadFlags(prompts=file, output_tokens="5").source(None).workload(Poisson(1.0), 2, 0).requests
    assert [(request.text, request.output_tokens) for request in requests] == [("a", 7), ("b", 5)]


def test_slo() -> None:
    assert SloFlags().slo() is None
    slo = SloFlags(slo_ttft_ms=500.0, slo_stall_ms=80.0).slo()
    assert slo is not None
    assert (slo.ttft_s, slo.tpot_s, slo.stall_s, slo.e2e_s) == (0.5, None, 0.08, None)
    with pytest.raises(ValueError, match="above 0"):
        SloFlags(slo_ttft_ms=0.0).slo()


def test_campaigns() -> None:
    flags = CampaignFlags(sweep="1,2", slo_scale="0.5,2", regions="64x8,512x16")
    assert flags.rates() == (1.0, 2.0)
    assert flags.factors() == (0.5, 2.0)
    assert flags.shapes() == (Shape(prompt_tokens=64, output_tokens=8), Shape(prompt_tokens=512, output_tokens=16))
    for wrong in (CampaignFlags(regions="64"), CampaignFlags(regions="0x4"), CampaignFlags(regions="axb")):
        with pytest.raises(ValueError, match="--regions"):
            wrong.shapes()
    with pytest.raises(ValueError, match="--slo-scale"):
        CampaignFlags(slo_scale="x").factors()


def test_the_longest_run_of_ordinary_tokens() -> None:
    assert longest_run(49152, range(17)) == (17, 49152)
    assert longest_run(100, [99, 98, 3, 500]) == (4, 98)
    assert longest_run(10, []) == (0, 10)
