"""How does a test decode with an engine whose tokens it does not wait for?

A few sequences that join, leave and change places, once by `forward`, token by token, and once by `begin`, each step
before the results of the one before it are read.
"""

from collections.abc import Sequence

from engine.core import TorchEngine
from engine.port import PendingStep, Row, RowResult, SampleSpec
from runtime.params import SamplingParams
from runtime.tokens import SampledToken

PAGES = 60
STEPS = 9
PROMPTS = ([5, 6, 7, 8, 9, 10], [11, 12, 13], list(range(20, 33)))


def known(engine: TorchEngine, params: SamplingParams, steps: int = STEPS) -> list[list[RowResult]]:
    """The results of every step; each token is read before it is fed."""
    outputs = _prefill(engine, params)
    answers = []
    for step in range(steps):
        rows = [_row(params, i, outputs[i][-1], len(outputs[i])) for i in _members(step)]
        answers.append(engine.forward(rows))
        _append(outputs, step, answers[-1])
    return answers


def ahead(engine: TorchEngine, params: SamplingParams, steps: int = STEPS) -> list[list[RowResult]]:
    """The same; the results of a step are read when the next one has been begun."""
    outputs = _prefill(engine, params)
    answers: list[list[RowResult]] = []
    under_way: PendingStep | None = None
    before: list[int] = []
    for step in range(steps):
        rows = []
        for i in _members(step):
            follows = before.index(i) if i in before else None
            token = outputs[i][-1] if follows is None else 0
            rows.append(_row(params, i, token, len(outputs[i]) + (follows is not None), follows))
        begun = engine.begin(rows)
        if under_way is not None:
            answers.append(under_way.results())
            _append(outputs, step - 1, answers[-1])
        under_way, before = begun, _members(step)
    assert under_way is not None
    return [*answers, under_way.results()]


def tokens(results: Sequence[RowResult]) -> list[int]:
    assert all(isinstance(result, SampledToken) for result in results)
    return [result.token_id for result in results if isinstance(result, SampledToken)]


def _members(step: int) -> list[int]:
    """The sequences of a step, in an order of its own; the third one comes and goes."""
    return ([0, 1], [0, 1], [1, 0], [0, 2, 1])[step % 4]


def _prefill(engine: TorchEngine, params: SamplingParams) -> list[list[int]]:
    rows = [Row(p, 0, _pages(i), SampleSpec(params, 0, p, ())) for i, p in enumerate(PROMPTS)]
    return [[token] for token in tokens(engine.forward(rows))]


def _row(params: SamplingParams, sequence: int, token: int, index: int, follows: int | None = None) -> Row:
    prompt = PROMPTS[sequence]
    spec = SampleSpec(params, index, prompt, ())
    return Row([token], len(prompt) + index - 1, _pages(sequence), spec, follows)


def _append(outputs: list[list[int]], step: int, results: Sequence[RowResult]) -> None:
    for i, token in zip(_members(step), tokens(results), strict=True):
        outputs[i].append(token)


def _pages(sequence: int) -> range:
    return range(10 * sequence, 10 * sequence + 10)
