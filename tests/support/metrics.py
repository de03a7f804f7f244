"""How does a test get a service with known numbers in its tally, and read what `/metrics` says of it?"""

from collections.abc import Iterable

from msgspec.structs import replace
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from coordinator.config import RequestLimits
from coordinator.events import DecodeLetGo, FirstTokenMade, PrefillLetGo, SelfTested, TokensMade, WorkerJoined
from coordinator.http.counters import HttpCounters
from coordinator.http.metrics import Compat, Exposition
from coordinator.service import Service
from coordinator.text import ByteText
from runtime.description import ModelInfo
from runtime.params import FinishReason, SamplingParams
from runtime.stages import DecodeStages, PrefillStages
from runtime.tokens import SampledToken
from tests.support.cells import peer, pool
from tests.support.configs import coordinator_config
from tests.support.front import Front
from tests.support.scripted_server import ManualClock
from transport.messages.client import GenerateRequest, WorkerStatus
from transport.messages.worker import SelfTest, SelfTestDone, TokenStep, ToWorker

PREFILL = PrefillStages(
    queue_s=0.01, compute_s=0.4, chunks=1, transfer_s=0.2, transfer_tail_s=0.05, transfer_bytes=1_000_000, pieces=1
)
DECODE = DecodeStages(intake_s=0.6, verify_s=0.02, join_s=0.03, decode_s=0.3, steps=3)


def ask(prompt: str = "hi", **sampling: object) -> GenerateRequest:
    return GenerateRequest(prompt=prompt, sampling=SamplingParams(max_tokens=8, **sampling))  # type: ignore[arg-type]  # named


class SimulatedService:
    """One prefill and one decode worker, linked at 2 GB/s over tcp; pages of four tokens; time stands still."""

    LIMITS = RequestLimits(request_timeout_s=60.0, max_queued_requests=1000)
    CONFIG = coordinator_config(decode_workers=2, requests=LIMITS)

    def __init__(self, total_pages: int = 1000, *, linked: bool = True, aggregated: bool = False) -> None:
        """An aggregated one has the decode worker alone."""
        self.clock = ManualClock()
        self.told: list[tuple[str, ToWorker]] = []
        config = replace(self.CONFIG, aggregated=aggregated)
        self.service = Service(config, ByteText(), self.clock, lambda *told: self.told.append(told))
        self.service.model = ModelInfo(name="m", vocab_size=256, max_model_len=40_000, eos_token_ids=(4,))
        self.service.handle(WorkerJoined("decode", peer("d0"), pool(total_pages), 2000))
        if not aggregated:
            self.service.handle(WorkerJoined("prefill", peer("p0"), pool(total_pages), 2000))
        while linked and self.told:
            worker_id, test = self.told.pop(0)
            assert isinstance(test, SelfTest)
            report = SelfTestDone(
                transfer_id=test.transfer_id, quarantined_pages=0, transport="tcp", gigabytes_per_s=2.0
            )
            self.service.handle(SelfTested(worker_id, report))

    def submit(self, request: GenerateRequest) -> tuple[int, Front]:
        front = Front()
        coroutine = self.service.submit(request, front)
        try:
            coroutine.send(None)  # a short prompt never waits, so no loop is needed
        except StopIteration as done:
            return done.value, front
        raise AssertionError("the prompt was tokenised on a thread")

    def first(self, request_id: int, token_id: int, finish: FinishReason | None = None) -> None:
        self.service.handle(FirstTokenMade("p0", request_id, SampledToken(token_id), finish))

    def token(self, request_id: int, index: int, token_id: int, finish: FinishReason | None = None) -> None:
        self.service.handle(TokensMade("d0", (TokenStep(request_id, index, SampledToken(token_id), finish),)))

    def let_go(self, request_id: int) -> None:
        self.service.handle(PrefillLetGo("p0", request_id, 0, PREFILL, None))
        self.service.handle(DecodeLetGo("d0", request_id, 0, DECODE, None))

    def answer(self) -> None:
        """Four tokens: at 0.5, 0.75, 0.85 and 0.95 s; the workers report at 1.0 s."""
        start = self.clock.time
        request_id, _ = self.submit(ask())
        self.clock.time = start + 0.5
        self.first(request_id, 65)
        for index, at in ((1, 0.75), (2, 0.85), (3, 0.95)):
            self.clock.time = start + at
            self.token(request_id, index, 65, FinishReason.LENGTH if index == 3 else None)
        self.clock.time = start + 1.0
        self.let_go(request_id)

    def heartbeats(self) -> tuple[WorkerStatus, ...]:
        """The prefill worker is the one whose numbers are multiples of ten."""
        return (
            _status("d0", 4, free_pages=990, reserved_pages=7, quarantined_pages=3, running=2, waiting=1),
            _status("p0", 5, free_pages=940, reserved_pages=50, quarantined_pages=10, running=20, waiting=30),
        )

    def exposition(self, compat: Compat = "", http: HttpCounters | None = None) -> Exposition:
        return Exposition(self.service, http or HttpCounters(), self.heartbeats, compat)


def _status(worker_id: str, pid: int, **numbers: int) -> WorkerStatus:
    role = "prefill" if worker_id.startswith("p") else "decode"
    return WorkerStatus(worker_id=worker_id, role=role, pid=pid, total_pages=1000, **numbers)  # type: ignore[arg-type]  # a str


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def families(text: bytes) -> list[Metric]:
    return list(text_string_to_metric_families(text.decode()))


def samples(found: Iterable[Metric]) -> Samples:
    """The value of every sample by its name and labels, each of which is there once."""
    values: Samples = {}
    for family in found:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in values, f"{key} is there twice"
            values[key] = sample.value
    return values


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def exposed_names(found: Iterable[Metric]) -> dict[str, str]:
    """Type by the name that the text declares: counters with `_total`, histograms without their suffixes."""
    return {family.name + ("_total" if family.type == "counter" else ""): family.type for family in found}
