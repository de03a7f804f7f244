"""The real model, once per session."""

import os
from pathlib import Path

import pytest

from launch import models


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The directory of the default model, fetched if this machine does not have it yet."""
    return models.resolve(models.DEFAULT_MODEL, models.default_cache_dir(os.environ, Path.home()))
