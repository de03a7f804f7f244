"""How does a report come from what an evaluation left on the disk?

A directory of results holds `study.json` and one `{run_id}.jsonl` per run.
"""

from pathlib import Path

import msgspec

from launch.evaluation.recording import STUDY_FILE
from launch.evaluation.report.page import render
from launch.evaluation.results import RequestResult, from_lines
from launch.evaluation.study import FORMAT, Study

PAGE = "report.html"


class StudyUnreadable(Exception):
    """The directory does not hold results that this version can read; the text says why."""


class _Head(msgspec.Struct):
    """What is read first, because a document of another format need not be a `Study`."""

    format: int


def load(directory: Path) -> tuple[Study, dict[str, tuple[RequestResult, ...]]]:
    """
    Returns:
        the study, and the requests of each run whose file is there: the page of a study without them is smaller.

    Raises:
        StudyUnreadable: there is no study, it is of another format, or a file is damaged.
    """
    path = directory / STUDY_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise StudyUnreadable(f"{path}: {error.strerror or error}; is this a directory of results?") from error
    try:
        found = msgspec.json.decode(text, type=_Head).format
        if found != FORMAT:
            raise StudyUnreadable(f"{path} has format {found}; this version of kvrelay reads format {FORMAT}")
        study = msgspec.json.decode(text, type=Study)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StudyUnreadable(f"{path}: {error}") from error
    kept = {run.run_id: _results(directory / f"{run.run_id}.jsonl") for run in study.runs}
    return study, {run_id: results for run_id, results in kept.items() if results}


def write(directory: Path, output: Path | None = None) -> Path:
    """Make the page of a directory of results; returns where it is, `report.html` in it if not said otherwise.

    Raises:
        StudyUnreadable: see `load`.
        OSError: the page cannot be written.
    """
    path = output if output is not None else directory / PAGE
    path.write_text(render(*load(directory)), encoding="utf-8")
    return path


def _results(path: Path) -> tuple[RequestResult, ...]:
    try:
        with path.open("rb") as lines:
            return tuple(from_lines(lines))
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StudyUnreadable(f"{path}: {error}") from error
