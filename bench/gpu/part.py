"""How does one part of the check run in a process of its own?

`python -m bench.gpu.part MODULE SETTINGS.json RECORDS.jsonl`, started by `bench.gpu.parts`. What it tells is in the
file at once, a line each.
"""

import faulthandler
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

import msgspec

from bench.gpu.parts import Rates, Record, Settings
from bench.rows import Row
from runtime import config, logs
from runtime.process import die_with_parent

_LAST_WORDS_S = 2.0


class Teller:
    """A `bench.gpu.parts.Tell`; `file` has no buffer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __call__(
        self,
        *rows: Row,
        note: str | None = None,
        rates: Rates | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        for row in rows:
            self._write(Record(row=row))
        if note is not None or rates is not None or facts is not None:
            self._write(Record(note=note, rates=rates, facts=dict(facts) if facts is not None else None))

    def _write(self, record: Record) -> None:
        self._file.write(msgspec.json.encode(record) + b"\n")


def main() -> None:
    module, settings_file, records = sys.argv[1:]
    settings = config.read(Path(settings_file), Settings)
    die_with_parent(settings.parent_pid)
    logs.configure("gpu-check")
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(settings.limit_s - _LAST_WORDS_S, 1.0))  # where it hangs, before it is killed
    with Path(records).open("ab", buffering=0) as file:
        import_module(module).run(settings, Teller(file))


if __name__ == "__main__":
    main()
