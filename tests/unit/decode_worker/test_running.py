"""Does every sequence get one token per step, leave at the right one, and say nothing once it is cancelled?"""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decode_worker.running import Running, RunningSequence, StopLimits, row, rows
from engine.port import NoMatcher, RowFailed
from engine.stopping import finish_reason, token_limit
from runtime.params import FinishReason, SamplingParams
from runtime.stages import DecodeStages
from runtime.tokens import SampledToken
from tests.support.cells import peer
from transport.messages.worker import Admit, TokenStep

EOS = 2
LIMITS = StopLimits(eos_token_ids=(EOS,), max_model_len=40)


def sequence(request_id: int, *, prompt: int = 4, max_tokens: int = 5, min_tokens: int = 0) -> RunningSequence:
    admit = Admit(
        request_id=request_id,
        transfer_id=request_id,
        peer=peer("p0"),
        prompt=tuple(range(100, 100 + prompt)),
        sampling=SamplingParams(max_tokens=max_tokens, min_tokens=min_tokens, seed=0),
        pages=3,
    )
    return RunningSequence(admit, (7, 8, 9), [50], intake=DecodeStages(intake_s=0.25, verify_s=0.125), joined_at=10.0)


def running(*sequences: RunningSequence, max_batch: int = 8) -> Running:
    batch = Running(max_batch, LIMITS)
    for one in sequences:
        batch.join(one)
    return batch


def step(batch: Running, *token_ids: int, now: float = 11.0) -> tuple[list[TokenStep], list[int]]:
    told, leaving = batch.apply(batch.plan_step(now), [SampledToken(token) for token in token_ids], now)
    return told, [one.request_id for one in leaving]


# --- one step --------------------------------------------------------------------------------------------------------


def test_the_newest_token_is_fed_behind_everything_that_is_in_the_pages() -> None:
    one = sequence(1, prompt=4)
    fed = row(one)
    assert (fed.token_ids, fed.start, fed.pages) == ((50,), 4, (7, 8, 9))
    assert fed.sample is not None
    assert (fed.sample.index, list(fed.sample.output), fed.sample.prompt) == (1, [50], (100, 101, 102, 103))
    step(running(one), 51)
    fed = row(one)
    assert (fed.token_ids, fed.start) == ((51,), 5)
    assert fed.sample is not None
    assert (fed.sample.index, list(fed.sample.output)) == (2, [50, 51])


def test_tokens_are_numbered_from_token_1_which_prefill_made() -> None:
    batch = running(sequence(1), sequence(2))
    assert step(batch, 60, 70) == ([TokenStep(1, 1, SampledToken(60)), TokenStep(2, 1, SampledToken(70))], [])
    assert step(batch, 61, 71) == ([TokenStep(1, 2, SampledToken(61)), TokenStep(2, 2, SampledToken(71))], [])


def test_a_sequence_leaves_with_its_last_token() -> None:
    batch = running(sequence(1, max_tokens=3), sequence(2))
    assert step(batch, 60, 70)[1] == []
    told, leaving = step(batch, 61, 71)
    assert [(one.request_id, one.finish) for one in told] == [(1, FinishReason.LENGTH), (2, None)]
    assert leaving == [1]
    assert list(batch.sequences) == [2]


def test_a_stopping_token_ends_a_sequence_but_not_before_min_tokens() -> None:
    batch = running(sequence(1), sequence(2, min_tokens=2))
    told, leaving = step(batch, EOS, EOS)
    assert [one.finish for one in told] == [FinishReason.STOP, None]
    assert leaving == [1]


def test_the_context_ends_a_sequence() -> None:
    batch = running(sequence(1, prompt=38, max_tokens=9))
    assert step(batch, 60)[0][0].finish is FinishReason.LENGTH


def test_a_step_takes_the_oldest_sequences_and_no_more_than_fit() -> None:
    batch = running(*(sequence(i) for i in (3, 1, 2)), max_batch=2)
    assert [one.request_id for one in batch.plan_step(11.0)] == [3, 1]


def test_joining_twice_is_a_broken_invariant() -> None:
    batch = running(sequence(1))
    with pytest.raises(AssertionError, match="joined twice"):
        batch.join(sequence(1))


# --- cancel ----------------------------------------------------------------------------------------------------------


def test_a_sequence_cancelled_during_a_step_leaves_without_a_word() -> None:
    batch = running(sequence(1), sequence(2))
    planned = batch.plan_step(11.0)
    batch.sequences[1].cancelled = True
    told, leaving = batch.apply(planned, [SampledToken(60), SampledToken(70)], 12.0)
    assert [one.request_id for one in told] == [2]
    assert [one.request_id for one in leaving] == [1]
    assert leaving[0].output == [50]
    assert list(batch.sequences) == [2]


def test_a_sequence_cancelled_between_steps_is_in_no_step() -> None:
    batch = running(sequence(1), sequence(2))
    dropped = batch.drop_cancelled(1)
    assert dropped is not None
    assert dropped.request_id == 1
    assert batch.drop_cancelled(1) is None
    assert [one.request_id for one in batch.plan_step(11.0)] == [2]


def test_a_cancelled_sequence_is_not_planned() -> None:
    batch = running(sequence(1), sequence(2))
    batch.sequences[1].cancelled = True
    assert [one.request_id for one in batch.plan_step(11.0)] == [2]


# --- stages ----------------------------------------------------------------------------------------------------------


def test_stages_are_what_the_clock_said() -> None:
    one = sequence(1)
    batch = running(one)
    assert (one.stages().join_s, one.stages().decode_s, one.stages().steps) == (0.0, 0.0, 0)
    batch.apply(batch.plan_step(11.0), [SampledToken(60)], 11.5)
    batch.apply(batch.plan_step(12.0), [SampledToken(61)], 13.0)
    stages = one.stages()
    assert (stages.intake_s, stages.verify_s, stages.join_s, stages.decode_s, stages.steps) == (
        0.25,
        0.125,
        1.0,
        2.0,
        2,
    )


def test_a_sequence_cancelled_in_its_first_step_has_not_decoded() -> None:
    batch = running(sequence(1))
    planned = batch.plan_step(11.0)
    batch.sequences[1].cancelled = True
    _, (left,) = batch.apply(planned, [SampledToken(60)], 12.0)
    assert (left.stages().join_s, left.stages().decode_s, left.stages().steps) == (1.0, 0.0, 0)


# --- against a loop that knows one sequence at a time ----------------------------------------------------------------


def alone(one: RunningSequence, tokens: list[int]) -> list[tuple[int, int, FinishReason | None]]:
    """(index, token, finish) of a sequence that decodes by itself."""
    said: list[tuple[int, int, FinishReason | None]] = []
    for index, token in enumerate(tokens, 1):
        prompt = len(one.request.prompt)
        finish = finish_reason(token, index, one.request.sampling, (EOS,), prompt, LIMITS.max_model_len)
        said.append((index, token, finish))
        if finish is not None:
            break
    return said


@given(
    st.lists(st.tuples(st.integers(1, 38), st.integers(2, 9), st.integers(0, 5)), min_size=1, max_size=6),
    st.dictionaries(st.integers(0, 5), st.tuples(st.integers(0, 8), st.booleans()), max_size=3),
    st.integers(1, 6),
    st.integers(0, 1 << 16),
)
def test_a_batch_says_of_each_sequence_what_it_would_say_alone(
    shapes: list[tuple[int, int, int]], cancels: dict[int, tuple[int, bool]], max_batch: int, seed: int
) -> None:
    """Sequences join at any step, are cancelled between or during steps, and share a batch that may be too small."""
    chance = random.Random(seed)
    draws = [[chance.choice((EOS, 60, 61, 62)) for _ in range(9)] for _ in shapes]
    coming = {i: sequence(i, prompt=prompt, max_tokens=limit) for i, (prompt, limit, _) in enumerate(shapes)}
    expected = {i: alone(one, draws[i]) for i, one in coming.items()}
    said: dict[int, list[tuple[int, int, FinishReason | None]]] = {i: [] for i in coming}
    batch = running(max_batch=max_batch)
    number = 0
    while coming or batch.sequences:
        for i in [i for i in coming if shapes[i][2] <= number]:
            batch.join(coming.pop(i))
        now = {i: during for i, (at, during) in cancels.items() if at == number and i in batch.sequences}
        for i in [i for i, during in now.items() if not during]:
            batch.drop_cancelled(i)
        planned = batch.plan_step(float(number))
        assert [one.request_id for one in planned] == list(batch.sequences)[:max_batch]
        for one in planned:
            one.cancelled = now.get(one.request_id, False)
        tokens = [SampledToken(draws[one.request_id][len(one.output) - 1]) for one in planned]
        told, leaving = batch.apply(planned, tokens, float(number))
        assert {one.request_id for one in told}.isdisjoint(now), "a cancelled sequence speaks"
        for word in told:
            said[word.request_id].append((word.index, word.token.token_id, word.finish))
        finished = {word.request_id for word in told if word.finish is not None}
        assert {one.request_id for one in leaving} == finished | {one.request_id for one in planned if one.cancelled}
        number += 1
        assert number < 100, "a sequence never leaves"
    for i, words in expected.items():
        assert said[i] == words[: len(said[i])]
        assert len(said[i]) == len(words) or i in cancels


# --- a row without a token -------------------------------------------------------------------------------------------


def test_a_sequence_without_a_next_token_leaves_with_the_reason_and_the_others_go_on() -> None:
    batch = running(sequence(1), sequence(2), sequence(3))
    planned = batch.plan_step(11.0)
    told, leaving = batch.apply(planned, [SampledToken(60), RowFailed("dead end"), SampledToken(80)], 11.0)
    assert told == [TokenStep(1, 1, SampledToken(60)), TokenStep(3, 1, SampledToken(80))]
    assert [(one.request_id, one.error, one.output) for one in leaving] == [(2, "dead end", [50])]
    assert list(batch.sequences) == [1, 3]


def test_a_cancelled_sequence_says_nothing_of_its_failure() -> None:
    batch = running(sequence(1))
    planned = batch.plan_step(11.0)
    planned[0].cancelled = True
    told, leaving = batch.apply(planned, [RowFailed("dead end")], 11.0)
    assert (told, [one.error for one in leaving]) == ([], [None])


def test_the_matcher_goes_with_every_row() -> None:
    one = sequence(1)
    one.matcher = NoMatcher("none")
    fed = row(one)
    assert fed.sample is not None
    assert fed.sample.matcher is one.matcher


# --- planned while a step is under way -------------------------------------------------------------------------------


def plan_behind(batch: Running, under_way: list[RunningSequence]) -> list[tuple[int, int | None]]:
    """The next step's requests, and what each of them follows."""
    planned = batch.next_step(under_way)
    return [(one.request_id, fed.follows) for one, fed in zip(planned, rows(planned, under_way), strict=True)]


def test_who_is_in_a_step_under_way_follows_it_and_who_joins_does_not() -> None:
    batch = running(sequence(3), sequence(1))
    under_way = batch.plan_step(11.0)
    batch.join(sequence(2))
    assert plan_behind(batch, under_way) == [(3, 0), (1, 1), (2, None)]


def test_a_row_that_follows_is_placed_and_numbered_behind_the_token_that_is_not_known() -> None:
    one = sequence(1, prompt=4)
    known, following = row(one), row(one, follows=5)
    assert (following.start, following.follows, len(following.token_ids)) == (known.start + 1, 5, 1)
    assert known.sample is not None
    assert following.sample is not None
    assert following.sample.index == known.sample.index + 1


def test_who_ends_by_length_with_a_step_under_way_is_not_in_the_next_one() -> None:
    batch = running(sequence(1, max_tokens=2), sequence(2, max_tokens=3), sequence(3, prompt=38, max_tokens=9))
    assert plan_behind(batch, batch.plan_step(11.0)) == [(2, 1)]


def test_there_is_no_next_step_where_one_of_it_has_to_read_the_token_that_is_not_known() -> None:
    reader = sequence(1, max_tokens=3)
    reader.request = msgspec.structs.replace(
        reader.request, sampling=SamplingParams(max_tokens=3, frequency_penalty=0.1, seed=0)
    )
    batch = running(sequence(2), reader)
    under_way = batch.plan_step(11.0)
    assert plan_behind(batch, under_way) == []
    assert plan_behind(batch, under_way[:1]) == [(2, 0), (1, None)], "its own tokens are all known"
    batch.apply(under_way, [SampledToken(60), SampledToken(61)], 12.0)
    assert plan_behind(batch, batch.plan_step(12.0)) == [(2, 0)], "it ends with the step under way"


def test_what_a_step_makes_of_a_sequence_that_has_left_meanwhile_is_dropped() -> None:
    batch = running(sequence(1), sequence(2), sequence(3))
    first = batch.plan_step(11.0)
    second = batch.next_step(first)
    batch.sequences[2].cancelled = True
    told, leaving = batch.apply(first, [SampledToken(EOS), SampledToken(70), SampledToken(80)], 12.0)
    assert ([one.request_id for one in told], [one.request_id for one in leaving]) == ([1, 3], [1, 2])
    told, leaving = batch.apply(second, [SampledToken(61), SampledToken(71), SampledToken(81)], 13.0)
    assert (told, leaving) == ([TokenStep(3, 2, SampledToken(81))], [])


@given(st.integers(1, 39), st.integers(1, 12), st.integers(0, 12))
def test_a_row_that_is_computed_for_nothing_stays_within_what_was_reserved(prompt: int, limit: int, stop: int) -> None:
    """Reserved is room for the prompt and all tokens but the last, which is never fed."""
    one = sequence(1, prompt=prompt, max_tokens=limit)
    reserved = prompt + token_limit(one.request.sampling, prompt, LIMITS.max_model_len) - 1
    batch = running(one) if reserved > prompt else running()
    ends, step = [prompt], batch.plan_step(11.0)
    fed = rows(step)
    while step:
        ends += [one.end for one in fed]
        behind = batch.next_step(step)
        fed = rows(behind, step)
        ends += [one.end for one in fed]
        batch.apply(step, [SampledToken(EOS if len(step[0].output) > stop else 60)], 12.0)
        step = [one for one in behind if one.request_id in batch.sequences]
    assert max(ends) <= reserved
