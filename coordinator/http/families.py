"""How does a number that we keep become what Prometheus reads?

Small constructors around the metric families of `prometheus_client`. Nothing is kept between two scrapes.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from coordinator.tally import BYTE_BUCKETS, DURATION_BUCKETS_S, RATE_BUCKETS, TOKEN_BUCKETS, Histogram

_LE = {
    bounds: (*(str(bound) for bound in bounds), "+Inf")
    for bounds in (DURATION_BUCKETS_S, TOKEN_BUCKETS, BYTE_BUCKETS, RATE_BUCKETS)
}

Rows = Iterable[tuple[Sequence[str], float]]  # label values and the number


def gauge(name: str, text: str, labels: Sequence[str], rows: Rows) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def counter(name: str, text: str, labels: Sequence[str], rows: Rows) -> CounterMetricFamily:
    """`name` without the `_total` that the text form appends."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def histogram(
    name: str, text: str, measured: Histogram, labels: Mapping[str, str] | None = None
) -> HistogramMetricFamily:
    labels = labels or {}
    family = HistogramMetricFamily(name, text, labels=tuple(labels))
    buckets = list(zip(_LE[measured.bounds], accumulate(measured.counts), strict=True))
    family.add_metric(tuple(labels.values()), buckets, measured.total)
    return family
