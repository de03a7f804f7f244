"""What is one result of a benchmark?

Pure. A benchmark repeats each measurement and makes a `Row` of the values; `bench.report` prints and writes rows.
"""

from collections.abc import Mapping, Sequence
from statistics import median

from msgspec import Struct


class Row(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One quantity, measured `repetitions` times.

    Attributes:
        benchmark: which benchmark measured it.
        quantity: what was measured.
        parameters: what was varied, such as the size of a transfer.
        unit: of median, minimum and maximum; `ratio` has none.
        limited_by: one sentence on what keeps it from being better, or on how to read it.
    """

    benchmark: str
    quantity: str
    parameters: dict[str, str | int]
    unit: str
    repetitions: int
    median: float
    minimum: float
    maximum: float
    limited_by: str


def summarise(  # noqa: PLR0913 - the fields of a row, by name
    benchmark: str,
    quantity: str,
    values: Sequence[float],
    *,
    unit: str,
    limited_by: str,
    parameters: Mapping[str, str | int] | None = None,
    scale: float = 1.0,
) -> Row:
    """The row of `values`, each multiplied by `scale` to become `unit`.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError(f"{quantity} was never measured")
    scaled = [value * scale for value in values]
    return Row(
        benchmark=benchmark,
        quantity=quantity,
        parameters=dict(parameters or {}),
        unit=unit,
        repetitions=len(scaled),
        median=median(scaled),
        minimum=min(scaled),
        maximum=max(scaled),
        limited_by=limited_by,
    )
