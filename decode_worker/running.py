"""Which sequences does the next decode step hold, and which leave after it?

Pure. Continuous batching (Orca, OSDI '22): sequences join and leave only at the border of a step, because a step that
is under way writes to their pages. Every step takes the sequences in the order in which they joined, up to `max_batch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from engine.port import Matcher, Row, RowFailed, SampleSpec
from engine.stopping import finish_reason
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
        """The sequences of the next step; none of them is cancelled."""
        step = [s for s in self.sequences.values() if not s.cancelled][: self.max_batch]
        for sequence in step:
            sequence.first_step_at = now if sequence.first_step_at is None else sequence.first_step_at
        return step

    def apply(
        self, step: Sequence[RunningSequence], results: Sequence[SampledToken | RowFailed], now: float
    ) -> tuple[list[TokenStep], list[RunningSequence]]:
        """What to tell the coordinator after a step, and who leaves.

        A sequence cancelled during the step leaves without a word; its token is dropped. One that got no token leaves
        with its `error`.
        """
        told: list[TokenStep] = []
        leaving: list[RunningSequence] = []
        for sequence, result in zip(step, results, strict=True):
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

    def _finish(self, sequence: RunningSequence, token_id: int, index: int) -> FinishReason | None:
        return finish_reason(
            token_id,
            index,
            sequence.request.sampling,
            eos_token_ids=self.limits.eos_token_ids,
            prompt_tokens=len(sequence.request.prompt),
            max_model_len=self.limits.max_model_len,
        )


def row(sequence: RunningSequence) -> Row:
    """Feed the newest token; its position is the number of tokens before it."""
    prompt, output = sequence.request.prompt, sequence.output
    spec = SampleSpec(sequence.request.sampling, len(output), prompt, output, sequence.matcher)
    return Row((output[-1],), len(prompt) + len(output) - 1, sequence.pages, spec)
