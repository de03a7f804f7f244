"""Is a workload what was asked for, every time and in every part?"""

import math
import statistics
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no type information

from launch.evaluation.arrivals import ClosedLoop, Constant, Gamma, Poisson, TraceClock, TraceRate, arrive
from launch.evaluation.content import Content, prompt_ids
from launch.evaluation.draws import Purpose, stream
from launch.evaluation.lengths import Fixed, Lengths, LogNormal, Uniform, draw
from launch.evaluation.scaling import Scale, fit
from launch.evaluation.traces import PromptRecord, TraceRecord, lines_of, read_mooncake
from launch.evaluation.workload import from_prompts, from_trace, synthetic

MOONCAKE = Path(__file__).parent / "traces" / "mooncake.jsonl"
CONTENT = Content(seed=7, low=100, high=49_000)


def lengths(law: Lengths, count: int) -> list[int]:
    return [draw(law, 1, Purpose.PROMPT_LENGTH, index) for index in range(count)]


def gaps(arrivals: Poisson | Gamma | Constant, count: int) -> list[float]:
    return [later - earlier for earlier, later in pairwise((0.0, *arrive(arrivals, count, seed=1)))]


def test_lengths_follow_their_law() -> None:
    assert lengths(Fixed(17), 3) == [17, 17, 17]
    uniform = lengths(Uniform(3, 5), 600)
    assert set(uniform) == {3, 4, 5}
    assert stats.chisquare(np.bincount(uniform)[3:]).pvalue > 0.01
    law = LogNormal(median_tokens=200.0, sigma=1.0, low=1, high=1 << 20)
    logs = np.log(lengths(law, 600))
    assert stats.kstest(logs, stats.norm(math.log(200), 1.0).cdf).pvalue > 0.01


def test_log_normal_lengths_are_clipped_and_not_drawn_again() -> None:
    drawn = lengths(LogNormal(median_tokens=200.0, sigma=1.0, low=100, high=400), 600)
    assert (min(drawn), max(drawn)) == (100, 400)
    below = stats.norm.cdf(math.log(0.5))
    assert sum(length == 100 for length in drawn) / 600 == pytest.approx(below, abs=0.06)


@pytest.mark.parametrize(("low", "high"), [(5, 4)])
def test_lengths_that_cannot_be_are_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="from 5 to 4"):
        Uniform(low, high)
    with pytest.raises(ValueError, match="from 5 to 4"):
        LogNormal(10.0, 1.0, low, high)


def test_gaps_follow_their_law() -> None:
    assert arrive(Constant(4.0), 3, seed=1) == (0.25, 0.5, 0.75)
    assert stats.kstest(gaps(Poisson(4.0), 600), stats.expon(scale=0.25).cdf).pvalue > 0.01
    bursty = stats.gamma(0.25, scale=1.0)  # mean 1/4 s, shape 0.25
    assert stats.kstest(gaps(Gamma(4.0, burstiness=0.25), 600), bursty.cdf).pvalue > 0.01
    assert statistics.stdev(gaps(Gamma(4.0, burstiness=100.0), 600)) == pytest.approx(0.025, rel=0.1)


def test_a_seed_means_the_same_process_at_every_rate() -> None:
    slow, fast = arrive(Poisson(1.0), 50, seed=3), arrive(Poisson(8.0), 50, seed=3)
    assert fast == pytest.approx([at / 8.0 for at in slow])


def test_the_clock_of_a_trace_is_stretched() -> None:
    recorded = [10.0, 10.0, 12.0, 20.0]
    assert arrive(TraceClock(speed=2.0), 4, seed=1, recorded_s=recorded) == (0.0, 0.0, 1.0, 5.0)
    with pytest.raises(ValueError, match="the trace has 4 arrivals"):
        arrive(TraceClock(), 5, seed=1, recorded_s=recorded)
    assert arrive(ClosedLoop(concurrency=2), 3, seed=1) == (0.0, 0.0, 0.0)


def test_the_clock_of_a_trace_is_stretched_to_a_rate_of_the_requests_that_are_sent() -> None:
    recorded = [10.0, 10.0, 12.0, 20.0, 21.0, 23.0]  # 3 gaps in 10 s are 0.3/s, 2 gaps in 3 s 0.67/s
    assert arrive(TraceRate(3.0), 4, seed=1, recorded_s=recorded) == pytest.approx((0.0, 0.0, 0.2, 1.0))
    assert arrive(TraceRate(2.0), 3, seed=1, first=3, recorded_s=recorded) == pytest.approx((0.0, 1 / 3, 1.0))
    for count in (1, 2):
        with pytest.raises(ValueError, match=f"{count} of the trace's requests .* no rate"):
            arrive(TraceRate(3.0), count, seed=1, recorded_s=recorded)


def test_no_draw_depends_on_another() -> None:
    wide = LogNormal(median_tokens=100.0, sigma=1.0, low=1, high=4096)
    short = synthetic(wide, wide, Poisson(2.0), 5, seed=9)
    long = synthetic(wide, wide, Poisson(2.0), 50, seed=9)
    other_outputs = synthetic(wide, Fixed(8), Poisson(2.0), 5, seed=9)
    assert long.requests[:5] == short.requests
    assert [request.prompt_tokens for request in other_outputs.requests] == [
        request.prompt_tokens for request in short.requests
    ]
    assert [request.arrival_s for request in other_outputs.requests] == [
        request.arrival_s for request in short.requests
    ]
    assert synthetic(wide, wide, Poisson(2.0), 5, seed=10) != short


def test_prompts_answers_and_arrivals_have_streams_of_their_own() -> None:
    law = Uniform(1, 1000)
    requests = synthetic(law, law, Poisson(2.0), 100, seed=9).requests
    assert sum(request.prompt_tokens == request.output_tokens for request in requests) < 5
    assert stream(1, Purpose.ARRIVAL, 2).random() != stream(1, Purpose.CONTENT, 2).random()
    with pytest.raises(ValueError, match="64 bits"):
        stream(-1, Purpose.ARRIVAL)


def test_a_run_that_goes_on_has_arrivals_and_prompts_of_its_own() -> None:
    first = synthetic(Fixed(8), Fixed(1), Poisson(2.0), 20, seed=9)
    then = synthetic(Fixed(8), Fixed(1), Poisson(2.0), 20, seed=9, first=20)
    assert [request.index for request in then.requests] == list(range(20, 40))
    assert then.requests[0].arrival_s < 5.0
    assert then.requests[0].arrival_s != first.requests[0].arrival_s
    ids = [prompt_ids(request, CONTENT) for request in (*first.requests, *then.requests)]
    assert len(set(ids)) == 40


def test_short_prompts_of_a_small_vocabulary_differ() -> None:
    tiny = Content(seed=1, low=5, high=7)
    requests = synthetic(Fixed(5), Fixed(1), Constant(1.0), 32, seed=1).requests
    ids = [prompt_ids(request, tiny) for request in requests]
    assert len(set(ids)) == 32  # all there are
    assert {token for prompt in ids for token in prompt} == {5, 6}
    with pytest.raises(ValueError, match="cannot tell prompts apart"):
        Content(seed=1, low=5, high=6)


def test_equal_hash_ids_give_equal_tokens_at_every_scale() -> None:
    records = list(read_mooncake(lines_of(MOONCAKE)))
    for scale in (Scale(), Scale(block_tokens=16)):
        requests = from_trace(records, TraceClock(), seed=1, scale=scale).requests
        first, second = (prompt_ids(request, CONTENT) for request in requests[:2])
        assert first[: scale.block_tokens] == second[: scale.block_tokens]  # both begin with block 0
        assert first[scale.block_tokens] != second[scale.block_tokens]  # then 1 and 14
        assert len(first) == requests[0].prompt_tokens


def test_a_block_that_ends_early_begins_like_the_whole_one() -> None:
    records = [
        TraceRecord(at_s=0.0, prompt_tokens=700, output_tokens=1, blocks=(4, 5)),
        TraceRecord(at_s=0.0, prompt_tokens=1024, output_tokens=1, blocks=(4, 5)),
    ]
    part, all_of_it = (prompt_ids(r, CONTENT) for r in from_trace(records, TraceClock(), seed=1).requests)
    assert all_of_it[:700] == part


def test_lengths_are_scaled_by_blocks_and_the_scale_is_stated() -> None:
    scale = Scale(block_tokens=8, context_tokens=130)
    record = TraceRecord(at_s=0.0, prompt_tokens=6758, output_tokens=500)  # 13 blocks and 102 tokens
    scaled = scale.apply(record)
    assert scaled.prompt_tokens == 13 * 8 + 2  # 102 x 8 / 512 = 1.6
    assert scaled.output_tokens == 8  # 500 x 8 / 512 = 7.8
    longer = TraceRecord(at_s=0.0, prompt_tokens=8192, output_tokens=512)
    assert scale.apply(longer).prompt_tokens == 128 - 6
    assert scale.notes([record, longer]) == (
        "prompt lengths x 8/512 = 0.01562, output lengths x 8/512 = 0.01562, rounded up",
        "1 of 2 requests cut to 130 tokens of context",
    )
    assert Scale().notes([record]) == ()


def test_the_largest_scale_that_fits_is_found() -> None:
    records = list(read_mooncake(lines_of(MOONCAKE)))  # 8030 tokens and fewer
    scale = fit(records, context_tokens=2048)
    assert not any(map(scale.cuts, records))
    assert any(map(Scale(block_tokens=scale.block_tokens + 1, context_tokens=2048).cuts, records))
    assert fit(records, context_tokens=2048, cover=0.2).block_tokens > scale.block_tokens
    with pytest.raises(ValueError, match="not even 1/512"):
        fit(records, context_tokens=2)


def test_prompts_of_a_file_keep_their_text() -> None:
    records = [PromptRecord(prompt="a", output_tokens=3), PromptRecord(prompt="b")]
    first, second = from_prompts(records, Fixed(9), Constant(1.0), seed=1).requests
    assert (first.text, first.output_tokens, second.text, second.output_tokens) == ("a", 3, "b", 9)
    with pytest.raises(ValueError, match="brings its prompt as text"):
        prompt_ids(first, CONTENT)
    with pytest.raises(ValueError, match="the trace has 0 arrivals"):
        from_prompts(records, Fixed(9), TraceClock(), seed=1)
