"""May a step be fed with tokens that the host has not seen? What a choice is before and after it has come."""

import math
from dataclasses import replace

import pytest
import torch

from engine.sampling import InvalidLogitsError, choose, sample
from runtime.params import SamplingParams
from tests.unit.engine.test_sampling import EOS, VARIANTS, case, spec


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_choice_depends_on_its_output_only_where_the_parameters_say_so(variant: str) -> None:
    differences = 0
    for number in range(60):
        logits, ask = case(variant, number)
        blind = replace(ask, output=())
        differences += sample(logits[None], [ask], EOS) != sample(logits[None], [blind], EOS)
    assert (differences > 0) == SamplingParams(**VARIANTS[variant]).reads_output


def test_a_grammar_reads_its_output() -> None:
    assert SamplingParams(grammar="start: /a/").reads_output


def test_what_was_chosen_can_be_fed_before_the_host_has_read_it() -> None:
    cases = [case(variant, number) for number in range(3) for variant in VARIANTS]
    logits, specs = torch.stack([each for each, _ in cases]), [ask for _, ask in cases]
    choice = choose(logits, specs, EOS)
    assert (choice.token_ids.dtype, choice.token_ids.shape) == (torch.int64, (len(cases),))
    tokens = choice.to_host().tokens()
    assert choice.token_ids.tolist() == [token.token_id for token in tokens]
    assert tokens == sample(logits, specs, EOS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_that_means_nothing_is_of_the_vocabulary_all_the_same(variant: str, bad: float) -> None:
    """The next step may be fed with it, before the host learns that this one has failed."""
    logits = torch.full((2, 61), bad)
    logits[1] = torch.linspace(-1, 1, 61)
    choice = choose(logits, [spec(**VARIANTS[variant], logprobs=3)] * 2, EOS)
    assert all(0 <= token < 61 for token in choice.token_ids.tolist())
    with pytest.raises(InvalidLogitsError, match="row 0"):
        choice.tokens()


def test_no_rows_are_no_tokens() -> None:
    choice = choose(torch.empty(0, 7), [], EOS)
    assert choice.token_ids.shape == (0,)
    assert choice.to_host().tokens() == []
