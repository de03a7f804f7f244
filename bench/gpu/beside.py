"""How do our steps stand beside what others do on the same GPU?

Pure: rows of several parts to their ratios.
"""

from collections.abc import Sequence

from bench.rows import Row

OURS = "tokens per second"
"""The quantity of `bench.gpu.steps` that theirs is compared with, under the same name."""


def beside(rows: Sequence[Row]) -> list[Row]:
    """Pure. Ours over theirs, wherever both were measured with as many rows of as much context."""
    ours = {_size(row): row for row in rows if row.benchmark == "steps" and row.quantity == OURS}
    compared = []
    for theirs in rows:
        one = ours.get(_size(theirs)) if theirs.benchmark != "steps" and theirs.quantity == OURS else None
        if one is not None and theirs.minimum > 0:
            compared.append(
                Row(
                    benchmark="beside",
                    quantity=f"decode, ours / {theirs.benchmark}",
                    parameters=theirs.parameters,
                    unit="ratio",
                    repetitions=min(one.repetitions, theirs.repetitions),
                    median=one.median / theirs.median,
                    minimum=one.minimum / theirs.maximum,
                    maximum=one.maximum / theirs.minimum,
                    limited_by="tokens per second of the two, which ran one after the other: engine.forward here, "
                    "generate with its own scheduling there",
                )
            )
    return compared


def _size(row: Row) -> tuple[str | int | None, str | int | None]:
    return row.parameters.get("rows"), row.parameters.get("context")
