"""What did the server count while a tool ran?

Its own /metrics before and after: sums and counts of histograms, so means are exact.
"""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from bench.compat.tool import Counted

_TTFT = "kvrelay_time_to_first_token_seconds"
_ITL = "kvrelay_inter_token_latency_seconds"
_TPOT = "kvrelay_time_per_output_token_seconds"
_FINISHED = ("stop", "length")


def scrape(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        return parse(answer.read().decode())


def parse(text: str) -> dict[str, float]:
    """Sums and counts by name; `requests` are the answers that ended well."""
    values = {"requests": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "kvrelay_requests_total":
                values["requests"] += sample.value if sample.labels["outcome"] in _FINISHED else 0
            elif not sample.labels:
                values[sample.name] = sample.value
    return values


def counted(before: dict[str, float], after: dict[str, float]) -> Counted:
    def grown(name: str) -> float:
        return after[name] - before[name]

    def mean(name: str) -> float | None:
        count = grown(f"{name}_count")
        return grown(f"{name}_sum") / count if count else None

    return Counted(
        requests=round(grown("requests")),
        prompt_tokens=round(grown("kvrelay_prompt_tokens_total")),
        completion_tokens=round(grown("kvrelay_generated_tokens_total")),
        ttft_s=mean(_TTFT),
        itl_s=mean(_ITL),
        tpot_s=mean(_TPOT),
    )
