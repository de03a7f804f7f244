"""Which token comes next?

Called by the engine after each forward, on the engine thread: `choose` is what the device does, and the next step may
be fed from its result, on the device; `Choice.tokens` is what the host does when that has come. Rows of one batch may
ask for different things, and a row pays only for what it asks: greedy for an argmax, penalties for the tokens they
touch, nobody for a sort of the whole vocabulary.

Probabilities are fixed-point integers relative to the best token's, so that their sums are exact: the choice depends on
a row's own logits, not on its batch, the number of threads or the order in which a device adds. The price: a token less
than 2**-40 times as likely as the best is never drawn.

Ties are broken by the lowest token id everywhere: greedy, top-k, top-p, log-probabilities.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from engine.port import SampleSpec, TokenMask
from engine.randomness import uniform
from runtime.tokens import SampledToken, TokenLogprobs

_ONE = 2.0**40
"""The weight of the best token. A row's weights sum to less than 2**63 for every vocabulary below 2**23."""

_SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""What is below would be 0 in float32 and divide 0 by 0."""


class InvalidLogitsError(Exception):
    """No token can be chosen from what the model computed; its engine is not to be trusted any more."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The tokens of one step, as tensors of one device.

    Attributes:
        token_ids: int64 [rows], all within the vocabulary.
        best: float32 [rows], the best score of each row; not finite where there was nothing to choose from.
        reports: float64 [rows that ask, 1 + the most that one asks for, 2], token ids with their log-probabilities, the
            chosen one first; None where no row asks.
        asked: how many of the best a row gets with its token, by row; those that ask, in the order of `reports`.
    """

    token_ids: Tensor
    best: Tensor
    reports: Tensor | None
    asked: Mapping[int, int]

    def to_host(self) -> "Choice":
        """A copy in pinned memory, good once everything is done that is queued by now; the host does not wait."""
        reports = None if self.reports is None else _to_host(self.reports)
        return replace(self, token_ids=_to_host(self.token_ids), best=_to_host(self.best), reports=reports)

    def tokens(self) -> list[SampledToken]:
        """What the host makes of it; waits for a device that it is on.

        Raises:
            InvalidLogitsError: the best score of a row is NaN or infinite.
        """
        for row, score in enumerate(self.best.tolist()):
            if not math.isfinite(score):
                raise InvalidLogitsError(f"no token can be chosen in row {row}: its best logit is {score}")
        logprobs = self._logprobs()
        return [SampledToken(token, logprobs.get(row)) for row, token in enumerate(self.token_ids.tolist())]

    def _logprobs(self) -> dict[int, TokenLogprobs]:
        """What the rows that ask for log-probabilities get, by row."""
        if self.reports is None:
            return {}
        lines: list[list[list[float]]] = self.reports.tolist()
        return {
            row: TokenLogprobs(line[0][1], tuple((int(token), logprob) for token, logprob in line[1 : count + 1]))
            for (row, count), line in zip(self.asked.items(), lines, strict=True)
        }


def sample(
    logits: Tensor,
    specs: Sequence[SampleSpec],
    eos_token_ids: tuple[int, ...],
    masks: Mapping[int, TokenMask] = MappingProxyType({}),
) -> list[SampledToken]:
    """`choose`, and wait for the tokens.

    Raises:
        InvalidLogitsError: the best logit of a row is NaN or infinite, or nothing is left to choose from.
        ValueError: as `choose`.
    """
    return choose(logits, specs, eos_token_ids, masks).tokens()


def choose(
    logits: Tensor,
    specs: Sequence[SampleSpec],
    eos_token_ids: tuple[int, ...],
    masks: Mapping[int, TokenMask] = MappingProxyType({}),
) -> Choice:
    """Choose one token per row, in the order of steps that `SamplingParams` gives; `logits` stay as they are.

    Reported log-probabilities are those of the raw logits, before masks, bias, penalties and temperature. Token ids
    outside the vocabulary in `logit_bias`, `stop_token_ids` and `eos_token_ids` are ignored. A CUDA device is waited
    for only where a row asks for top-p, once: how many tokens are put in order depends on their probabilities.

    Args:
        logits: [rows, vocab], any floating-point dtype; the arithmetic is float32.
        specs: one per row; a row with a temperature above 0 needs a seed.
        eos_token_ids: impossible, like a row's `stop_token_ids`, before its `min_tokens`.
        masks: the only tokens that are possible, for the rows that have a grammar. `min_tokens` could take the last
            of them away, so the coordinator lets no request have both.

    Raises:
        ValueError: `specs` does not fit `logits`, or a seed is missing.
    """
    if logits.shape[0] != len(specs):
        raise ValueError(f"{len(specs)} specs for {logits.shape[0]} rows of logits")
    tokens, peaks = _argmax(logits)
    shaped = [row for row, spec in enumerate(specs) if row in masks or not _is_plain_greedy(spec)]
    if shaped:
        where = _tensor(shaped, torch.int64, logits)
        scores = logits.index_select(0, where).float()  # a copy: edited in place
        _mask(scores, {place: masks[row] for place, row in enumerate(shaped) if row in masks})
        chosen, best = _choose(scores, [specs[row] for row in shaped], eos_token_ids)
        tokens, peaks = tokens.index_copy(0, where, chosen), peaks.index_copy(0, where, best)
    asked = {row: spec.params.logprobs for row, spec in enumerate(specs) if spec.params.logprobs is not None}
    return Choice(tokens, peaks, _reports(logits, asked, tokens) if asked else None, asked)


def _is_plain_greedy(spec: SampleSpec) -> bool:
    """The argmax of the raw logits is the answer."""
    params = spec.params
    return params.temperature == 0 and not (
        params.logit_bias
        or spec.index < params.min_tokens
        or params.repetition_penalty != 1
        or params.presence_penalty
        or params.frequency_penalty
    )


def _argmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest id among the best of each row, and its score in float32; a NaN counts as best."""
    tokens = scores.argmax(-1)
    return tokens, scores.gather(1, tokens[:, None])[:, 0].float()


def _choose(scores: Tensor, specs: Sequence[SampleSpec], eos_token_ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The tokens of rows that are not plain greedy, and each row's best score after the edits.

    Args:
        scores: [rows, vocab] float32, overwritten.
    """
    vocab = scores.shape[1]
    _edit(scores, [_bias(spec, eos_token_ids, vocab) for spec in specs], torch.add)
    _edit(scores, [_repeated(spec) for spec in specs], _penalise_repetition)
    _edit(scores, [_used(spec) for spec in specs], torch.sub)
    tokens, peaks = _argmax(scores)
    drawn = [row for row, spec in enumerate(specs) if spec.params.temperature > 0]
    if drawn:
        where = _tensor(drawn, torch.int64, scores)
        relative = scores.index_select(0, where) - peaks[where, None]
        tokens = tokens.index_copy(0, where, _draw(relative, [specs[row] for row in drawn]))
    return tokens, peaks


# --- edits: sparse changes of scores, one mapping from token id to a number per row -----------------------------------


def _mask(scores: Tensor, masks: Mapping[int, TokenMask]) -> None:
    """Make impossible what a mask leaves out, by row of `scores`; the bits are unpacked where the scores are."""
    if not masks:
        return
    where = _tensor(list(masks), torch.int64, scores)
    packed = torch.from_numpy(np.stack(list(masks.values())).view(np.uint8))
    words = (packed.pin_memory() if scores.is_cuda else packed).to(scores.device, non_blocking=True)
    bits = words[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=scores.device) & 1
    forbidden = bits.view(len(masks), -1)[:, : scores.shape[1]] == 0
    scores.index_copy_(0, where, scores.index_select(0, where).masked_fill_(forbidden, -math.inf))


def _edit(scores: Tensor, changes: Sequence[Mapping[int, float]], combine: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replace each score that a change names by `combine(score, number)`."""
    if not any(changes):
        return
    rows = [row for row, change in enumerate(changes) for _ in change]
    columns = list(chain.from_iterable(changes))
    numbers = list(chain.from_iterable(change.values() for change in changes))
    where = (_tensor(rows, torch.int64, scores), _tensor(columns, torch.int64, scores))
    scores[where] = combine(scores[where], _tensor(numbers, torch.float32, scores))


def _bias(spec: SampleSpec, eos_token_ids: tuple[int, ...], vocab: int) -> dict[int, float]:
    bias = dict(spec.params.logit_bias)
    if spec.index < spec.params.min_tokens:
        bias |= dict.fromkeys((*eos_token_ids, *spec.params.stop_token_ids), -math.inf)
    return {token: number for token, number in bias.items() if token < vocab}


def _repeated(spec: SampleSpec) -> dict[int, float]:
    penalty = spec.params.repetition_penalty
    return dict.fromkeys(chain(spec.prompt, spec.output), penalty) if penalty != 1 else {}


def _penalise_repetition(scores: Tensor, penalty: Tensor) -> Tensor:
    """CTRL's penalty (Keskar et al., 2019, section 4.1) as it is used for scores of either sign."""
    return torch.where(scores > 0, scores / penalty, scores * penalty)


def _used(spec: SampleSpec) -> dict[int, float]:
    presence, frequency = spec.params.presence_penalty, spec.params.frequency_penalty
    if not (presence or frequency):
        return {}
    return {token: presence + frequency * count for token, count in Counter(spec.output).items()}


# --- the draw --------------------------------------------------------------------------------------------------------


def _draw(relative: Tensor, specs: Sequence[SampleSpec]) -> Tensor:
    """Draw a token per row: the inverse of the cumulative distribution over token ids, at one uniform number.

    Args:
        relative: [rows, vocab] float32, scores minus the row's best; overwritten.

    Returns:
        [rows] int64, never a token of weight 0, except for a row without a finite best score, whose token means nothing
        and is of the vocabulary all the same: it may be fed before the host hears of it.
    """
    vocab = relative.shape[1]
    params = [spec.params for spec in specs]
    temperatures = [max(p.temperature, _SMALLEST_TEMPERATURE) for p in params]
    relative /= _tensor(temperatures, torch.float32, relative)[:, None]
    weights = relative.exp().mul_(_ONE).long()
    _truncate(weights, relative, [p.top_k if 0 < p.top_k < vocab else None for p in params], _top_k)
    _truncate(weights, relative, [p.top_p if p.top_p < 1 else None for p in params], _top_p)
    if any(p.min_p for p in params):
        floor = _tensor([p.min_p for p in params], torch.float64, relative) * _ONE
        weights.masked_fill_(weights < floor[:, None], 0)
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    uniforms = _tensor([_uniform(spec) for spec in specs], torch.float64, relative)
    target = (uniforms * total).long()  # less than total: a uniform is at most 1 - 2**-53, and no rounding undoes that
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp_(max=vocab - 1)


def _uniform(spec: SampleSpec) -> float:
    if spec.params.seed is None:
        raise ValueError("a row with a temperature needs a seed: the coordinator draws one where the client gave none")
    return uniform(spec.params.seed, spec.index)


def _truncate(
    weights: Tensor,
    relative: Tensor,
    settings: Sequence[float | None],
    rule: Callable[[Tensor, Tensor, Sequence[float]], tuple[Tensor, Tensor]],
) -> None:
    """Leave only the best tokens their weight, in the rows that have a setting.

    Args:
        rule: gives the ids that may be left, [rows, ids], best first, and how many of them are, [rows].
    """
    rows = [row for row, setting in enumerate(settings) if setting is not None]
    if not rows:
        return
    where = _tensor(rows, torch.int64, weights)
    asked = weights[where]
    best, counts = rule(asked, relative[where], [setting for setting in settings if setting is not None])
    ranks = torch.arange(best.shape[1], device=best.device)
    kept = asked.gather(1, best).masked_fill_(ranks >= counts[:, None], 0)
    weights.index_copy_(0, where, asked.zero_().scatter_(1, best, kept))


def _top_k(weights: Tensor, relative: Tensor, settings: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The k best."""
    return _best(relative, int(max(settings))), _tensor(settings, torch.int64, weights)


def _top_p(weights: Tensor, relative: Tensor, settings: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The smallest set with at least the share `top_p` of the weight.

    The tokens below `(1 - top_p) * total / vocab` together weigh less than `(1 - top_p) * total`, so that set has none
    of them: only the others, usually few, are put in order.
    """
    share = _tensor(settings, torch.float64, weights)
    total = weights.sum(-1)
    floor = (1 - share) * total / weights.shape[1]
    candidates = int((weights >= floor[:, None]).sum(-1).max())
    best = _best(relative, candidates)
    mass = weights.gather(1, best).cumsum(-1)
    return best, (mass < (share * total)[:, None]).sum(-1) + 1


def _best(scores: Tensor, count: int) -> Tensor:
    """[rows, count] int64: the ids of the best scores, best first, the lower id first among equals.

    `topk` promises nothing about equals, so it gets keys without any: the bits of a non-negative float32 order as the
    number does, and the id follows them.

    Args:
        scores: [rows, vocab] float32, none above 0.
    """
    keys = (-scores).view(torch.int32).long()
    keys <<= 32
    keys |= torch.arange(scores.shape[1], device=scores.device)
    return keys.topk(count, largest=False).values & 0xFFFFFFFF


# --- reports ---------------------------------------------------------------------------------------------------------


def _reports(logits: Tensor, asked: Mapping[int, int], tokens: Tensor) -> Tensor:
    """See `Choice`."""
    where = _tensor(list(asked), torch.int64, logits)
    scores = logits.index_select(0, where).float().log_softmax(-1)
    best = _best(scores, min(max(asked.values()), scores.shape[1]))
    ids = torch.cat((tokens[where, None], best), dim=1)
    return torch.stack((ids.double(), scores.gather(1, ids).double()), dim=-1)


# --- between host and device -----------------------------------------------------------------------------------------


def _tensor(values: Sequence[float], dtype: torch.dtype, like: Tensor) -> Tensor:
    """`values` on the device of `like`; the copy, from pinned memory, does not wait for what is queued there."""
    return torch.tensor(values, dtype=dtype, pin_memory=like.is_cuda).to(like.device, non_blocking=True)


def _to_host(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
