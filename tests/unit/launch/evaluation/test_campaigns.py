"""Do campaigns run what they should, in an order that is fair, and keep what they know?"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import replace
from typing import TypeVar

import pytest
from msgspec import structs

from launch.evaluation.arrivals import Arrivals, ClosedLoop, Poisson, TraceClock
from launch.evaluation.campaigns.duel import DuelOptions, duel
from launch.evaluation.campaigns.progress import Course, Step, in_words
from launch.evaluation.campaigns.search import GoodputOptions, goodput, probed_of, told_by
from launch.evaluation.campaigns.session import Session, Size
from launch.evaluation.campaigns.shapes import RegionOptions, Shape, map_regions
from launch.evaluation.campaigns.sweep import SweepOptions, parse_rates, sweep
from launch.evaluation.goodput import Ending, Search
from launch.evaluation.lengths import Fixed, Uniform
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.slo import Slo
from launch.evaluation.summary import slo_scale
from launch.evaluation.workload import Workload
from tests.support.fifo import serve
from tests.support.loads import Drawn, Server, SimulatedLoads

SOURCE = Drawn(Uniform(10, 100), Fixed(4))
SLO = Slo(ttft_s=0.3)
SMALL = Size(seconds=2.0, at_least=30)

_T = TypeVar("_T")


def run(campaign: Awaitable[_T]) -> _T:
    async def main() -> _T:
        return await campaign

    return asyncio.run(main())


def fifo(service_s: float = 0.1, lag_s: float = 0.0) -> Server:
    def server(workload: Workload, arrivals: Arrivals, _number: int) -> list[RequestResult]:
        requests = workload.requests
        if isinstance(arrivals, ClosedLoop):
            return one_by_one(workload, service_s)
        return serve(requests, lambda _: service_s, gap_s=0.01, lag_s=lambda _: lag_s)

    return server


def one_by_one(workload: Workload, service_s: float) -> list[RequestResult]:
    """A closed loop of one request: each arrives when the one before has left."""
    results, now = [], 0.0
    for request in workload.requests:
        tokens = tuple(now + service_s + 0.01 * number for number in range(request.output_tokens))
        results.append(RequestResult(index=request.index, arrival_s=now, sent_s=now, token_s=tokens, end_s=tokens[-1]))
        now = tokens[-1]
    return results


def loads(**servers: Server) -> SimulatedLoads:
    return SimulatedLoads(servers or {"A": fifo(), "B": fifo()})


@pytest.mark.parametrize(
    ("text", "rates"),
    [("1,2,4", (1, 2, 4)), ("2", (2,)), ("0.5:8:5", (0.5, 1, 2, 4, 8)), ("1:3:2", (1, 3))],
)
def test_rates_are_a_list_or_a_range(text: str, rates: tuple[float, ...]) -> None:
    assert parse_rates(text) == pytest.approx(rates)


@pytest.mark.parametrize("text", ["", "fast", "0", "-1,2", "1:2", "2:1:3", "1:2:1", "1:2:3:4", "1,nan"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no rates"):
        parse_rates(text)


def test_a_sweep_sends_the_same_to_all_systems_and_turns_their_order() -> None:
    simulated = loads()
    session = Session(simulated.run_load)
    options = SweepOptions(rates_per_s=(1.0, 2.0, 4.0), size=SMALL)
    runs = run(sweep(session, SOURCE, ["A", "B"], options))
    assert "".join(asked.system for asked in simulated.asked) == "ABBAAB"
    assert [asked.arrivals for asked in simulated.asked[::2]] == [Poisson(1.0), Poisson(2.0), Poisson(4.0)]
    for first, second in zip(simulated.asked[::2], simulated.asked[1::2], strict=True):
        assert first.workload == second.workload
    assert session.runs == list(runs)
    assert {one.purpose for one in runs} == {"sweep"}


def test_the_slo_is_judged_in_the_window_of_the_run() -> None:
    simulated = loads()
    session = Session(simulated.run_load)
    (one,) = run(sweep(session, SOURCE, ["A"], SweepOptions(rates_per_s=(2.0,), size=SMALL)))
    results = fifo()(simulated.asked[0].workload, Poisson(2.0), 0)
    scale = slo_scale(one, results, SLO, [0.1, 1.0, 2.0])
    assert scale.points[0][1].every.total == sum(one.measures.outcomes.values()) < len(results)
    met = [attainments.every.met for _, attainments in scale.points]
    assert met == sorted(met)
    assert met[0] == 0 < met[-1]


def test_no_system_sees_a_prompt_twice_in_a_study() -> None:
    """Only the sides of a pair share their requests."""
    simulated = loads(A=fifo(0.1), B=fifo(0.12))
    session = Session(simulated.run_load)

    async def study() -> None:
        await sweep(session, SOURCE, ["A", "B"], SweepOptions(rates_per_s=(1.0, 2.0), size=SMALL))
        await goodput(session, SOURCE, ["A", "B"], GoodputOptions(slo=SLO, search=Search(probes=9), size=SMALL))
        await duel(session, SOURCE, "A", "B", DuelOptions(arrivals=Poisson(3.0), requests=30, pairs=2, slo=SLO))
        shapes = (Shape(prompt_tokens=10, output_tokens=2), Shape(prompt_tokens=20, output_tokens=2))
        options = RegionOptions(shapes=shapes, pairs=2, size=SMALL, under_way=1)
        await map_regions(session, lambda shape: Drawn(Fixed(shape.prompt_tokens), Fixed(2)), "A", "B", options)

    run(study())
    seen: defaultdict[str, list[int]] = defaultdict(list)
    for asked in simulated.asked:
        seen[asked.system] += asked.indices
    assert len(seen) == 2
    for indices in seen.values():
        assert len(indices) == len(set(indices))
    assert len(simulated.asked) == len(session.runs)


def test_both_sides_of_a_pair_get_the_same_requests_and_the_next_pair_gets_others() -> None:
    simulated = loads()
    fought = run(
        duel(
            Session(simulated.run_load),
            SOURCE,
            "A",
            "B",
            DuelOptions(arrivals=Poisson(3.0), requests=30, pairs=4, slo=SLO),
        )
    )
    assert "".join(asked.system for asked in simulated.asked) == "ABBAABBA"
    pairs = list(zip(simulated.asked[::2], simulated.asked[1::2], strict=True))
    assert all(first.workload == second.workload for first, second in pairs)
    assert len({first.indices for first, _ in pairs}) == 4
    assert fought.run_ids == tuple(f"compare-{number}" for number in range(8))
    assert fought.rate_per_s == 3.0


def test_a_verdict_does_not_rest_on_a_client_that_lagged() -> None:
    """B's runs are far slower, and in all but two of its runs the client was late as well."""
    late_runs = {1, 2, 5}

    def slow(workload: Workload, arrivals: Arrivals, number: int) -> list[RequestResult]:
        return fifo(0.2, lag_s=5.0 if number in late_runs else 0.0)(workload, arrivals, number)

    options = DuelOptions(arrivals=Poisson(3.0), requests=60, pairs=5, slo=SLO)
    simulated = loads(A=fifo(), B=slow)
    fought = run(duel(Session(simulated.run_load), SOURCE, "A", "B", options))
    assert {comparison.pairs for comparison in fought.comparisons.values()} == {2}
    assert "2 pairs of runs, 3 left out because the client lagged" in fought.verdict
    late_runs |= {6, 9}
    nothing = run(duel(Session(loads(A=fifo(), B=slow).run_load), SOURCE, "A", "B", options))
    assert nothing.verdict.startswith("No verdict at 3 requests/s: 0 pairs of runs, 5 left out")


def test_the_verdict_says_who_was_over_saturated_and_what_could_not_be_compared() -> None:
    def chunked(workload: Workload, _arrivals: Arrivals, _number: int) -> list[RequestResult]:
        return serve(workload.requests, lambda _: 0.5, gap_s=0.0)  # every answer in one chunk: a TPOT of 0

    options = DuelOptions(arrivals=Poisson(4.0), requests=60, pairs=2, slo=SLO)
    fought = run(duel(Session(loads(A=fifo(), B=chunked).run_load), SOURCE, "A", "B", options))
    assert "B was over-saturated in 2 runs" in fought.verdict
    assert "A was over-saturated" not in fought.verdict
    assert fought.comparisons["TPOT p50"].pairs == 0
    assert "TPOT" not in fought.verdict
    assert fought.comparisons["attainment"].pairs == 2


def test_a_closed_loop_has_no_rate() -> None:
    options = DuelOptions(arrivals=ClosedLoop(1), requests=10, pairs=2)
    fought = run(duel(Session(loads(A=fifo(), B=fifo(0.5)).run_load), SOURCE, "A", "B", options))
    assert fought.rate_per_s is None
    assert "attainment" not in fought.comparisons  # no SLO was given
    assert fought.verdict.startswith("At 1 request at a time, B against A: A is better at TTFT p50 (+400 %")


def test_a_system_has_one_name() -> None:
    options = DuelOptions(arrivals=Poisson(1.0), requests=10)
    with pytest.raises(ValueError, match="both systems are called A"):
        run(duel(Session(loads().run_load), SOURCE, "A", "A", options))


def test_interleaved_searches_end_as_they_would_alone() -> None:
    options = GoodputOptions(slo=SLO, search=Search(first_per_s=1.0, tolerance=0.1), size=Size(seconds=1, at_least=200))
    servers = {"A": fifo(0.1), "B": fifo(0.07), "C": fifo(0.05)}
    simulated = loads(**servers)
    together = run(goodput(Session(simulated.run_load), SOURCE, list(servers), options))
    assert "".join(asked.system for asked in simulated.asked[:9]) == "ABCCBAABC"
    for one in together:
        alone = loads(**servers)
        (lone,) = run(goodput(Session(alone.run_load), SOURCE, [one.system], options))
        assert one.found == lone.found
        assert [asked.workload for asked in simulated.asked if asked.system == one.system] == [
            asked.workload for asked in alone.asked
        ]
    assert [one.found.ending for one in together] == [Ending.FOUND] * 3


def test_a_search_goes_on_from_earlier_probes() -> None:
    options = GoodputOptions(slo=SLO, search=Search(first_per_s=1.0, tolerance=0.1), size=Size(seconds=1, at_least=200))
    whole = loads(A=fifo())
    (uninterrupted,) = run(goodput(Session(whole.run_load), SOURCE, ["A"], options))
    interrupted = replace(loads(A=fifo()), fails_at=5)
    session = Session(interrupted.run_load)
    with pytest.raises(InterruptedError):
        run(goodput(session, SOURCE, ["A"], options))
    (partial,) = session.goodputs
    assert partial.found.ending is Ending.INTERRUPTED
    assert partial.run_ids == tuple(one.run_id for one in session.runs)
    assert len(partial.run_ids) == 5

    probes = [
        probed_of(one, fifo()(asked.workload, asked.arrivals, 0), asked.arrivals.rate_per_s, SLO)
        for one, asked in zip(session.runs, interrupted.asked, strict=True)
        if isinstance(asked.arrivals, Poisson)
    ]
    later = loads(A=fifo())
    (resumed,) = run(goodput(Session(later.run_load, seen={"A": 1000}), SOURCE, ["A"], options, {"A": probes}))
    assert resumed.found == uninterrupted.found
    assert len(later.asked) == len(whole.asked) - 5
    assert resumed.run_ids[:5] == partial.run_ids


def test_a_search_begins_with_what_other_campaigns_have_measured() -> None:
    search = Search(first_per_s=1.0, tolerance=0.1)
    options = GoodputOptions(slo=SLO, search=search, size=Size(seconds=1, at_least=200))
    alone = loads(A=fifo())
    (unaided,) = run(goodput(Session(alone.run_load), SOURCE, ["A"], options))

    simulated = replace(loads(A=fifo()), slo=SLO)
    session = Session(simulated.run_load)
    rates = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 16.0)
    run(sweep(session, SOURCE, ["A"], SweepOptions(rates_per_s=rates, size=Size(seconds=1, at_least=200))))
    told = told_by(session.runs)
    assert [one.probe.rate_per_s for one in told["A"]] == list(rates)
    (aided,) = run(goodput(session, SOURCE, ["A"], options, told))
    assert aided.found.ending is Ending.FOUND
    assert aided.found.goodput_per_s == pytest.approx(unaided.found.goodput_per_s, rel=0.2)
    own = simulated.asked[len(rates) :]
    assert len(own) < len(alone.asked)
    tried = {asked.arrivals.rate_per_s for asked in own if isinstance(asked.arrivals, Poisson)}
    assert not tried & {0.5, 1.0, 16.0}, "what is far from the goodput may stay in doubt"


def test_runs_without_a_rate_or_an_slo_and_stopped_ones_tell_a_search_nothing() -> None:
    session = Session(loads(A=fifo()).run_load)
    (one,) = run(sweep(session, SOURCE, ["A"], SweepOptions(rates_per_s=(1.0,), size=SMALL)))
    assert [told.run_id for told in told_by([one])["A"]] == [one.run_id]
    without = [structs.replace(one, arrivals=ClosedLoop(2)), structs.replace(one, arrivals=TraceClock(1.0))]
    without += [structs.replace(one, attainments=None), structs.replace(one, stopped=True)]
    assert told_by(without) == {}


def test_a_search_passes_on_that_the_client_lagged() -> None:
    options = GoodputOptions(slo=SLO, search=Search(probes_per_rate=2), size=SMALL)
    (one,) = run(goodput(Session(loads(A=fifo(lag_s=1.0)).run_load), SOURCE, ["A"], options))
    assert (one.found.ending, one.found.goodput_per_s) == (Ending.CLIENT_TOO_SLOW, None)


def test_a_search_passes_on_over_saturation() -> None:
    """A lax SLO is met at any rate, but not for long."""
    options = GoodputOptions(
        slo=Slo(ttft_s=1e6), search=Search(first_per_s=8.0, tolerance=0.1), size=Size(seconds=1, at_least=400)
    )
    (one,) = run(goodput(Session(loads(A=fifo()).run_load), SOURCE, ["A"], options))
    assert one.found.goodput_per_s == pytest.approx(10.0, rel=0.1)
    assert any(rate.saturated for rate in one.found.rates)


@pytest.mark.parametrize("fails_at", [0, 1, 5])
def test_an_interrupted_duel_keeps_its_whole_pairs(fails_at: int) -> None:
    simulated = replace(loads(A=fifo(), B=fifo(0.2)), fails_at=fails_at)
    session = Session(simulated.run_load)
    options = DuelOptions(arrivals=Poisson(2.0), requests=30, pairs=6, slo=SLO)
    with pytest.raises(InterruptedError):
        run(duel(session, SOURCE, "A", "B", options))
    assert len(session.runs) == fails_at
    assert len(session.duels) == (fails_at > 0)
    for fought in session.duels:
        assert len(fought.run_ids) == fails_at
        assert fought.comparisons["TTFT p50"].pairs == fails_at // 2


def test_an_interrupted_map_keeps_its_shapes() -> None:
    def source(shape: Shape) -> Drawn:
        return Drawn(Fixed(shape.prompt_tokens), Fixed(shape.output_tokens))

    shapes = (Shape(prompt_tokens=10, output_tokens=2), Shape(prompt_tokens=20, output_tokens=2))
    options = RegionOptions(shapes=shapes, factors=(2.0, 4.0), pairs=3, size=SMALL, under_way=1)
    simulated = replace(loads(), fails_at=4 + 6 + 4 + 3)
    session = Session(simulated.run_load)
    with pytest.raises(InterruptedError):
        run(map_regions(session, source, "A", "B", options))
    assert session.region_map is not None
    assert [(one.cell.prompt_tokens, one.comparison.pairs) for one in session.region_map.regions] == [
        (10, 3),
        (10, 3),
        (20, 1),
        (20, 1),
    ]
    assert session.region_map.regions[0].comparison.confidence == pytest.approx(1.0 - options.error / 4)
    early = Session(replace(loads(), fails_at=3).run_load)
    with pytest.raises(InterruptedError):
        run(map_regions(early, source, "A", "B", options))
    assert early.region_map is None
    assert len(early.runs) == 3


def test_a_map_leaves_out_pairs_in_which_the_client_lagged_and_shapes_that_nobody_answers() -> None:
    def late_once(workload: Workload, arrivals: Arrivals, number: int) -> list[RequestResult]:
        if workload.requests[0].prompt_tokens == 20:
            return [
                RequestResult(index=one.index, arrival_s=0.0, sent_s=0.0, end_s=0.0, outcome=Outcome.REJECTED)
                for one in workload.requests
            ]
        return fifo(lag_s=5.0 if number == 6 else 0.0)(workload, arrivals, number)

    shapes = (Shape(prompt_tokens=10, output_tokens=2), Shape(prompt_tokens=20, output_tokens=2))
    options = RegionOptions(shapes=shapes, factors=(2.0,), pairs=3, size=SMALL, under_way=1)
    session = Session(loads(A=fifo(), B=late_once).run_load)
    found = run(map_regions(session, lambda shape: Drawn(Fixed(shape.prompt_tokens), Fixed(2)), "A", "B", options))
    assert found is not None
    assert [region.comparison.pairs for region in found.regions] == [2]
    assert "1 pair left out because the client lagged. Without an answer: 20 -> 2." in found.how
    assert len(session.runs) == 4 + 6 + 4


def test_progress_is_told_before_and_after_every_run() -> None:
    steps: list[Step] = []
    session = Session(loads().run_load, progress=steps.append)
    run(sweep(session, SOURCE, ["A", "B"], SweepOptions(rates_per_s=(1.0, 4.0), size=SMALL)))
    assert [(step.number, step.run is None) for step in steps] == [
        (number, before) for number in range(1, 5) for before in (True, False)
    ]
    assert {step.at_most for step in steps} == {4}
    assert steps[0].remaining_s == pytest.approx(2 * 30 + 2 * 7.5)
    assert steps[-1].remaining_s == 0.0
    assert in_words(steps[0]) == "sweep 1/4: A, 1 requests/s, 30 requests; at most 75 s to go"
    assert in_words(steps[1]).startswith("sweep 1/4: A, 1 requests/s: attainment ")


def test_a_search_promises_no_more_steps_than_it_may_take() -> None:
    steps: list[Step] = []
    options = GoodputOptions(slo=SLO, search=Search(probes=7), size=SMALL)
    run(goodput(Session(loads().run_load, progress=steps.append), SOURCE, ["A", "B"], options))
    assert {step.at_most for step in steps} == {14}
    assert steps[-1].number == 14
    assert steps[-1].remaining_s == 0.0


def test_the_time_to_go_learns_from_the_runs() -> None:
    course = Course("compare", [10.0, 10.0, 30.0])
    assert course.remaining_s() == 50.0
    course.finish(15.0)
    assert course.remaining_s() == 60.0
    unplanned = Course("regions", [None, None, 10.0])
    assert unplanned.remaining_s() is None
    unplanned.finish(4.0)
    assert unplanned.remaining_s() == 14.0


def test_nothing_is_found_of_no_probes() -> None:
    simulated = replace(loads(), fails_at=0)
    session = Session(simulated.run_load)
    with pytest.raises(InterruptedError):
        run(goodput(session, SOURCE, ["A"], GoodputOptions(slo=SLO)))
    assert session.goodputs == []
