"""What configuration does a coordinator have that a test makes by hand?"""

from typing import Any

from coordinator.config import CoordinatorConfig


def coordinator_config(**changes: Any) -> CoordinatorConfig:
    """One worker of each role and no endpoint, but for `changes`."""
    fields: dict[str, Any] = {
        "run_dir": "",
        "parent_pid": 0,
        "client_endpoint": "",
        "worker_endpoint": "",
        "launcher_endpoint": "",
        "model": "m",
        "tokenizer_dir": None,
        "prefill_workers": 1,
        "decode_workers": 1,
    }
    return CoordinatorConfig(**fields | changes)
