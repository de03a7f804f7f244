"""Which process runs on which cores?

Pure. Every worker gets cores of its own and as many torch threads as it has cores, so that no two workers fight for one
(design decision 14). With more workers than cores they share, one core each. The coordinator is not pinned: it sleeps
between messages, and the kernel finds it a core faster than we could.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    prefill: tuple[tuple[int, ...], ...]  # cores of each prefill worker
    decode: tuple[tuple[int, ...], ...]
    shared: bool  # True when workers outnumber the cores


def place(cores: Sequence[int], prefill: int, decode: int) -> Placement:
    """Contiguous shares, as equal as they can be; prefill gets what is left over, because it is bound by compute.

    Raises:
        ValueError: no cores or no workers.
    """
    workers = prefill + decode
    if not cores or workers == 0:
        raise ValueError("there is nothing to place")
    if workers > len(cores):
        single = [(cores[i % len(cores)],) for i in range(workers)]
        return Placement(tuple(single[:prefill]), tuple(single[prefill:]), shared=True)
    share, left = divmod(len(cores), workers)
    shares: list[tuple[int, ...]] = []
    start = 0
    for worker in range(workers):
        size = share + (1 if worker < left else 0)
        shares.append(tuple(cores[start : start + size]))
        start += size
    return Placement(tuple(shares[:prefill]), tuple(shares[prefill:]), shared=False)
