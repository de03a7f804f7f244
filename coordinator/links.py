"""Which prefill worker may hand off to which decode worker?

Pure; called by `coordinator.machine`. A pair becomes a link after pages of its real pools have travelled over the path
that requests will take, twice: the first transfer warms the connection up, the second is measured and reported. The
decode worker's pages for it are credits like any others, so a test can run beside requests.
"""

from coordinator.events import Tell
from coordinator.state import CellState, LinkTest, WorkerRecord
from runtime.buffers import MemoryKind
from transport.messages.worker import SelfTest, SelfTestDone

SELF_TEST_BYTES = 16 << 20
_SLOW_RATIO = 0.02  # TCP on one host does 0.05 to 0.15 of a memory copy
_ENOUGH_BYTES = 8 << 20  # what a smaller transfer measures is how fast messages are, not bytes
_WORDS_S = 0.003  # what two ports say to each other, whatever the pages are moved with: a GPU copies 16 MiB in 10 us
_DIRECT = ("cuda_ipc", "gdr_copy", "rc_", "dc_", "ud_", "srd")  # of UCX's transports: NVLink or PCIe, and RDMA


def is_slow(test: SelfTestDone) -> bool:
    """Far below one memory copy: worth a loud warning. So look GPUs without cuda_ipc, and busy cores."""
    least_per_s = _SLOW_RATIO * test.memcpy_gigabytes_per_s * 1e9
    if test.nbytes < _ENOUGH_BYTES or least_per_s == 0:
        return False
    allowed_s = test.nbytes / least_per_s + _WORDS_S
    return test.gigabytes_per_s * 1e9 * allowed_s < test.nbytes


def is_staged(test: SelfTestDone) -> bool:
    """Pages of GPU memory that UCX copies through the host's: worth a loud warning, too, however fast it was. A
    transport that UCX does not name says nothing."""
    named = [name for name in test.transport.split("+") if name not in ("", "unknown")]
    return test.memory is MemoryKind.CUDA and not all(name.startswith(_DIRECT) for name in named)


def start_missing(cell: CellState) -> list[Tell]:
    """Start a test for a pair without a link, if the decode worker has pages for it now. One at a time: two tests that
    share cores or memory would measure each other."""
    if cell.link_tests:
        return []
    for prefill in cell.of_role("prefill"):
        for decode in cell.of_role("decode"):
            pair = (prefill.worker_id, decode.worker_id)
            if decode.worker_id in prefill.links or pair in cell.failed_links:
                continue  # first, because this runs after every event: tokens must not pay for the sizing of tests
            pages = _pages(prefill, decode)
            if pages <= decode.free_pages:
                return _start(cell, LinkTest(*pair, pages=pages, warm=pair in cell.warm_links))
    return []


def reported(cell: CellState, worker_id: str, report: SelfTestDone) -> None:
    """One side of a test is done. `start_missing` starts its second round, and a failed one again after a tick."""
    test = cell.link_tests.get(report.transfer_id)
    worker = cell.workers.get(worker_id)
    if test is None or worker is None or worker.role not in test.waiting_for:
        return
    test.waiting_for.discard(worker.role)
    test.failed = test.failed or report.error is not None
    worker.quarantined_pages += report.quarantined_pages
    if worker.role == "decode":
        worker.free_pages += test.pages - report.quarantined_pages
    else:
        test.measured = report
    if test.waiting_for:
        return
    del cell.link_tests[report.transfer_id]
    pair = (test.prefill, test.decode)
    if test.failed or test.measured is None:
        cell.failed_links.add(pair)
    elif test.warm:
        cell.workers[test.prefill].links[test.decode] = test.measured
    else:
        cell.warm_links.add(pair)


def forget(cell: CellState, lost: str) -> None:
    """A worker is gone and its links with it. A test of it has failed, and is over when the other side has reported."""
    cell.warm_links = {pair for pair in cell.warm_links if lost not in pair}
    for worker in cell.workers.values():
        worker.links.pop(lost, None)
    for transfer_id, test in list(cell.link_tests.items()):
        if lost in (test.prefill, test.decode):
            test.failed = True
            test.waiting_for.discard("prefill" if lost == test.prefill else "decode")
            if not test.waiting_for:
                del cell.link_tests[transfer_id]


def _start(cell: CellState, test: LinkTest) -> list[Tell]:
    prefill, decode = cell.workers[test.prefill], cell.workers[test.decode]
    transfer_id = cell.new_transfer_id()
    cell.link_tests[transfer_id] = test
    decode.free_pages -= test.pages
    return [
        Tell(decode.worker_id, SelfTest(transfer_id=transfer_id, peer=prefill.peer, pages=test.pages)),
        Tell(prefill.worker_id, SelfTest(transfer_id=transfer_id, peer=decode.peer, pages=test.pages)),
    ]


def _pages(prefill: WorkerRecord, decode: WorkerRecord) -> int:
    smaller = min(worker.pool.total_pages - worker.quarantined_pages for worker in (prefill, decode))
    return max(1, min(SELF_TEST_BYTES // prefill.pool.page_bytes, smaller // 2))
