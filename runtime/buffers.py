"""What is a piece of memory that the engine owns and the transport moves?

The only type that both speak: the engine makes regions of its KV pool, the transport sends from them and receives into
them. A region does not keep its memory alive; the pool that made it does, and the pool lives as long as the process.
"""

from dataclasses import dataclass
from enum import StrEnum


class MemoryKind(StrEnum):
    HOST = "host"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True)
class Region:
    """A contiguous range of bytes at `address`; `device` is the CUDA ordinal and 0 for host memory."""

    address: int
    nbytes: int
    kind: MemoryKind = MemoryKind.HOST
    device: int = 0

    def slice(self, offset: int, nbytes: int) -> "Region":
        """The `nbytes` bytes that start `offset` bytes into this region.

        Raises:
            ValueError: the slice leaves the region.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"slice {offset}+{nbytes} leaves a region of {self.nbytes} bytes")
        return Region(self.address + offset, nbytes, self.kind, self.device)
