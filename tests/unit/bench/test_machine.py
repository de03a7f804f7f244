import os
import platform
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench.machine import ROOT, environment


def test_it_names_the_versions_and_the_command() -> None:
    here = environment("python -m bench")
    assert here.command == "python -m bench"
    assert here.python == platform.python_version()
    assert here.torch == version("torch")
    assert here.transformers == version("transformers")
    assert here.ucx is not None
    assert here.ucxx is not None
    assert here.cores == len(os.sched_getaffinity(0))
    assert here.cpu


def test_it_names_no_path() -> None:
    text = msgspec.json.encode(environment("python -m bench")).decode()
    assert str(ROOT) not in text
    assert str(Path.home()) not in text
