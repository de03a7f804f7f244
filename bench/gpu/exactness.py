"""Does a cell whose workers share a GPU answer what transformers' `generate` answers, token for token?

Runs the end-to-end test of that: tiny random models in float32, one prefill and one decode worker, started as
`kvrelay up` starts them, pages over UCX.
"""

from bench.gpu.parts import Settings, Tell
from bench.gpu.tested import run_tests

_TESTS = "tests/e2e/test_gpu_exactness.py"


def run(_settings: Settings, tell: Tell) -> None:
    run_tests(tell, "exactness", _TESTS)
