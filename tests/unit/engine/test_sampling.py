"""Does `sample` choose what a slow and obvious implementation of the same rules chooses?"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no type information
from torch import Tensor

from engine.port import SampleSpec, TokenMask
from engine.randomness import uniform
from engine.sampling import InvalidLogitsError, sample
from runtime.params import SamplingParams
from runtime.tokens import SampledToken, TokenLogprobs

EOS = (2, 3)
Floats = NDArray[np.float64]


def spec(index: int = 0, prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), **params: Any) -> SampleSpec:
    params.setdefault("seed", 0)
    return SampleSpec(SamplingParams(**params), index, prompt, output)


def ids(tokens: list[SampledToken]) -> list[int]:
    return [token.token_id for token in tokens]


def one(logits: list[float] | Tensor, ask: SampleSpec, eos: tuple[int, ...] = EOS) -> SampledToken:
    return sample(torch.as_tensor(logits, dtype=torch.float32)[None], [ask], eos)[0]


# --- the oracle ------------------------------------------------------------------------------------------------------


def reference_scores(logits: Floats, ask: SampleSpec, eos: tuple[int, ...]) -> Floats:
    """Logits after bias, mask and penalties, token by token."""
    p, scores = ask.params, logits.copy()
    for token in range(len(scores)):
        scores[token] += p.logit_bias.get(token, 0.0)
        if ask.index < p.min_tokens and (token in eos or token in p.stop_token_ids):
            scores[token] = -math.inf
        if token in ask.prompt or token in ask.output:
            scores[token] *= p.repetition_penalty if scores[token] <= 0 else 1 / p.repetition_penalty
        count = list(ask.output).count(token)
        scores[token] -= p.presence_penalty * (count > 0) + p.frequency_penalty * count
    return scores


def reference_probabilities(scores: Floats, p: SamplingParams) -> Floats:
    """The distribution that is drawn from: a full sort, then one token after the other."""
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    probabilities = np.exp((scores - scores.max()) / p.temperature)
    if p.top_k:
        probabilities[order[p.top_k :]] = 0
    probabilities /= probabilities.sum()
    kept, mass = 0, 0.0
    while kept < len(order) and mass < p.top_p - 1e-12:
        mass += probabilities[order[kept]]
        kept += 1
    if p.top_p < 1:
        probabilities[order[max(kept, 1) :]] = 0
    probabilities[probabilities < p.min_p * probabilities.max()] = 0
    return np.asarray(probabilities / probabilities.sum())


def reference(logits: Floats, ask: SampleSpec, eos: tuple[int, ...]) -> int:
    scores = reference_scores(logits, ask, eos)
    if ask.params.temperature == 0:
        return int(scores.argmax())
    assert ask.params.seed is not None
    cumulative = np.cumsum(reference_probabilities(scores, ask.params))
    return int(np.searchsorted(cumulative, uniform(ask.params.seed, ask.index) * cumulative[-1], side="right"))


VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "cool": {"temperature": 0.3},
    "hot": {"temperature": 3.0},
    "top_k": {"top_k": 7},
    "top_k above vocabulary": {"top_k": 10_000},
    "top_p": {"top_p": 0.8},
    "small top_p": {"top_p": 1e-9},
    "large top_p": {"top_p": 0.9999},
    "min_p": {"min_p": 0.1},
    "all truncations": {"top_k": 20, "top_p": 0.9, "min_p": 0.05, "temperature": 0.7},
    "bias": {"logit_bias": {5: 3.0, 6: -100.0, 9: 100.0}, "temperature": 0.0},
    "bias drawn": {"logit_bias": {5: 3.0, 6: -100.0, 9: 2.5}},
    "min_tokens": {"min_tokens": 5, "stop_token_ids": (11, 12)},
    "min_tokens greedy": {"min_tokens": 5, "stop_token_ids": (11, 12), "temperature": 0.0},
    "repetition": {"repetition_penalty": 1.8},
    "repetition reward": {"repetition_penalty": 0.5, "temperature": 0.0},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.8, "temperature": 0.0},
    "negative penalties": {"frequency_penalty": -0.4, "presence_penalty": -1.0},
    "everything": {
        "logit_bias": {5: 3.0, 2: 9.0},
        "min_tokens": 5,
        "stop_token_ids": (11, 12),
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "temperature": 1.3,
        "top_k": 30,
        "top_p": 0.95,
        "min_p": 0.01,
    },
}


def case(variant: str, number: int, vocab: int = 61) -> tuple[Tensor, SampleSpec]:
    """Random logits in which the tokens that a variant touches matter, and a spec whose index is `number` % 8."""
    rng = np.random.default_rng(number)
    logits = rng.normal(0, 2.5, vocab).astype(np.float32)
    logits[rng.integers(2, 13, 3)] += 5
    output = tuple(int(token) for token in rng.integers(0, 13, number % 8))
    prompt = tuple(int(token) for token in rng.integers(5, 20, 12))
    return torch.from_numpy(logits), spec(number % 8, prompt, output, seed=number - 20, **VARIANTS[variant])


# --- against the oracle ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_parameter_equals_the_oracle(variant: str) -> None:
    cases = [case(variant, number) for number in range(60)]
    got = ids(sample(torch.stack([logits for logits, _ in cases]), [ask for _, ask in cases], EOS))
    assert got == [reference(logits.double().numpy(), ask, EOS) for logits, ask in cases]


def test_rows_of_a_mixed_batch_equal_the_rows_alone() -> None:
    cases = [case(variant, number, vocab=997) for number in range(4) for variant in VARIANTS]
    together = sample(torch.stack([logits for logits, _ in cases]), [ask for _, ask in cases], EOS)
    alone = [sample(logits[None], [ask], EOS)[0] for logits, ask in cases]
    assert together == alone


FEW = [3.0, 2.0, 2.0, 1.0, 0.5, -1.0, -math.inf, 2.5]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 2.5},
        {"temperature": 0.4},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.3},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "min_p": 0.1},
    ],
    ids=str,
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    n = 6000
    asks = [spec(index, seed=99, **params) for index in range(n)]
    counts = np.bincount(ids(sample(torch.tensor(FEW).expand(n, -1), asks, EOS)), minlength=len(FEW))
    expected = reference_probabilities(np.array(FEW), asks[0].params) * n
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


# --- ties, borders, extremes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [3, 60_000])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(monkeypatch: pytest.MonkeyPatch, vocab: int) -> None:
    logits = torch.full((vocab,), 1.0)
    logits[0] = logits[-1] = -math.inf
    for number, token in ((0.0, 1), (1 - 2**-53, vocab - 2)):
        monkeypatch.setattr("engine.sampling.uniform", lambda *_, number=number: number)
        assert one(logits, spec()).token_id == token


def test_ties_go_to_the_lowest_id() -> None:
    flat = torch.zeros(200, 10)
    asks = [spec(index, seed=1) for index in range(200)]

    def drawn(**params: Any) -> set[int]:
        return set(ids(sample(flat, [spec(ask.index, seed=1, **params) for ask in asks], EOS)))

    assert drawn(temperature=0.0) == {0}
    assert drawn(top_k=1) == {0}
    assert drawn(top_k=3) == {0, 1, 2}
    assert drawn(top_p=0.5) == {0, 1, 2, 3, 4}
    assert drawn(min_p=1.0) == set(range(10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_and_the_top_k_of_one_is_greedy(dtype: torch.dtype) -> None:
    logits = torch.randn(30, 5000, generator=torch.Generator().manual_seed(3)).to(dtype)  # bfloat16: full of ties
    greedy = ids(sample(logits, [spec(temperature=0.0)] * 30, EOS))
    assert greedy == [int(row.double().numpy().argmax()) for row in logits]
    assert greedy == ids(sample(logits, [spec(top_k=1)] * 30, EOS))
    assert greedy == ids(sample(logits, [spec(top_p=1e-6)] * 30, EOS))


@pytest.mark.parametrize("temperature", [1e-6, 1e-45, 5e-324])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(4)) * 10
    asks = [spec(index, temperature=temperature) for index in range(20)]
    assert ids(sample(logits, asks, EOS)) == logits.argmax(-1).tolist()


def test_vocabulary_of_one() -> None:
    for params in ({}, {"temperature": 0.0}, {"top_k": 1}, {"top_k": 5, "top_p": 0.5, "min_p": 0.5}):
        assert one([-3.0], spec(logprobs=3, **params)) == SampledToken(0, TokenLogprobs(0.0, ((0, 0.0),)))


@pytest.mark.parametrize("params", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.2}, {"temperature": 0.0}], ids=str)
def test_all_but_one_token_impossible(params: dict[str, Any]) -> None:
    logits = torch.full((6,), -math.inf)
    logits[4] = -50.0
    assert {one(logits, spec(index, **params)).token_id for index in range(20)} == {4}
    masked = [9.0, 9.0, 9.0, 9.0, -50.0, 9.0]
    ask = [spec(index, min_tokens=99, stop_token_ids=(5,), **params) for index in range(20)]
    assert {one(masked, each, eos=(0, 1, 2, 3)).token_id for each in ask} == {4}


def test_bias_of_100_decides_and_unknown_ids_do_nothing() -> None:
    logits = [0.0, 5.0, 10.0, 20.0]
    assert one(logits, spec(logit_bias={1: 100.0})).token_id == 1
    assert one(logits, spec(logit_bias={3: -100.0}, temperature=0.0)).token_id == 2
    outside = spec(logit_bias={4: 100.0}, stop_token_ids=(77,), min_tokens=1, temperature=0.0)
    assert one(logits, outside, eos=(4, 9)).token_id == 3


def test_ignore_eos_does_not_mask_it() -> None:
    logits = [0.0, 0.0, 9.0, 0.0]
    assert one(logits, spec(temperature=0.0, ignore_eos=True)).token_id == 2
    assert one(logits, spec(temperature=0.0, ignore_eos=True, min_tokens=1)).token_id == 0


def test_repetition_counts_a_token_once_wherever_it_stands() -> None:
    for seen in ({"prompt": (0, 0)}, {"output": (0,), "index": 1}, {"prompt": (0,), "output": (0, 0), "index": 2}):
        ask = spec(temperature=0.0, repetition_penalty=2.0, **seen)
        assert one([4.0, 2.1], ask).token_id == 1  # 4 / 2 < 2.1
        assert one([4.5, 2.1], ask).token_id == 0  # not 4.5 / 4
        assert one([-1.0, -1.5], ask).token_id == 1  # -1 * 2 < -1.5
        assert one([-0.1, -0.15], ask).token_id == 1


def test_presence_and_frequency_look_at_the_output_only() -> None:
    def pick(presence: float, frequency: float, output: tuple[int, ...]) -> int:
        ask = spec(len(output), (0, 0), output, presence_penalty=presence, frequency_penalty=frequency, temperature=0.0)
        return one([3.0, 2.0], ask).token_id

    assert pick(2.0, 2.0, ()) == 0
    assert pick(1.5, 0.0, (0,)) == 1
    assert pick(0.9, 0.0, (0, 0, 0)) == 0
    assert pick(0.0, 0.6, (0,)) == 0
    assert pick(0.0, 0.6, (0, 0)) == 1


# --- reproducibility, reports, errors --------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    logits = torch.zeros(1000)
    assert one(logits, spec(7, seed=5)) == one(logits, spec(7, (1, 2), (3,) * 7, seed=5))
    assert len({one(logits, spec(index, seed=5)).token_id for index in range(50)}) > 40
    assert len({one(logits, spec(7, seed=seed)).token_id for seed in range(-25, 25)}) > 40


def test_golden_draws() -> None:
    """Seeded requests must give the same transcript in every version."""
    logits = (torch.arange(512) % 37 - torch.arange(512) % 11).float() / 8
    asks = [spec(index, seed=2024, temperature=0.9, top_p=0.97, top_k=200) for index in range(8)]
    assert ids(sample(logits.expand(8, -1), asks, EOS)) == [398, 368, 256, 70, 364, 33, 34, 331]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16]))
def test_logprobs_are_those_of_the_raw_logits(seed: int, vocab: int, dtype: torch.dtype) -> None:
    logits = (torch.randn(4, vocab, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)
    shape: dict[str, Any] = {
        "temperature": 0.5,
        "logit_bias": {0: 4.0},
        "top_k": 5,
        "repetition_penalty": 1.5,
        "prompt": (0,),
    }
    asks = [spec(logprobs=5, seed=seed, **shape), spec(**shape), spec(logprobs=0, **shape), spec(logprobs=20, **shape)]
    tokens = sample(logits, asks, ())
    assert tokens[1].logprobs is None
    for row, count in ((0, 5), (2, 0), (3, 20)):
        values = logits[row].double().numpy()
        expected = values - values.max() - np.log(np.exp(values - values.max()).sum())
        report = tokens[row].logprobs
        assert report is not None
        assert report.chosen == pytest.approx(expected[tokens[row].token_id], abs=1e-5)
        order = sorted(range(vocab), key=lambda token: (-values[token], token))[:count]
        assert [token for token, _ in report.top] == order
        assert [logprob for _, logprob in report.top] == pytest.approx(expected[order].tolist(), abs=1e-5)


def test_logits_stay_as_they_are() -> None:
    cases = [case(variant, number) for number in range(3) for variant in VARIANTS]
    logits = torch.stack([logits for logits, _ in cases])
    before = logits.clone()
    sample(logits, [ask for _, ask in cases], EOS)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_invalid_logits_are_an_error(variant: str, bad: float) -> None:
    logits, ask = case(variant, 3)
    sample(torch.stack((logits, logits)), [ask, ask], EOS)
    broken = logits.clone()
    broken[50] = bad
    for row, batch in ((0, (broken, logits)), (1, (logits, broken))):
        with pytest.raises(InvalidLogitsError, match=f"row {row}"):
            sample(torch.stack(batch), [ask, ask], EOS)


def test_nothing_left_to_choose_is_an_error() -> None:
    asked: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"top_k": 1, "top_p": 0.5, "min_p": 0.5, "logprobs": 2}]
    for params in asked:
        with pytest.raises(InvalidLogitsError, match="-inf"):
            one([1.0, 2.0], spec(min_tokens=1, **params), eos=(0, 1))
        with pytest.raises(InvalidLogitsError, match="-inf"):
            one([-math.inf] * 3, spec(**params))


def test_misuse() -> None:
    assert sample(torch.empty(0, 5), [], EOS) == []
    with pytest.raises(ValueError, match="2 specs for 1 rows"):
        sample(torch.zeros(1, 5), [spec(), spec()], EOS)
    with pytest.raises(ValueError, match="seed"):
        sample(torch.zeros(1, 5), [spec(seed=None)], EOS)
    assert ids(sample(torch.zeros(1, 5), [spec(seed=None, temperature=0.0)], EOS)) == [0]


# --- grammars --------------------------------------------------------------------------------------------------------


def mask_of(tokens: Iterable[int], vocab: int = 61) -> TokenMask:
    bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "min_tokens" not in VARIANTS[name]])
def test_a_mask_equals_logits_without_the_tokens(variant: str) -> None:
    """Whatever else is asked, forbidden tokens are as if the model had made them impossible."""
    for number in range(40):
        logits, ask = case(variant, number)
        allowed = np.random.default_rng(number).choice(61, 1 + number % 20, replace=False)
        without = logits.clone()
        without[np.setdiff1d(np.arange(61), allowed)] = -math.inf
        (token,) = sample(logits[None], [ask], EOS, {0: mask_of(allowed)})
        assert token.token_id in allowed
        if np.isfinite(reference_scores(without.numpy().astype(np.float64), ask, EOS)).any():
            assert token.token_id == one(without, ask).token_id


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_without_a_grammar_are_the_same_next_to_rows_with_one(dtype: torch.dtype) -> None:
    cases = [case(variant, number) for number in range(4) for variant in VARIANTS]
    logits = torch.stack([each for each, _ in cases]).to(dtype)
    specs = [ask for _, ask in cases]
    plain = sample(logits, specs, EOS)
    masks = {
        row: mask_of([row % 61]) for row in range(0, len(specs), 3) if specs[row].index >= specs[row].params.min_tokens
    }
    mixed = sample(logits, specs, EOS, masks)
    for row, (before, after) in enumerate(zip(plain, mixed, strict=True)):
        assert after == (SampledToken(row % 61) if row in masks else before)


def test_a_mask_leaves_the_reported_logprobs_alone() -> None:
    ask = spec(temperature=0.0, logprobs=3)
    (plain,) = sample(torch.tensor([[3.0, 2.0, 1.0]]), [ask], EOS)
    (masked,) = sample(torch.tensor([[3.0, 2.0, 1.0]]), [ask], EOS, {0: mask_of([1], 3)})
    assert (plain.token_id, masked.token_id) == (0, 1)
    assert plain.logprobs is not None
    assert masked.logprobs is not None
    assert masked.logprobs.top == plain.logprobs.top
    assert masked.logprobs.chosen == plain.logprobs.top[1][1]


def test_a_greedy_row_keeps_to_its_mask_and_an_allowed_token_may_be_hopeless() -> None:
    logits = torch.full((1, 40), 50.0)
    logits[0, 39] = -100.0
    for temperature in (0.0, 1.0):
        (token,) = sample(logits, [spec(temperature=temperature)], EOS, {0: mask_of([39], 40)})
        assert token.token_id == 39
