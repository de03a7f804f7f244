"""Does the text of /metrics say what happened, in a form that Prometheus reads?"""

import re
import time
from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY

from coordinator.events import DrainAsked, FirstTokenMade, TokensMade
from coordinator.http.counters import HttpCounters
from coordinator.http.metrics import CONTENT_TYPE, Compat
from coordinator.state import Phase
from coordinator.tally import DURATION_BUCKETS_S
from coordinator.validation import InvalidRequest
from runtime.tokens import SampledToken
from tests.support.metrics import Samples, SimulatedService, ask, exposed_names, families, samples, value
from transport.messages.client import GenerateRequest
from transport.messages.worker import TokenStep

VLLM = {"model_name": "m", "engine": "0"}


def read(cell: SimulatedService, compat: Compat = "", http: HttpCounters | None = None) -> Samples:
    return samples(families(cell.exposition(compat, http).text()))


def test_an_answer_in_numbers() -> None:
    """The times of `SimulatedService.answer`: 0.5 s to token 1, gaps of 0.25, 0.1 and 0.1 s."""
    cell = SimulatedService()
    cell.answer()
    found = read(cell)
    assert value(found, "kvrelay_requests_total", outcome="length") == 1
    assert value(found, "kvrelay_requests_total", outcome="worker_lost") == 0, "a rate needs the zero before the one"
    assert value(found, "kvrelay_prompt_tokens_total") == 2
    assert value(found, "kvrelay_generated_tokens_total") == 4
    name = "kvrelay_inter_token_latency_seconds"
    assert value(found, f"{name}_count") == 3
    assert value(found, f"{name}_sum") == pytest.approx(0.45)
    assert value(found, f"{name}_bucket", le="0.075") == 0
    assert value(found, f"{name}_bucket", le="0.15") == 2, "buckets count everything up to their bound"
    assert value(found, f"{name}_bucket", le="0.3") == 3
    assert value(found, f"{name}_bucket", le="+Inf") == 3
    assert value(found, "kvrelay_time_to_first_token_seconds_sum") == pytest.approx(0.5)
    assert value(found, "kvrelay_end_to_end_seconds_sum") == pytest.approx(0.95)
    assert value(found, "kvrelay_transfer_bytes_sum") == 1_000_000
    assert value(found, "kvrelay_transfer_bytes_per_second_sum") == pytest.approx(5e6)
    assert value(found, "kvrelay_progress_age_seconds") == 0.0


def test_every_stage_has_its_queue() -> None:
    cell = SimulatedService(total_pages=12)  # room for four requests of three pages
    ids = [cell.submit(ask())[0] for _ in range(6)]
    for request_id in ids[1:4]:
        cell.first(request_id, 65)
    for request_id in ids[2:4]:
        cell.token(request_id, 1, 65)
    cell.service.cancel(ids[3])
    found = read(cell, "vllm")
    in_phase = {phase.value: value(found, "kvrelay_requests_in_phase", phase=phase) for phase in Phase}
    assert in_phase == {"queued": 2, "prefilling": 1, "handing_off": 1, "decoding": 1, "finishing": 0, "ended": 1}
    assert value(found, "kvrelay_queued_prompt_tokens") == 4
    assert value(found, "kvrelay_prefill_backlog_tokens", worker="p0") == 2
    assert value(found, "kvrelay_decode_unspent_pages", worker="d0") == 0
    assert value(found, "vllm:num_requests_running", **VLLM) == 3
    assert value(found, "vllm:num_requests_waiting", **VLLM) == 2
    assert value(found, "vllm:kv_cache_usage_perc", **VLLM) == 1.0
    assert value(found, "vllm:cache_config_info", block_size="4", num_gpu_blocks="12", **VLLM) == 1


def test_workers_as_their_heartbeats_told() -> None:
    found = read(SimulatedService())
    decode, prefill = {"worker": "d0", "role": "decode"}, {"worker": "p0", "role": "prefill"}
    assert value(found, "kvrelay_worker_pages", state="free", **decode) == 990
    assert value(found, "kvrelay_worker_pages", state="reserved", **decode) == 7
    assert value(found, "kvrelay_worker_pages", state="quarantined", **prefill) == 10
    assert value(found, "kvrelay_worker_pool_pages", **decode) == 1000
    assert value(found, "kvrelay_worker_requests", state="running", **decode) == 2
    assert value(found, "kvrelay_worker_requests", state="waiting", **prefill) == 30
    assert value(found, "kvrelay_workers", role="decode") == 1
    assert value(found, "kvrelay_workers_expected", role="decode") == 2
    assert value(found, "kvrelay_link_bytes_per_second", prefill="p0", decode="d0", transport="tcp") == 2e9


def test_health_and_drain() -> None:
    cell = SimulatedService()
    names = ("kvrelay_healthy", "kvrelay_accepting", "kvrelay_draining")
    assert [value(read(cell), name) for name in names] == [1, 1, 0]
    cell.service.handle(DrainAsked())
    assert [value(read(cell), name) for name in names] == [1, 0, 1]


def test_what_the_front_counts() -> None:
    http = HttpCounters(routes=frozenset({"/v1/completions"}), limits=("body", "connections"))
    http.answered("/v1/completions", "POST", 200)
    http.answered("/v1/completions", "POST", 200)
    http.answered("/v1/completions", "BREW", 405)
    http.answered("/etc/passwd", "GET", 404)
    http.answered(None, "GET", 404)
    http.limit_hit("body")
    http.open_connections, http.open_streams, http.disconnects = 3, 2, 1
    found = read(SimulatedService(), http=http)
    total = "kvrelay_http_requests_total"
    assert value(found, total, route="/v1/completions", method="POST", status="200") == 2
    assert value(found, total, route="/v1/completions", method="other", status="405") == 1
    assert value(found, total, route="other", method="GET", status="404") == 2
    assert value(found, "kvrelay_http_limit_hits_total", limit="body") == 1
    assert value(found, "kvrelay_http_limit_hits_total", limit="connections") == 0
    assert value(found, "kvrelay_http_open_connections") == 3
    assert value(found, "kvrelay_http_open_streams") == 2
    assert value(found, "kvrelay_http_disconnects_total") == 1
    with pytest.raises(KeyError):
        http.limit_hit("patience")


def test_vllm_names_are_there_only_when_asked_for() -> None:
    cell = SimulatedService()
    cell.answer()
    own = exposed_names(families(cell.exposition().text()))
    both = exposed_names(families(cell.exposition("vllm").text()))
    assert all(name.startswith("kvrelay_") for name in own)
    assert own.items() <= both.items()
    assert all(name.startswith("vllm:") for name in both.keys() - own.keys())


def test_vllm_names_in_numbers() -> None:
    cell = SimulatedService()
    cell.answer()
    cancelled, _ = cell.submit(ask())
    cell.service.cancel(cancelled)
    found = read(cell, "vllm")
    sums = {
        "time_to_first_token_seconds": 0.5,
        "inter_token_latency_seconds": 0.45,
        "request_time_per_output_token_seconds": 0.15,
        "e2e_request_latency_seconds": 0.95,
        "request_queue_time_seconds": 0.0,
        "request_prefill_time_seconds": 0.5,
        "request_decode_time_seconds": 0.45,
        "request_inference_time_seconds": 0.95,
        "request_prompt_tokens": 2,
        "request_generation_tokens": 4,
        "request_params_max_tokens": 8,
    }
    assert {name: value(found, f"vllm:{name}_sum", **VLLM) for name in sums} == pytest.approx(sums)
    assert value(found, "vllm:prompt_tokens_total", **VLLM) == 2
    assert value(found, "vllm:generation_tokens_total", **VLLM) == 4
    reasons = {r: value(found, "vllm:request_success_total", finished_reason=r, **VLLM) for r in ("length", "abort")}
    assert reasons == {"length": 1, "abort": 1}
    assert value(found, "vllm:num_requests_running", **VLLM) == 0, "a cancelled request runs no more"


def test_without_decode_workers_nothing_is_said_of_the_cache() -> None:
    cell = SimulatedService()
    cell.service.machine.cell.workers.pop("d0")
    names = exposed_names(families(cell.exposition("vllm").text()))
    assert "vllm:num_requests_waiting" in names
    assert not {"vllm:kv_cache_usage_perc", "vllm:cache_config_info"} & names.keys()


@pytest.mark.parametrize("compat", ["", "vllm"])
def test_counters_only_grow(compat: Compat) -> None:
    cell = SimulatedService()
    exposition = cell.exposition(compat)
    before: Samples = {}
    steps: list[Callable[[], object]] = [
        cell.answer,
        lambda: cell.submit(ask()),
        lambda: cell.service.cancel(1),
        cell.answer,
    ]
    for step in steps:
        step()
        found = families(exposition.text())
        after = samples(family for family in found if family.type in ("counter", "histogram"))
        assert after.keys() >= before.keys()
        fallen = [key for key, number in before.items() if after[key] < number]
        assert not fallen
        before = after


def test_no_label_grows_with_requests() -> None:
    """Neither the requests nor what their clients wrote leave a trace in the labels."""
    cell = SimulatedService()
    cell.answer()
    before = set(read(cell, "vllm"))
    for number in range(50):
        cell.answer()
        with pytest.raises(InvalidRequest):
            cell.submit(GenerateRequest(prompt="secret", model=f"model-{number}"))
    assert set(read(cell, "vllm")) == before
    assert "secret" not in cell.exposition("vllm").text().decode()


def test_names_and_texts_follow_the_rules_of_prometheus() -> None:
    cell = SimulatedService()
    for family in families(cell.exposition().text()):
        assert re.fullmatch(r"kvrelay_[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert not family.name.endswith("_total"), "only counters end in _total, and the parser takes that away"
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_bytes", "_per_second", "_tokens"))
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


def test_the_bounds_in_the_text_are_those_of_the_tally() -> None:
    found = read(SimulatedService())
    bounds = {
        float(dict(labels)["le"]) for name, labels in found if name == "kvrelay_time_to_first_token_seconds_bucket"
    }
    assert bounds == {*DURATION_BUCKETS_S, float("inf")}


def test_two_expositions_share_nothing() -> None:
    busy, idle = SimulatedService(), SimulatedService()
    busy.answer()
    assert value(read(busy), "kvrelay_generated_tokens_total") == 4
    assert value(read(idle), "kvrelay_generated_tokens_total") == 0
    assert not any(family.name.startswith("kvrelay") for family in REGISTRY.collect())


def test_the_text_is_plain_text_of_prometheus() -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
    assert SimulatedService().exposition().text().decode().endswith("\n")


def test_a_scrape_of_a_full_cell_does_not_stop_the_streams() -> None:
    """It is a few milliseconds; the bound is loose, because machines that test are busy."""
    cell = SimulatedService(total_pages=100_000)
    ids = [cell.submit(ask())[0] for _ in range(1000)]
    for request_id in ids[:500]:
        cell.service.handle(FirstTokenMade("p0", request_id, SampledToken(65), None))
        cell.service.handle(TokensMade("d0", (TokenStep(request_id, 1, SampledToken(65)),)))
    exposition = cell.exposition("vllm")
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        exposition.text()
        taken.append(time.perf_counter() - began)
    assert min(taken) < 0.05
