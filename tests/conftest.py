"""How does hypothesis look for counterexamples, and where do kernels run?

Hypothesis: the same examples in every run, so that a change is red for its own sake and red for everybody. To search
elsewhere and longer: `pytest --hypothesis-profile=search tests/property`.

Kernels: compiled, on a GPU; without one Triton interprets them on the CPU. It asks for that when it is first imported.
"""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("kvrelay", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=5000, deadline=None)
settings.load_profile("kvrelay")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels are tested."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
