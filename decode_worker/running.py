"""Which sequences does the next decode step hold, and which leave after it?

Pure. Continuous batching (Orca, OSDI '22): sequences join and leave only at the border of a step, because a step that
is under way writes to their pages. Every step takes the sequences in the order in which they joined, up to `max_batch`.

A step may be planned while the one before it is under way (`decode_worker.steps`). A sequence of both feeds a token
that nobody has read. If that turns out to be its last one, what the second step makes of it is dropped. The slot of
that token is its own all the same: a sequence that would end by length is not in the second step, so the token is
number `token_limit - 1` at most, and a reservation has room for all but the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from engine.port import Matcher, Row, RowFailed, SampleSpec
from engine.stopping import finish_reason, token_limit
from runtime.params import FinishReason
from runtime.stages import DecodeStages, PrefillStages
from runtime.tokens import SampledToken
from transport.messages.worker import Admit, Serve, TokenStep


@dataclass(slots=True)
class RunningSequence:
    """A request that decodes here: its pages hold the KV of everything but the newest token."""

    request: Admit | Serve
    pages: tuple[int, ...]
    output: list[int]  # token 1 on; the newest is fed by the next step
    joined_at: float
    intake: DecodeStages = field(default_factory=DecodeStages)  # what is known from before it joined
    prefill: PrefillStages | None = None  # of a prompt that was computed here
    matcher: Matcher | None = None  # of the request's grammar
    first_step_at: float | None = None
    first_step_s: float = 0.0
    last_token_at: float | None = None  # of those after token 1
    sent_at: float | None = None  # when its last token was passed to the socket; None: it was cancelled first
    cancelled: bool = False
    error: str | None = None  # why there is no next token

    @property
    def request_id(self) -> int:
        return self.request.request_id

    def stages(self) -> DecodeStages:
        first, last = self.first_step_at, self.last_token_at
        last_at = self.joined_at if last is None else last
        return msgspec.structs.replace(
            self.intake,
            join_s=first - self.joined_at if first is not None else 0.0,
            decode_s=last - first if first is not None and last is not None else 0.0,
            first_step_s=self.first_step_s,
            send_s=self.sent_at - last_at if self.sent_at is not None and self.error is None else 0.0,
            steps=max(len(self.output) - 1, 0),  # without a token 1 there was no step, either
        )


@dataclass(frozen=True, slots=True)
class StopLimits:
    eos_token_ids: tuple[int, ...]
    max_model_len: int


@dataclass(slots=True)
class Running:
    """The running batch; owned by the decode worker's loop."""

    max_batch: int
    limits: StopLimits
    sequences: dict[int, RunningSequence] = field(default_factory=dict)

    def join(self, sequence: RunningSequence) -> None:
        if sequence.request_id in self.sequences:
            raise AssertionError(f"request {sequence.request_id} joined twice")
        self.sequences[sequence.request_id] = sequence

    def plan_step(self, now: float) -> list[RunningSequence]:
        """The sequences of a step that starts `now`; none of them is cancelled."""
        step = self.next_step()
        self.start(step, now)
        return step

    def next_step(self, under_way: Sequence[RunningSequence] = ()) -> list[RunningSequence]:
        """The sequences that the next step would have.

        Args:
            under_way: those of the step before, if its tokens have not come.

        Returns:
            Nothing, too, if one of those needs its token on the host before the next one is chosen.
        """
        waiting = {one.request_id for one in under_way}
        going_on = (s for s in self.sequences.values() if not s.cancelled)
        step = [s for s in going_on if s.request_id not in waiting or not self._is_at_last(s)][: self.max_batch]
        if any(one.request_id in waiting and one.request.sampling.reads_output for one in step):
            return []
        return step

    def start(self, step: Sequence[RunningSequence], now: float) -> None:
        for sequence in step:
            sequence.first_step_at = now if sequence.first_step_at is None else sequence.first_step_at

    def apply(
        self, step: Sequence[RunningSequence], results: Sequence[SampledToken | RowFailed], now: float
    ) -> tuple[list[TokenStep], list[RunningSequence]]:
        """What to tell the coordinator after a step, and who leaves.

        A sequence cancelled during the step leaves without a word; its token is dropped. So is that of a sequence that
        has left while the step was under way. One that got no token leaves with its `error`.
        """
        told: list[TokenStep] = []
        leaving: list[RunningSequence] = []
        for sequence, result in zip(step, results, strict=True):
            if sequence.request_id not in self.sequences:
                continue
            finish: FinishReason | None = None
            if sequence.cancelled:
                pass
            elif isinstance(result, RowFailed):
                sequence.error = result.reason
            else:
                index = len(sequence.output)
                sequence.output.append(result.token_id)
                if index > 0:  # token 1 of a prompt that was computed here ends its prefill
                    if sequence.last_token_at is None and sequence.first_step_at is not None:
                        sequence.first_step_s = now - sequence.first_step_at
                    sequence.last_token_at = now
                finish = self._finish(sequence, result.token_id, index)
                told.append(TokenStep(sequence.request_id, index, result, finish))
            if sequence.cancelled or sequence.error is not None or finish is not None:
                leaving.append(self.sequences.pop(sequence.request_id))
        return told, leaving

    def drop_cancelled(self, request_id: int) -> RunningSequence | None:
        """Between two steps: take a cancelled sequence out."""
        return self.sequences.pop(request_id, None)

    def _is_at_last(self, sequence: RunningSequence) -> bool:
        """Whether its next token, which nobody has read, is its last one by length."""
        request = sequence.request
        limit = token_limit(request.sampling, len(request.prompt), self.limits.max_model_len)
        return len(sequence.output) + 1 >= limit

    def _finish(self, sequence: RunningSequence, token_id: int, index: int) -> FinishReason | None:
        return finish_reason(
            token_id,
            index,
            sequence.request.sampling,
            eos_token_ids=self.limits.eos_token_ids,
            prompt_tokens=len(sequence.request.prompt),
            max_model_len=self.limits.max_model_len,
        )


def rows(step: Sequence[RunningSequence], under_way: Sequence[RunningSequence] = ()) -> list[Row]:
    """The rows of a step; `under_way` as in `Running.next_step`, in the order of the samples of that step."""
    places = {one.request_id: place for place, one in enumerate(under_way)}
    return [row(one, places.get(one.request_id)) for one in step]


def row(sequence: RunningSequence, follows: int | None = None) -> Row:
    """Feed the newest token; its position is the number of tokens before it.

    `follows`: where in the samples of the step under way that token will be, if it is not known yet.
    """
    prompt, output = sequence.request.prompt, sequence.output
    index = len(output) if follows is None else len(output) + 1
    spec = SampleSpec(sequence.request.sampling, index, prompt, output, sequence.matcher)
    return Row((output[-1],), len(prompt) + index - 1, sequence.pages, spec, follows)
