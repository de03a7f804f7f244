import os
import time

from bench.loads import cpu_s


def test_cpu_time_is_the_kernels_account_of_a_process() -> None:
    before, started = cpu_s(os.getpid()), time.process_time()
    while time.process_time() - started < 0.05:
        pass
    spent = cpu_s(os.getpid()) - before
    # A tick is 10 ms, and two counts, of user and of system time, are rounded.
    assert 0.029 <= spent <= time.process_time() - started + 0.031
