"""Which of vLLM's metrics can a cell fill truthfully?

Aliases, so that dashboards and routers made for vLLM work unchanged. What vLLM counts and we do not have is absent, not
zero; docs/metrics.md lists it with the reasons. The cell as a whole is engine 0: all its decode workers are one cache.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric

from coordinator.http.families import Rows, counter, gauge, histogram
from coordinator.service import Service
from coordinator.state import Phase, WorkerRecord
from coordinator.tally import Histogram, Tally

_RUNNING = (Phase.PREFILLING, Phase.HANDING_OFF, Phase.DECODING)
_FINISHED = {
    "stop": ("stop",),
    "length": ("length",),
    "abort": ("cancelled",),
    "error": ("timeout", "worker_lost", "internal"),
}
"""vLLM's finished_reason and the outcomes that it means; a request that was turned away is none of them."""


def vllm_families(service: Service, in_phase: Counter[Phase]) -> Iterator[Metric]:
    labels = {"model_name": service.config.model, "engine": "0"}
    decodes = service.machine.cell.of_role("decode")
    yield from _state(labels, in_phase, decodes)
    yield from _counts(labels, service.tally)
    yield from _histograms(labels, service.tally)


def _state(labels: dict[str, str], in_phase: Counter[Phase], decodes: list[WorkerRecord]) -> Iterator[Metric]:
    names, values = tuple(labels), tuple(labels.values())

    def one(number: float) -> Rows:
        return [(values, number)]

    total = sum(worker.pool.total_pages for worker in decodes)
    free = sum(worker.free_pages for worker in decodes)
    yield gauge(
        "vllm:num_requests_running",
        "Requests that are with workers: prefilling, handing off or decoding.",
        names,
        one(sum(in_phase[phase] for phase in _RUNNING)),
    )
    yield gauge("vllm:num_requests_waiting", "Requests queued at the coordinator.", names, one(in_phase[Phase.QUEUED]))
    if not decodes:
        return  # there is no cache yet, so neither its size nor its use is known
    yield gauge(
        "vllm:kv_cache_usage_perc",
        "Share of the decode workers' pages that are given to requests or quarantined; 1 is full.",
        names,
        one(1 - free / total),
    )
    yield gauge(
        "vllm:cache_config_info",
        "Always 1; tokens per page, and pages of all decode workers together.",
        (*names, "block_size", "num_gpu_blocks"),
        [((*values, str(decodes[0].pool.page_tokens), str(total)), 1)],  # fingerprints make page sizes equal
    )


def _counts(labels: dict[str, str], tally: Tally) -> Iterator[Metric]:
    names, values = tuple(labels), tuple(labels.values())
    yield counter("vllm:prompt_tokens", "As kvrelay_prompt_tokens_total.", names, [(values, tally.prompt_tokens)])
    yield counter(
        "vllm:generation_tokens", "As kvrelay_generated_tokens_total.", names, [(values, tally.generated_tokens)]
    )
    by_reason: list[tuple[Sequence[str], float]] = [
        ((*values, reason), sum(tally.outcomes[outcome] for outcome in outcomes))
        for reason, outcomes in _FINISHED.items()
    ]
    yield counter(
        "vllm:request_success",
        "Requests that ended: abort is a cancel, error a time-out, a lost worker or an internal error.",
        (*names, "finished_reason"),
        by_reason,
    )


def _histograms(labels: dict[str, str], tally: Tally) -> Iterator[Metric]:
    def alias(name: str, text: str, measured: Histogram) -> HistogramMetricFamily:
        return histogram(f"vllm:{name}", text, measured, labels)

    same = "As kvrelay_{}.".format
    yield alias("time_to_first_token_seconds", same("time_to_first_token_seconds"), tally.time_to_first_token)
    yield alias("inter_token_latency_seconds", same("inter_token_latency_seconds"), tally.inter_token_latency)
    yield alias(
        "request_time_per_output_token_seconds", same("time_per_output_token_seconds"), tally.time_per_output_token
    )
    yield alias("e2e_request_latency_seconds", same("end_to_end_seconds"), tally.end_to_end)
    yield alias("request_queue_time_seconds", same("queue_seconds"), tally.queue)
    yield alias(
        "request_prefill_time_seconds",
        "Per answer: dispatched to token 1, at the coordinator.",
        tally.dispatched_to_first_token,
    )
    yield alias(
        "request_decode_time_seconds",
        "Per answer: token 1 to last token, at the coordinator.",
        tally.first_to_last_token,
    )
    yield alias(
        "request_inference_time_seconds",
        "Per answer: dispatched to last token, at the coordinator.",
        tally.dispatched_to_last_token,
    )
    yield alias("request_prompt_tokens", same("answer_prompt_tokens"), tally.answer_prompt_tokens)
    yield alias("request_generation_tokens", same("answer_generated_tokens"), tally.answer_generated_tokens)
    yield alias("request_params_max_tokens", same("answer_max_tokens"), tally.answer_max_tokens)
