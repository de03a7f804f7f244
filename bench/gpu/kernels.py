"""Are the kernels right, compiled for this GPU?

Runs their unit tests: compiled on a GPU, in Triton's interpreter without one, which the environment decides that
`bench.gpu.parts` gives to every part.
"""

from bench.gpu.parts import Settings, Tell
from bench.gpu.tested import run_tests

_TESTS = "tests/unit/engine/cuda"


def run(_settings: Settings, tell: Tell) -> None:
    run_tests(tell, "kernels", _TESTS)
