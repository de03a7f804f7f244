"""Two that measure the same requests; the samples are what guidellm 0.8.1 and aiperf 0.13.0 wrote, shortened."""

from pathlib import Path

import msgspec
import pytest

from bench.compat import aiperf, guidellm
from bench.compat.agreement import Agreement, agreement
from bench.compat.bare import Waited
from bench.compat.relaying import summed
from bench.compat.report_agreement import agreements
from bench.compat.runs import Run
from bench.compat.runs import summed as summed_relaying
from bench.compat.streamed import Streamed
from bench.compat.tool import Account, Counted, Quantity, Record, Statistic
from launch.evaluation.measures import latencies
from launch.evaluation.results import Outcome, RequestResult

SAMPLES = Path(__file__).with_name("samples")


def stream(index: int, token_s: tuple[float, ...], outcome: Outcome = Outcome.COMPLETED) -> Streamed:
    result = RequestResult(
        index=index,
        arrival_s=index,
        sent_s=index,
        token_s=tuple(index + at_s for at_s in token_s),
        end_s=index + token_s[-1] + 0.1,
        outcome=outcome,
    )
    return Streamed(
        names=frozenset({f"n{index}", f"answer-{index}"}),
        result=result,
        shown_s=result.token_s,
        counted=len(token_s),
        told=3,
    )


def record(one: Streamed, late_s: float = 0.0) -> Record:
    seen = latencies(one.result)
    assert seen.ttft_s is not None
    assert seen.e2e_s is not None
    return Record(
        name=f"n{one.result.index}",
        ttft_s=seen.ttft_s + late_s,
        tpot_s=seen.tpot_s,
        e2e_s=seen.e2e_s + late_s,
        latency_s=one.result.end_s - one.result.sent_s + late_s,
        gaps_s=seen.gaps_s,
    )


SHORT, LONG = stream(0, (0.5, 0.6, 0.7)), stream(1, (0.5, 0.7, 0.9, 1.1, 1.3))
PROBE = stream(2, (9.0, 99.0, 999.0))


def found(late_s: float = 0.0, statistics: dict[Quantity, dict[Statistic, float]] | None = None) -> Agreement:
    records = (record(SHORT, late_s), record(LONG, late_s))
    return agreement([SHORT, LONG, PROBE], Account(statistics=statistics or {}, records=records))


def test_only_what_the_tool_reports_is_measured() -> None:
    same = found()
    assert (same.compared, same.unheard, same.left_out, same.incomplete) == (2, (), 1, 0)
    assert (same.told, same.miscounted) == (2, 1)
    assert (same.fewest_tokens, same.most_tokens) == (3, 5)
    assert all(row.agrees and row.theirs_s == pytest.approx(row.ours_s) for row in same.rows)
    assert {row.quantity for row in same.rows} == {"ttft", "tpot", "itl", "e2e", "latency"}


def test_what_a_tool_measures_later_shows() -> None:
    late = found(late_s=0.02)
    agrees = {(row.quantity, row.statistic): row.agrees for row in late.rows}
    assert not agrees["ttft", "mean"]
    assert agrees["itl", "p50"]
    [widest] = [one for one in late.widest if one.quantity == "ttft"]
    assert (widest.compared, widest.agreeing) == (2, 0)
    assert widest.mean_difference_s == pytest.approx(0.02)


def test_a_mean_weighted_by_gaps_is_that_of_itl_and_not_of_tpot() -> None:
    weighted_s = (2 * 0.1 + 4 * 0.2) / 6
    by_itl, by_tpot = found(statistics={"itl": {"mean": weighted_s}}), found(statistics={"tpot": {"mean": weighted_s}})
    assert all(row.agrees for row in by_itl.rows)
    [row] = [row for row in by_tpot.rows if not row.from_records]
    assert not row.agrees
    assert row.ours_s == pytest.approx(0.15)


def test_a_token_that_shows_no_text_is_none_to_a_tool() -> None:
    silent = msgspec.structs.replace(LONG, shown_s=LONG.shown_s[1:])
    later = Record(name="n1", ttft_s=0.7, tpot_s=0.6 / 4, e2e_s=1.3, gaps_s=(0.2, 0.2, 0.2))
    both = agreement([SHORT, silent], Account(statistics={}, records=(record(SHORT), later)))
    means = {row.quantity: row for row in both.rows if row.statistic == "mean"}
    assert both.textless == 1
    assert [means[name].agrees for name in ("ttft", "tpot", "itl", "e2e")] == [False, False, False, True]
    assert all(row.agrees_by_text for row in means.values() if row.by_text_s is not None)


def test_a_request_that_nobody_heard_is_named_and_one_that_failed_left_out() -> None:
    failed = stream(1, (0.5,), outcome=Outcome.FAILED)
    account = Account(statistics={}, records=(record(SHORT), record(failed), Record(name="else")))
    one = agreement([SHORT, failed], account)
    assert (one.compared, one.unheard, one.left_out, one.incomplete) == (1, ("else",), 0, 1)
    with pytest.raises(ValueError, match="none of 1 reported requests"):
        agreement([SHORT], Account(statistics={}, records=(Record(name="else"),)))


def test_an_answer_without_usage_is_not_miscounted() -> None:
    untold = msgspec.structs.replace(LONG, told=None)
    records = (record(SHORT), record(untold))
    one = agreement([SHORT, untold], Account(statistics={}, records=records))
    assert (one.compared, one.told, one.miscounted) == (2, 1, 0)
    alone = agreement([untold], Account(statistics={}, records=records[1:]))
    assert "| guidellm | 1 | 0.5 | 1 | 5 | 0 | - | 0 | 0 | 0 |" in page(alone)


def test_what_aiperf_writes_down() -> None:
    lines = (SAMPLES / "aiperf.jsonl").read_bytes().splitlines()
    account = aiperf.parse_account((SAMPLES / "aiperf.json").read_bytes(), lines)
    assert len(account.records) == 6
    for record_ in account.records:
        assert record_.tpot_s == pytest.approx(sum(record_.gaps_s) / len(record_.gaps_s), abs=1e-6)
        assert record_.e2e_s == pytest.approx((record_.ttft_s or 0) + sum(record_.gaps_s), abs=1e-6)
    mean = sum(record_.ttft_s or 0 for record_ in account.records) / 6
    assert account.statistics["ttft"]["mean"] == pytest.approx(mean, abs=1e-6)
    assert account.statistics["ttft"].keys() == {"mean", "p50", "p90", "p95", "p99"}
    assert account.statistics["itl"].keys() == {"mean"}


def test_what_guidellm_writes_down() -> None:
    account = guidellm.parse_account((SAMPLES / "guidellm.json").read_bytes())
    assert len(account.records) == 6
    tpots = [record_.tpot_s or 0 for record_ in account.records]
    assert account.statistics["itl"]["mean"] != pytest.approx(sum(tpots) / 6, rel=1e-3)  # it weighs by gaps
    for record_ in account.records:
        assert record_.name.startswith("chatcmpl-")
        assert (record_.ttft_s or 0) < (record_.e2e_s or 0) < (record_.latency_s or 0)


def page(found: Agreement) -> str:
    run = Run(
        tool="guidellm",
        version="0.8.1",
        concurrency=1,
        output_spread=6,
        load_average=0.5,
        command="guidellm run",
        reported=Counted(requests=2, prompt_tokens=1, completion_tokens=1),
        server=Counted(requests=2, prompt_tokens=1, completion_tokens=1),
        agreement=found,
        relaying=summed_relaying([1e-5, 2e-5, 3e-5]),
    )
    added = summed(Waited(first_s=((0.1, 0.1002),) * 3, whole_s=((0.2, 0.2004),) * 3))
    assert added.rounds == 3
    return "\n".join(agreements([run], added))


def test_the_page_shows_both_sides_and_what_is_computed_here() -> None:
    text = page(found(late_s=0.02, statistics={"ttft": {"mean": 0.52}}))
    assert "| guidellm | 1 | 0.5 | 2 | 3 to 5 | 0 | 1 of 2 | 0 | 0 | 1 |" in text
    assert "| guidellm | 1 | TTFT | mean | 520.00 ms | 500.00 ms | +20.00 ms (+4.0%) | **no** |  |  |" in text
    assert "| guidellm | 1 | TTFT | p50 | 520.00 ms * | 500.00 ms | +20.00 ms (+4.0%) | **no** |  |  |" in text
    assert "| guidellm | 1 | ITL | 6 of 6 | +0.00 ms | +0.00 ms: " in text
    assert "within 20 us" in text
    assert "0.20 ms (0.20 to 0.20) later" in text
