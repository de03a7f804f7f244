"""What does a prefill worker remember of a prompt?"""

from dataclasses import dataclass, field

from engine.port import Matcher
from runtime.params import SamplingParams
from transport.messages.worker import Prefill


@dataclass(slots=True)
class Prompt:
    """One prompt at this worker, from Prefill until its last chunk has been computed."""

    request: Prefill
    arrived_at: float
    matcher: Matcher | None = None  # of the request's grammar
    pages: tuple[int, ...] = ()  # empty until it starts
    computed: int = 0  # tokens whose KV is in the pages
    cancelled: bool = False
    error: str | None = None  # why there is no token 1
    started_at: float | None = None
    chunks: int = 0
    chunk_s: tuple[float, ...] = ()  # of the steps that held them, on the engine thread
    digests: bytearray = field(default_factory=bytearray)

    @property
    def request_id(self) -> int:
        return self.request.request_id

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.request.prompt

    @property
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def started(self) -> bool:
        return self.started_at is not None

    @property
    def has_pages(self) -> bool:
        return self.started
