"""Does the search step as it says, and end where it should?"""

from collections.abc import Callable

import pytest

from launch.evaluation.goodput import Ending, Found, Probe, Search, Try, Verdict, judged, next_step
from launch.evaluation.intervals import wilson
from launch.evaluation.slo import Attainment


def probe(rate_per_s: float, share: float, total: int = 1000, **flags: bool) -> Probe:
    met = round(share * total)
    return Probe(
        rate_per_s=rate_per_s, attainment=Attainment(met=met, total=total, effective_total=float(total)), **flags
    )


def run(search: Search, server: Callable[[float], Probe]) -> tuple[Found, list[float]]:
    probes: list[Probe] = []
    while isinstance(step := next_step(search, probes), Try):
        assert len(probes) < search.probes
        probes.append(server(step.rate_per_s))
    return step, [one.rate_per_s for one in probes]


def cliff(at_per_s: float) -> Callable[[float], Probe]:
    return lambda rate: probe(rate, 0.99 if rate <= at_per_s else 0.3)


def test_it_doubles_then_bisects() -> None:
    found, tried = run(Search(first_per_s=1.0, tolerance=0.1), cliff(5.0))
    assert tried == [1, 1, 2, 2, 4, 4, 8, 8, 6, 6, 5, 5, 5.5, 5.5]
    assert found.ending is Ending.FOUND
    assert (found.goodput_per_s, found.low_per_s, found.high_per_s) == (5.0, 5.0, 5.5)


def test_it_halves_when_the_first_rate_is_too_much() -> None:
    found, tried = run(Search(first_per_s=8.0, tolerance=0.5), cliff(1.5))
    assert tried[::2] == [8, 4, 2, 1, 1.5]
    assert found.goodput_per_s == 1.5


def test_an_undecided_rate_is_tried_again_and_then_decided_by_its_share() -> None:
    search = Search(first_per_s=4.0, probes_per_rate=3)
    close = [probe(4.0, 0.91, total=100)]
    assert judged(search, close)[0].verdict is Verdict.UNDECIDED
    assert next_step(search, close) == Try(rate_per_s=4.0)
    decided = judged(search, close * 3)[0]
    assert (decided.verdict, decided.certain) == (Verdict.PASSED, False)
    assert decided.attainment.total == 300
    assert next_step(search, close * 3) == Try(rate_per_s=8.0)


def test_one_run_is_never_certain() -> None:
    search = Search()
    assert judged(search, [probe(1.0, 1.0)])[0].verdict is Verdict.UNDECIDED
    assert judged(search, [probe(1.0, 1.0)] * 2)[0].certain
    assert judged(Search(probes_per_rate=1), [probe(1.0, 1.0)])[0].certain


def test_an_over_saturated_rate_fails_whatever_it_attained() -> None:
    saturated = judged(Search(), [probe(1.0, 1.0, saturated=True)] * 2)[0]
    assert (saturated.verdict, saturated.certain, saturated.saturated) == (Verdict.FAILED, True, True)
    half = judged(Search(), [probe(1.0, 1.0, saturated=True), probe(1.0, 1.0)])[0]
    assert half.verdict is Verdict.PASSED


def test_a_search_stays_below_saturation_whatever_is_attained_there() -> None:
    found, _ = run(Search(first_per_s=1.0, tolerance=0.1), lambda rate: probe(rate, 0.99, saturated=rate > 5.0))
    assert (found.goodput_per_s, found.high_per_s) == (5.0, 5.5)


def test_every_look_takes_its_part_of_the_error() -> None:
    share = judged(Search(confidence=0.95, probes_per_rate=4), [probe(1.0, 0.92)])[0].share
    assert share == wilson(920, 1000, confidence=0.9875)


def test_a_lagging_client_ends_the_search_with_what_it_knows() -> None:
    found, tried = run(Search(first_per_s=1.0), lambda rate: probe(rate, 0.99, lagging=rate > 4.0))
    assert tried == [1, 1, 2, 2, 4, 4, 8, 8, 8, 8]
    assert (found.ending, found.goodput_per_s, found.high_per_s) == (Ending.CLIENT_TOO_SLOW, 4.0, None)


@pytest.mark.parametrize(
    ("capacity", "ending", "goodput"),
    [(1e9, Ending.ABOVE_HIGHEST, 10.0), (1e-9, Ending.BELOW_LOWEST, None)],
)
def test_it_stops_at_the_ends_of_its_range(capacity: float, ending: Ending, goodput: float | None) -> None:
    found, _ = run(Search(first_per_s=1.0, lowest_per_s=0.3, highest_per_s=10.0), cliff(capacity))
    assert (found.ending, found.goodput_per_s) == (ending, goodput)


def test_it_keeps_to_its_probes() -> None:
    found, tried = run(Search(first_per_s=1.0, tolerance=1e-6, probes=11), cliff(5.0))
    assert len(tried) == 11
    assert (found.ending, found.goodput_per_s) == (Ending.OUT_OF_PROBES, 4.0)


def test_bad_luck_at_one_rate_does_not_lead_astray() -> None:
    """4/s looks just too much; when 5/s turns out fine, the two are pooled."""
    search = Search(first_per_s=4.0, probes_per_rate=2, tolerance=0.3)
    unlucky = [probe(4.0, 0.88, total=50)] * 2
    lucky = [probe(5.0, 0.99)] * 2
    assert next_step(search, unlucky) == Try(rate_per_s=2.0)
    step = next_step(search, [*unlucky, *lucky])
    assert step == Try(rate_per_s=10.0)  # as if 4/s had passed


def test_the_interval_is_between_certain_rates() -> None:
    """At 4/s and 4.25/s nothing is certain, so it steps outwards until something is."""
    shares = {4.0: 0.905, 5.0: 0.89}

    def server(rate: float) -> Probe:
        return probe(rate, shares.get(rate, 0.99 if rate < 4.0 else 0.5), total=100)

    found, tried = run(Search(first_per_s=4.0, tolerance=0.3, highest_per_s=5.0), server)
    assert found.goodput_per_s == 4.0
    assert found.high_per_s is None  # nothing above 5/s may be tried
    assert found.low_per_s == 3.0
    assert tried[-1] == 3.0


def test_a_search_goes_on_from_its_probes() -> None:
    search = Search(first_per_s=1.0)
    probes: list[Probe] = []
    steps = []
    while isinstance(step := next_step(search, probes), Try):
        steps.append(step.rate_per_s)
        probes.append(cliff(5.0)(step.rate_per_s))
    for known in range(len(probes)):
        assert next_step(search, probes[:known]) == Try(rate_per_s=steps[known])
