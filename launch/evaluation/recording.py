"""Where do the results of an evaluation lie?

In one directory: `study.json`, one `{run_id}.jsonl` per run with a line per request, and the report that
`launch.evaluation.report.files` makes of them. A run is written when it ends, and the study so far with it, so an
evaluation that is stopped or killed keeps what it had.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from launch.evaluation.results import RequestResult, to_lines
from launch.evaluation.study import Study

STUDY_FILE = "study.json"


class Recording:
    def __init__(self, directory: Path, *, new: bool = False) -> None:
        """
        Args:
            new: it must not be there yet.

        Raises:
            ValueError: the directory holds results already, or cannot be made.
        """
        if (directory / STUDY_FILE).exists() or any(directory.glob("*.jsonl")):
            raise ValueError(
                f"{directory} holds results already (study.json or *.jsonl); choose another directory with --output"
            )
        try:
            directory.mkdir(parents=True, exist_ok=not new)
        except OSError as error:
            raise ValueError(f"cannot write to {directory}: {error.strerror}") from error
        self.directory = directory

    @property
    def has_study(self) -> bool:
        return (self.directory / STUDY_FILE).exists()

    def requests(self, run_id: str, results: Sequence[RequestResult]) -> None:
        with _replacing(self.directory / f"{run_id}.jsonl") as path, path.open("wb") as file:
            file.writelines(to_lines(results))

    def study(self, study: Study) -> None:
        with _replacing(self.directory / STUDY_FILE) as path:
            path.write_bytes(msgspec.json.format(msgspec.json.encode(document(study)), indent=1))


def document(study: Study) -> dict[str, Any]:
    """The study; of a single run also the keys of `vllm bench serve`, at the top, where its readers look."""
    told: dict[str, Any] = msgspec.to_builtins(study)
    if len(study.runs) != 1:
        return told
    run = study.runs[0]
    return {
        "date": study.created,
        "backend": "kvrelay",
        "label": run.system,
        "model_id": study.environment.get("model"),
        **run.vllm,
        **told,
    }


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file that is whole or not there."""
    part = path.with_name(f".{path.name}.part")
    yield part
    os.replace(part, path)
