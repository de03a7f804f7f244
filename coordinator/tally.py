"""How many requests, tokens and seconds were there since the coordinator started?

Pure counters and histograms, written by `coordinator.service` alone and read whenever somebody wants numbers. All times
are taken on the service's clock when it takes an event in, or come out of a request's `Ledger`. A token costs one
lookup and one binary search here: nothing of this may be felt in a stream.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from coordinator.streams import StreamEnd
from runtime.params import FinishReason
from runtime.stages import DecodeStages, Ledger, PrefillStages
from transport.messages.client import FailureCode

DURATION_BUCKETS_S = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5),
    *(10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
"""Half a millisecond, because a small model needs no more per token, to the longest that a request may last."""
TOKEN_BUCKETS = tuple(float(1 << power) for power in range(18))  # 1 to 131,072
BYTE_BUCKETS = tuple(float(1 << power) for power in range(14, 37, 2))  # 16 KiB to 64 GiB
RATE_BUCKETS = tuple(float(f"{digit}e{power}") for power in range(7, 12) for digit in (1, 2, 5))  # 10 MB/s to 500 GB/s

OUTCOMES: tuple[str, ...] = (*(reason.value for reason in FinishReason), *get_args(FailureCode))
"""How a request that was started can end."""


class Histogram:
    """How often a value fell between two bounds; a value on a bound belongs below it, as Prometheus has it."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last one is for whatever is larger
        self.total = 0.0  # sum of all values

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class _Open:
    """A request between its start and its last word."""

    submitted_at: float
    prompt_tokens: int
    max_tokens: int
    tokens: int = 0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    hands_off: bool = True  # token 2 comes from another worker than token 1


class Tally:
    """Everything counted. A request that is started ends in exactly one of `outcomes`."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        # Never started. Zeros for what `Service.prepare` can say, so that a rate sees the first one.
        self.refusals: dict[FailureCode, int] = {"invalid_request": 0, "model_not_found": 0, "loading": 0}
        self.prompt_tokens = 0  # of prompts that have been computed
        self.generated_tokens = 0  # handed to a front
        self.local_prompts = 0  # sent to a decode worker to be computed there
        # Each request, as it goes on, however it will end.
        self.prepare = Histogram(DURATION_BUCKETS_S)
        self.time_to_first_token = Histogram(DURATION_BUCKETS_S)
        self.inter_token_latency = Histogram(DURATION_BUCKETS_S)
        self.handoff_gap = Histogram(DURATION_BUCKETS_S)
        # Answers: requests that ended with `stop` or `length`.
        self.time_per_output_token = Histogram(DURATION_BUCKETS_S)
        self.end_to_end = Histogram(DURATION_BUCKETS_S)
        self.queue = Histogram(DURATION_BUCKETS_S)
        self.dispatched_to_first_token = Histogram(DURATION_BUCKETS_S)
        self.first_to_last_token = Histogram(DURATION_BUCKETS_S)
        self.dispatched_to_last_token = Histogram(DURATION_BUCKETS_S)
        self.answer_prompt_tokens = Histogram(TOKEN_BUCKETS)
        self.answer_generated_tokens = Histogram(TOKEN_BUCKETS)
        self.answer_max_tokens = Histogram(TOKEN_BUCKETS)
        # Answers whose worker had reported before the last word was said.
        self.prefill_queue = Histogram(DURATION_BUCKETS_S)
        self.prefill_compute = Histogram(DURATION_BUCKETS_S)
        self.transfer = Histogram(DURATION_BUCKETS_S)
        self.transfer_tail = Histogram(DURATION_BUCKETS_S)
        self.transfer_bytes = Histogram(BYTE_BUCKETS)
        self.transfer_rate = Histogram(RATE_BUCKETS)
        self.intake = Histogram(DURATION_BUCKETS_S)
        self.verify = Histogram(DURATION_BUCKETS_S)
        self.join = Histogram(DURATION_BUCKETS_S)
        self.decode = Histogram(DURATION_BUCKETS_S)
        self._open: dict[int, _Open] = {}

    def refused(self, code: FailureCode) -> None:
        """A request could not even be started."""
        self.refusals[code] = self.refusals.get(code, 0) + 1

    def prepared(self, seconds: float) -> None:
        """A request was tokenised and found valid."""
        self.prepare.observe(seconds)

    def started(self, request_id: int, prompt_tokens: int, max_tokens: int, now: float) -> None:
        self._open[request_id] = _Open(now, prompt_tokens, max_tokens)

    def computed_locally(self, request_id: int) -> None:
        """The decode worker has been told to compute the prompt: there will be no hand-off."""
        self.local_prompts += 1
        self._open[request_id].hands_off = False

    def delivered(self, request_id: int, tokens: int, now: float) -> None:
        """A front has been handed `tokens` tokens of a request so far; what follows a stop string is not handed on."""
        request = self._open[request_id]
        fresh = tokens - request.tokens
        if fresh <= 0:
            return
        self.generated_tokens += fresh
        gap_s = now - request.last_token_at
        if request.tokens == 0:
            request.first_token_at = now
            self.prompt_tokens += request.prompt_tokens
            self.time_to_first_token.observe(now - request.submitted_at)
            fresh -= 1
            gap_s = 0.0
        if fresh:
            if request.tokens <= 1 and request.hands_off:
                self.handoff_gap.observe(gap_s)
            self.inter_token_latency.observe(gap_s)
            for _ in range(fresh - 1):  # they came together
                self.inter_token_latency.observe(0.0)
        request.tokens = tokens
        request.last_token_at = now

    def failed(self, request_id: int, code: FailureCode) -> None:
        del self._open[request_id]
        self.outcomes[code] += 1

    def finished(self, request_id: int, end: StreamEnd) -> None:
        request = self._open.pop(request_id)
        self.outcomes[end.reason] += 1
        if end.reason is FinishReason.CANCELLED:
            return  # how long a client had patience says nothing about the server
        self.answer_prompt_tokens.observe(request.prompt_tokens)
        self.answer_generated_tokens.observe(request.tokens)
        self.answer_max_tokens.observe(request.max_tokens)
        decoding_s = request.last_token_at - request.first_token_at
        if request.tokens > 1:
            self.time_per_output_token.observe(decoding_s / (request.tokens - 1))
        self.first_to_last_token.observe(decoding_s)
        self._stages(end.ledger, handed_off=request.hands_off)

    def _stages(self, ledger: Ledger, *, handed_off: bool) -> None:
        self.end_to_end.observe(ledger.total_s)
        self.queue.observe(ledger.queue_s)
        self.dispatched_to_first_token.observe(ledger.first_token_s - ledger.queue_s)
        self.dispatched_to_last_token.observe(ledger.total_s - ledger.queue_s)
        if ledger.prefill is not None:
            self._prefill_stages(ledger.prefill)
        if ledger.decode is not None:
            self._decode_stages(ledger.decode, handed_off=handed_off)

    def _prefill_stages(self, stages: PrefillStages) -> None:
        self.prefill_queue.observe(stages.queue_s)
        self.prefill_compute.observe(stages.compute_s)
        if stages.transfer_bytes:  # nothing is handed off when one token is all
            self.transfer.observe(stages.transfer_s)
            self.transfer_tail.observe(stages.transfer_tail_s)
            self.transfer_bytes.observe(stages.transfer_bytes)
            if stages.transfer_s > 0:
                self.transfer_rate.observe(stages.transfer_bytes / stages.transfer_s)

    def _decode_stages(self, stages: DecodeStages, *, handed_off: bool) -> None:
        if handed_off:
            self.intake.observe(stages.intake_s)
            self.verify.observe(stages.verify_s)
        if stages.steps:  # it may never have joined: a stop string was complete with token 1
            self.join.observe(stages.join_s)
            self.decode.observe(stages.decode_s)
