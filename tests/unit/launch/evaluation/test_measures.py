"""Does every measure come out as computed by hand?"""

import msgspec
import numpy as np
import pytest

from launch.evaluation.compatible import vllm_keys
from launch.evaluation.definitions import DEFINITIONS
from launch.evaluation.intervals import Estimate
from launch.evaluation.measures import Latencies, latencies, measure, whole
from launch.evaluation.results import (
    Outcome,
    RequestResult,
    Window,
    arriving,
    from_lines,
    steady,
    to_lines,
)
from launch.evaluation.slo import Slo
from runtime.stages import Ledger

RUN = [
    RequestResult(
        index=0,
        arrival_s=0.9,
        sent_s=1.0,
        token_s=(1.25, 1.75, 1.875, 2.0),
        end_s=2.0,
        prompt_tokens=100,
        asked_tokens=4,
        ledger=Ledger(total_s=0.99),
    ),
    RequestResult(index=1, arrival_s=1.5, sent_s=1.5, token_s=(2.0,), end_s=2.0, prompt_tokens=50, asked_tokens=1),
    RequestResult(index=2, arrival_s=2.0, sent_s=2.0, token_s=(2.5, 2.5, 3.5), end_s=3.5, prompt_tokens=50),
    RequestResult(index=3, arrival_s=3.0, sent_s=3.0, end_s=3.0, outcome=Outcome.REJECTED, error="overloaded"),
    RequestResult(
        index=4, arrival_s=4.0, sent_s=4.0, token_s=(4.5,), end_s=4.9, outcome=Outcome.FAILED, prompt_tokens=50
    ),
]


def value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate is not None else None


def test_latencies_of_one_request() -> None:
    assert latencies(RUN[0]) == Latencies(
        ttft_s=0.25,
        gaps_s=(0.5, 0.125, 0.125),
        tpot_s=0.25,
        handoff_gap_s=0.5,
        longest_stall_s=0.5,
        e2e_s=1.0,
    )


def test_an_answer_of_one_token_has_no_gaps() -> None:
    assert latencies(RUN[1]) == Latencies(
        ttft_s=0.5, gaps_s=(), tpot_s=None, handoff_gap_s=None, longest_stall_s=None, e2e_s=0.5
    )


def test_an_answer_without_tokens_has_no_latency() -> None:
    assert latencies(RUN[3]) == Latencies(
        ttft_s=None, gaps_s=(), tpot_s=None, handoff_gap_s=None, longest_stall_s=None, e2e_s=None
    )


def test_tokens_of_one_chunk_have_gaps_of_nothing() -> None:
    assert latencies(RUN[2]).gaps_s == (0.0, 1.0)
    assert latencies(RUN[2]).tpot_s == 0.5


def test_a_whole_run() -> None:
    measures = measure(RUN)
    assert measures.window.start_s == 0.9
    assert measures.window.duration_s == pytest.approx(4.0)
    assert measures.outcomes == {
        Outcome.COMPLETED: 3,
        Outcome.REJECTED: 1,
        Outcome.FAILED: 1,
        Outcome.CUT_OFF: 0,
    }
    assert (measures.ttft.count, measures.itl.count, measures.tpot.count) == (3, 5, 2)
    assert value(measures.ttft.mean) == pytest.approx(1.25 / 3)
    assert value(measures.itl.mean) == pytest.approx(1.75 / 5)
    assert value(measures.tpot.mean) == pytest.approx(0.375)
    assert value(measures.handoff_gap.mean) == pytest.approx(0.25)
    assert value(measures.longest_stall.mean) == pytest.approx(0.75)
    assert value(measures.e2e.mean) == pytest.approx((1.0 + 0.5 + 1.5) / 3)
    assert value(measures.itl.percentiles["p50"]) == 0.125
    assert (measures.itl.min_s, measures.itl.max_s) == (0.0, 1.0)
    assert measures.itl.std_s == pytest.approx(np.std([0.5, 0.125, 0.125, 0.0, 1.0]))
    assert measures.completed_per_s == pytest.approx(3 / 4.0)
    assert measures.output_tokens_per_s == pytest.approx(9 / 4.0)  # the failed request's token was a token, too
    assert measures.prompt_tokens_per_s == pytest.approx(250 / 4.0)


def test_a_window_takes_latencies_by_arrival_and_rates_by_what_happens_in_it() -> None:
    measures = measure(RUN, Window(start_s=1.75, end_s=2.75))
    assert measures.ttft.count == 1
    assert value(measures.ttft.mean) == 0.5  # of request 2, which arrives at 2.0 and ends outside
    assert measures.completed_per_s == 2.0  # requests 0 and 1 end at 2.0
    assert measures.output_tokens_per_s == 6.0  # at 1.75, 1.875, 2.0; 2.0; 2.5, 2.5


def test_windows_that_follow_each_other_share_nothing() -> None:
    assert [Window(start_s=start, end_s=start + 1.0).has(2.0) for start in (0.0, 1.0, 2.0)] == [False, False, True]


def test_warm_up_and_cool_down_go_by_planned_arrival() -> None:
    window = steady(RUN, warm_up_s=0.5, cool_down_s=0.5)
    assert [result.index for result in arriving(RUN, window)] == [1, 2, 3]
    assert len(arriving(RUN, steady(RUN, warm_up_s=0.0, cool_down_s=0.0))) == len(RUN)
    with pytest.raises(ValueError, match=r"all of them arrive within 3\.1 s"):
        steady(RUN, warm_up_s=2.0, cool_down_s=2.0)
    with pytest.raises(ValueError, match="no requests"):
        steady([], 0.0, 0.0)


def test_a_run_of_nothing_has_no_numbers() -> None:
    measures = measure([])
    assert measures.ttft.count == 0
    assert measures.ttft.mean is None
    assert measures.ttft.percentiles == {}
    assert set(vllm_keys(measures, []).values()) <= {None, 0, measures.window.duration_s}


def test_one_request_has_values_without_intervals() -> None:
    measures = measure(RUN[:1])
    assert measures.ttft.mean == Estimate(0.25)
    assert measures.ttft.percentiles["p50"] == Estimate(0.25)
    assert measures.ttft.percentiles["p99"].high is None
    assert measures.itl.mean == Estimate(0.25)


def test_a_server_that_does_not_count_prompts_has_no_rate_of_them() -> None:
    assert measure([msgspec.structs.replace(RUN[0], prompt_tokens=None)]).prompt_tokens_per_s is None


def test_the_keys_of_vllm() -> None:
    measures = measure(RUN)
    keys = vllm_keys(measures, RUN, Slo(ttft_s=0.4))
    named = {f"{stat}_{name}_ms" for stat in ("mean", "median", "p99") for name in ("ttft", "tpot", "itl", "e2el")}
    assert set(keys) == named | {
        "duration",
        "completed",
        "failed",
        "request_throughput",
        "request_goodput",
        "output_throughput",
    }
    assert (keys["completed"], keys["failed"]) == (3, 2)
    assert keys["request_goodput"] == pytest.approx(1 / 4.0)  # request 0 alone
    assert vllm_keys(measures, RUN)["request_goodput"] is None
    early = Window(start_s=0.0, end_s=1.75)
    assert vllm_keys(measure(RUN, early), RUN, Slo(ttft_s=0.4))["request_goodput"] == 0.0  # request 0 ends at 2.0
    # What vllm bench computes of the same times (calculate_metrics): NumPy over all gaps, over requests of two tokens
    # or more, and over requests.
    assert keys["median_itl_ms"] == pytest.approx(np.median([500, 125, 125, 0, 1000]))
    assert keys["p99_itl_ms"] == pytest.approx(np.percentile([500, 125, 125, 0, 1000], 99))
    assert keys["mean_tpot_ms"] == pytest.approx(np.mean([250, 500]))
    assert keys["p99_ttft_ms"] == pytest.approx(np.percentile([250, 500, 500], 99))
    assert keys["median_e2el_ms"] == 1000


def test_every_measure_is_defined() -> None:
    latencies_measured = {"ttft", "itl", "tpot", "handoff_gap", "longest_stall", "e2e"}
    assert latencies_measured <= set(DEFINITIONS)
    assert latencies_measured <= set(type(measure(RUN)).__struct_fields__)


def test_results_survive_as_lines() -> None:
    lines = list(to_lines(RUN))
    assert all(line.count(b"\n") == 1 for line in lines)
    assert list(from_lines(lines)) == RUN
    with pytest.raises(msgspec.ValidationError):
        list(from_lines([b'{"index": 0}']))


def test_measures_are_json() -> None:
    measures = measure(RUN)
    assert msgspec.json.decode(msgspec.json.encode(measures), type=type(measures)) == measures


def test_the_window_of_a_run_holds_its_last_end() -> None:
    assert whole(RUN).has(4.9)
