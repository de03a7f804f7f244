"""What does `/metrics` say?

Everything is read when it is asked for: what was counted from the service's tally, what is the case now from the
machine's state and from the workers' heartbeats. docs/metrics.md lists all of it; a test compares.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from coordinator.http.counters import HttpCounters
from coordinator.http.families import counter, gauge, histogram
from coordinator.http.vllm_metrics import vllm_families
from coordinator.service import Service
from coordinator.state import CellState, Phase
from coordinator.tally import Histogram, Tally
from transport.messages.client import WorkerStatus
from transport.messages.common import ROLES

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
Compat = Literal["", "vllm"]


class Exposition(Collector):
    """The text of one coordinator's metrics. Loop thread only, because it reads what the loop writes."""

    def __init__(
        self,
        service: Service,
        http: HttpCounters,
        workers: Callable[[], tuple[WorkerStatus, ...]],
        compat: Compat = "",
    ) -> None:
        """
        Args:
            workers: what the workers' last heartbeats said (`WorkerLink.status`).
            compat: "vllm" adds the names that dashboards and routers for vLLM read.
        """
        self._service = service
        self._http = http
        self._workers = workers
        self._compat = compat
        self._version = _version()
        self._registry = CollectorRegistry(auto_describe=False)  # our own: nothing of the process is global
        self._registry.register(self)

    def text(self) -> bytes:
        """All metrics in the text form of Prometheus, of type `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        cell = self._service.machine.cell
        in_phase = Counter(record.phase for record in cell.requests.values())  # the only pass over all requests
        yield from _requests(self._service.tally)
        yield from _durations(self._service.tally)
        yield from _sizes(self._service.tally)
        yield from _queues(cell, in_phase)
        yield from _heartbeats(self._workers())
        yield from _state(cell)
        yield from self._cell_as_a_whole()
        yield from _http(self._http)
        if self._compat == "vllm":
            yield from vllm_families(self._service, in_phase)

    def _cell_as_a_whole(self) -> Iterator[Metric]:
        service, cell = self._service, self._service.machine.cell
        config, health = service.config, service.health()
        joined = Counter(worker.role for worker in cell.workers.values())
        expected = {"prefill": config.prefill_workers, "decode": config.decode_workers}
        yield gauge(
            "kvrelay_workers", "Workers that have joined.", ["role"], [([role], joined[role]) for role in ROLES]
        )
        yield gauge(
            "kvrelay_workers_expected",
            "Workers that the cell was started with.",
            ["role"],
            [([role], expected[role]) for role in ROLES],
        )
        yield gauge(
            "kvrelay_healthy",
            "1 while tokens can be expected: a model is loaded, a prefill worker is linked to a decode worker or an "
            "aggregated worker is there, and workers make progress if requests wait.",
            [],
            [([], health.ok)],
        )
        yield gauge("kvrelay_accepting", "1 while a small new request would be taken.", [], [([], health.accepting)])
        yield gauge("kvrelay_draining", "1 once the cell ends and takes no new request.", [], [([], cell.draining)])
        yield gauge(
            "kvrelay_progress_age_seconds",
            "Time since a worker last made a token or let go of a request; an idle cell makes no progress and is well.",
            [],
            [([], service.progress_age_s)],
        )
        yield gauge(
            "kvrelay_build_info",
            "Always 1; the version of the coordinator and the name of the model it serves.",
            ["version", "model"],
            [([self._version, config.model], 1)],
        )


def _requests(tally: Tally) -> Iterator[Metric]:
    yield counter(
        "kvrelay_requests",
        "Requests that were started and have ended, by how: stop, length, cancelled, or the code of the failure.",
        ["outcome"],
        [([outcome], count) for outcome, count in tally.outcomes.items()],
    )
    yield counter(
        "kvrelay_refusals",
        "Requests that were not started, because they are invalid, name another model or came before the model.",
        ["code"],
        [([code], count) for code, count in tally.refusals.items()],
    )
    yield counter(
        "kvrelay_prompt_tokens",
        "Tokens of prompts that have been computed, counted when token 1 of the answer arrives.",
        [],
        [([], tally.prompt_tokens)],
    )
    yield counter(
        "kvrelay_local_prompts",
        "Prompts sent to a decode worker to be computed there; in an aggregated cell, all of them.",
        [],
        [([], tally.local_prompts)],
    )
    yield counter(
        "kvrelay_generated_tokens",
        "Tokens handed to a front, of answers that end well or not.",
        [],
        [([], tally.generated_tokens)],
    )


def _durations(tally: Tally) -> Iterator[Metric]:
    def seconds(name: str, text: str, measured: Histogram) -> HistogramMetricFamily:
        return histogram(f"kvrelay_{name}_seconds", text, measured)

    yield seconds("prepare", "Tokenising and validating a request, before it is submitted.", tally.prepare)
    yield seconds("time_to_first_token", "Request submitted to token 1 at the coordinator.", tally.time_to_first_token)
    yield seconds(
        "inter_token_latency",
        "Gap between consecutive tokens of an answer at the coordinator; the first gap is the hand-off gap.",
        tally.inter_token_latency,
    )
    yield seconds("handoff_gap", "Token 1 to token 2 at the coordinator.", tally.handoff_gap)
    yield seconds(
        "time_per_output_token",
        "Per answer: (last token - token 1) / (tokens - 1), at the coordinator.",
        tally.time_per_output_token,
    )
    yield seconds("end_to_end", "Per answer: submitted to last token, at the coordinator.", tally.end_to_end)
    yield seconds("queue", "Per answer: submitted to dispatched to its workers, at the coordinator.", tally.queue)
    yield seconds(
        "prefill_queue", "Prompt received to its first chunk starts, at the prefill worker.", tally.prefill_queue
    )
    yield seconds(
        "prefill_compute", "First chunk starts to token 1 sampled, at the prefill worker.", tally.prefill_compute
    )
    yield seconds(
        "transfer",
        "KV transfer with at least one piece under way, at the prefill worker; it overlaps the computation.",
        tally.transfer,
    )
    yield seconds(
        "transfer_tail",
        "Token 1 sampled to last piece settled, at the prefill worker: the transfer that computing did not hide.",
        tally.transfer_tail,
    )
    yield seconds(
        "intake",
        "Request received to every page and digest in, at the decode worker; contains the prefill.",
        tally.intake,
    )
    yield seconds("verify", "Digest check of the pages received, at the decode worker.", tally.verify)
    yield seconds(
        "join", "Verified, or token 1 computed there, to first decode step starts, at the decode worker.", tally.join
    )
    yield seconds("decode", "First decode step starts to last token, at the decode worker.", tally.decode)


def _sizes(tally: Tally) -> Iterator[Metric]:
    yield histogram("kvrelay_transfer_bytes", "KV bytes handed off per request.", tally.transfer_bytes)
    yield histogram(
        "kvrelay_transfer_bytes_per_second",
        "Rate of a hand-off: its bytes over its kvrelay_transfer_seconds, so not faster than the prompt is computed.",
        tally.transfer_rate,
    )
    yield histogram("kvrelay_answer_prompt_tokens", "Per answer: tokens of its prompt.", tally.answer_prompt_tokens)
    yield histogram("kvrelay_answer_generated_tokens", "Per answer: its tokens.", tally.answer_generated_tokens)
    yield histogram(
        "kvrelay_answer_max_tokens",
        "Per answer: max_tokens as asked, or what the server filled in where the client left it open.",
        tally.answer_max_tokens,
    )


def _queues(cell: CellState, in_phase: Counter[Phase]) -> Iterator[Metric]:
    yield gauge(
        "kvrelay_requests_in_phase",
        "Requests by phase: queued at the coordinator, prefilling (no token yet), handing_off (token 1 is out, token 2 "
        "is not), decoding, finishing (the workers' last numbers are not in), ended (a worker still holds pages).",
        ["phase"],
        [([phase], in_phase[phase]) for phase in Phase],
    )
    yield gauge(
        "kvrelay_queued_prompt_tokens",
        "Prompt tokens of the requests that are queued at the coordinator.",
        [],
        [([], sum(len(cell.requests[request_id].prompt) for request_id in cell.queue))],
    )


def _heartbeats(workers: tuple[WorkerStatus, ...]) -> Iterator[Metric]:
    requests = gauge(
        "kvrelay_worker_requests",
        "From the worker's last heartbeat. Prefill: prompts being computed, and prompts that wait for their first "
        "chunk. Decode: sequences in the batch with prompts computed there, and requests that are being taken in.",
        ["worker", "role", "state"],
        [],
    )
    pages = gauge(
        "kvrelay_worker_pages",
        "From the worker's last heartbeat: pages free, reserved (by a request, a transfer or both), and quarantined "
        "(lost until the worker is restarted).",
        ["worker", "role", "state"],
        [],
    )
    pools = gauge("kvrelay_worker_pool_pages", "All pages of the worker.", ["worker", "role"], [])
    for worker in workers:
        who = (worker.worker_id, worker.role)
        requests.add_metric((*who, "running"), worker.running)
        requests.add_metric((*who, "waiting"), worker.waiting)
        pages.add_metric((*who, "free"), worker.free_pages)
        pages.add_metric((*who, "reserved"), worker.reserved_pages)
        pages.add_metric((*who, "quarantined"), worker.quarantined_pages)
        pools.add_metric(who, worker.total_pages)
    yield from (requests, pages, pools)


def _state(cell: CellState) -> Iterator[Metric]:
    prefills, decodes = cell.of_role("prefill"), cell.of_role("decode")
    yield gauge(
        "kvrelay_decode_unspent_pages",
        "Pages that the coordinator may still give to requests; admission goes by this, not by heartbeats.",
        ["worker"],
        [([worker.worker_id], worker.free_pages) for worker in decodes],
    )
    yield gauge(
        "kvrelay_prefill_backlog_tokens",
        "Prompt tokens sent to the worker and not yet computed.",
        ["worker"],
        [([worker.worker_id], worker.backlog_tokens) for worker in (*prefills, *decodes)],
    )
    yield gauge(
        "kvrelay_prefill_tokens_per_second",
        "Smoothed rate at which the worker computes prompts; routing goes by it. 0 before its first prompt.",
        ["worker"],
        [([worker.worker_id], worker.tokens_per_s) for worker in prefills],
    )
    yield gauge(
        "kvrelay_link_bytes_per_second",
        "Rate of the link from a prefill to a decode worker, as its self-test measured it when the link came up.",
        ["prefill", "decode", "transport"],
        [
            ([worker.worker_id, decode, test.transport], test.gigabytes_per_s * 1e9)
            for worker in prefills
            for decode, test in sorted(worker.links.items())
        ],
    )


def _http(http: HttpCounters) -> Iterator[Metric]:
    yield counter(
        "kvrelay_http_requests",
        "HTTP requests answered, by route template, method and status.",
        ["route", "method", "status"],
        [((route, method, str(status)), count) for (route, method, status), count in sorted(http.requests.items())],
    )
    yield counter(
        "kvrelay_http_limit_hits",
        "HTTP requests or connections refused because of a limit, by its name.",
        ["limit"],
        [([limit], count) for limit, count in sorted(http.limit_hits.items())],
    )
    yield counter(
        "kvrelay_http_disconnects",
        "HTTP clients that left before the end of their answer.",
        [],
        [([], http.disconnects)],
    )
    yield gauge("kvrelay_http_open_connections", "HTTP connections open now.", [], [([], http.open_connections)])
    yield gauge("kvrelay_http_open_streams", "Answers being streamed now.", [], [([], http.open_streams)])


def _version() -> str:
    try:
        return version("kvrelay")
    except PackageNotFoundError:
        return "unknown"
