"""Do the two layouts of a measured transfer hold the same bytes in the memory that they say?"""

import ctypes
import itertools
import zlib

import pytest

from bench.transfer_peer import Pool


@pytest.mark.parametrize(("nbytes", "run_bytes", "runs"), [(100, 100, 1), (100, 40, 3), (80, 40, 2), (1, 40, 1)])
def test_runs_cover_the_bytes_with_a_gap_between_any_two(nbytes: int, run_bytes: int, runs: int) -> None:
    pool = Pool(2 * nbytes + run_bytes)
    regions = pool.regions(nbytes, run_bytes)
    assert len(regions) == runs
    assert sum(region.nbytes for region in regions) == nbytes
    for one, following in itertools.pairwise(regions):
        assert following.address - (one.address + one.nbytes) == run_bytes
    held = b"".join(ctypes.string_at(region.address, region.nbytes) for region in regions)
    assert pool.checksum(nbytes, run_bytes) == zlib.crc32(held)


def test_clearing_touches_the_runs_alone() -> None:
    pool = Pool(1000)
    everything = ctypes.string_at(pool.regions(1000, 1000)[0].address, 1000)
    pool.clear(250, 100)  # 0-100, 200-300, 400-450
    cleared = ctypes.string_at(pool.regions(1000, 1000)[0].address, 1000)
    runs = [range(0, 100), range(200, 300), range(400, 450)]
    expected = bytearray(everything)
    for run in runs:
        expected[run.start : run.stop] = bytes(len(run))
    assert cleared == bytes(expected)
    assert pool.checksum(250, 100) == zlib.crc32(bytes(250))
