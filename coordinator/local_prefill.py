"""Which prompts may a decode worker compute itself?

Pure. In a disaggregated cell none, unless short ones are allowed to: what they cost the streams of their decode worker
may be less than a hand-off costs them. In an aggregated cell every worker does both, and there are no others
(ADR-0016).
"""

from dataclasses import dataclass

from coordinator.state import WorkerRecord
from transport.messages.common import ROLES, Role


@dataclass(frozen=True, slots=True)
class LocalPrefill:
    aggregated: bool = False  # all prompts, and there is no prefill worker
    prompt_tokens: int = 0  # the longest prompt that a decode worker computes itself; 0: none
    backlog_tokens: int = 1024  # it does so only while it owes fewer prompt tokens than this

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles without which this cell serves nobody."""
        return ("decode",) if self.aggregated else ROLES

    def may_compute(self, prompt_tokens: int) -> bool:
        """Whether a decode worker could be asked to, if it is not too busy."""
        return self.aggregated or prompt_tokens <= self.prompt_tokens

    def has_room(self, worker: WorkerRecord) -> bool:
        """Whether this decode worker takes another prompt now; one that owes nothing always does."""
        return worker.backlog_tokens == 0 or worker.backlog_tokens < self.backlog_tokens
