"""Does a run say what it was asked, what it left out, and where it differs from the plan?"""

from pathlib import Path

import pytest
from msgspec.structs import replace

from launch.evaluation.arrivals import Arrivals, ClosedLoop, Constant, Gamma, Poisson, TraceClock
from launch.evaluation.conduct import without_key
from launch.evaluation.lengths import Fixed
from launch.evaluation.recording import Recording, document
from launch.evaluation.results import Outcome, RequestResult
from launch.evaluation.slo import Slo
from launch.evaluation.study import Run, Study, System
from launch.evaluation.summary import deviations, summarise
from launch.evaluation.workload import Workload, synthetic

PLAN = Constant(2.0)
WORKLOAD = synthetic(Fixed(8), Fixed(2), PLAN, 40, seed=0)


def results(workload: Workload, tokens: int = 2) -> list[RequestResult]:
    return [
        RequestResult(
            index=request.index,
            arrival_s=request.arrival_s,
            sent_s=request.arrival_s,
            token_s=tuple(request.arrival_s + 0.1 * (1 + token) for token in range(tokens)),
            end_s=request.arrival_s + 0.3,
            prompt_tokens=8,
            asked_tokens=2,
        )
        for request in workload.requests
    ]


def summary(
    answers: list[RequestResult], arrivals: Arrivals = PLAN, warm_up_s: float = 0.0, cool_down_s: float = 0.0
) -> Run:
    return summarise(
        "001",
        "1P1D",
        "single",
        requests=WORKLOAD.requests,
        arrivals=arrivals,
        results=answers,
        slo=Slo(ttft_s=0.2),
        warm_up_s=warm_up_s,
        cool_down_s=cool_down_s,
    )


def test_a_run_is_what_was_planned_and_what_came() -> None:
    run = summary(results(WORKLOAD))
    assert (run.rate_per_s, run.requests, run.prompt_tokens, run.output_tokens) == (2.0, 40, 8.0, 2.0)
    assert run.attainments is not None
    assert run.attainments.every.met == 40
    assert run.dispatch is not None
    assert run.dispatch.honest
    assert run.vllm["total_input_tokens"] == 320
    assert run.vllm["total_output_tokens"] == 80
    assert run.vllm["num_prompts"] == 40
    assert deviations(run, results(WORKLOAD), 40) == ()


def test_warm_up_and_cool_down_leave_out_arrivals() -> None:
    run = summary(results(WORKLOAD), warm_up_s=5.0, cool_down_s=5.0)
    assert run.measures.outcomes[Outcome.COMPLETED] == 20
    assert run.attainments is not None
    assert run.attainments.every.total == 20
    assert run.requests == 40


def test_a_run_too_short_for_them_says_so() -> None:
    early = results(WORKLOAD)[:4]
    run = replace(summary(early, warm_up_s=5.0), stopped=True)
    assert run.measures.outcomes[Outcome.COMPLETED] == 4
    notes = " ".join(deviations(run, early, 40, warm_up_s=5.0))
    assert "stopped by hand after 4 of 40 requests: 0 under way" in notes
    assert "warm-up" in notes


def test_answers_shorter_than_asked_are_said() -> None:
    short = results(WORKLOAD, tokens=1)
    assert any("40 of 40 answers are shorter" in note for note in deviations(summary(short), short, 40))


def test_a_closed_loop_has_no_plan_and_a_trace_the_rate_of_its_arrivals() -> None:
    closed = summary(results(WORKLOAD), ClosedLoop(3))
    assert (closed.rate_per_s, closed.dispatch, closed.saturation) == (None, None, None)
    assert closed.vllm["max_concurrency"] == 3
    assert closed.vllm["request_rate"] is None
    assert summary(results(WORKLOAD), TraceClock(3.0)).rate_per_s == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("arrivals", "burstiness"),
    [(Poisson(2.0), 1.0), (Gamma(2.0, 0.5), 0.5), (PLAN, None), (ClosedLoop(3), None), (TraceClock(1.0), None)],
)
def test_only_random_gaps_have_a_burstiness(arrivals: Arrivals, burstiness: float | None) -> None:
    assert summary(results(WORKLOAD), arrivals).vllm["burstiness"] == burstiness


@pytest.mark.parametrize("name", ["study.json", "001-1P1D-single.jsonl"])
def test_results_are_never_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match="holds results already"):
        Recording(tmp_path)


def test_two_studies_that_begin_in_one_second_do_not_share_a_directory(tmp_path: Path) -> None:
    Recording(tmp_path / "out", new=True)
    with pytest.raises(ValueError, match="cannot write"):
        Recording(tmp_path / "out", new=True)


def test_only_a_single_run_has_the_keys_of_vllm_at_the_top_and_they_hide_nothing() -> None:
    run = summary(results(WORKLOAD))
    study = Study(
        title="t",
        command="c",
        created="2026-01-01T00:00:00Z",
        version="0",
        commit=None,
        environment={"model": "m"},
        workload=(),
        slo=None,
        systems=(System(name="1P1D", description="d"),),
        runs=(run,),
    )
    told = document(study)
    assert told["mean_ttft_ms"] == pytest.approx(100.0)
    assert not {*run.vllm, "date", "backend", "label", "model_id"} & set(Study.__struct_fields__)
    both = document(Study(**{name: getattr(study, name) for name in Study.__struct_fields__} | {"runs": (run, run)}))
    assert "mean_ttft_ms" not in both


def test_a_typed_key_is_in_no_document() -> None:
    assert without_key(("eval", "--api-key", "secret", "--rate", "1")) == ["eval", "--api-key", "...", "--rate", "1"]
    assert without_key(("eval", "--api-key=secret")) == ["eval", "--api-key=..."]
