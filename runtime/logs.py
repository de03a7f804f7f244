"""What does a log line look like?

One line per event on stderr, which the launcher collects: time, level, process, event, then `key=value` pairs passed as
`extra={"fields": {...}}`. Prompts and answers are never logged; request ids always are.
"""

import logging
import sys
from collections.abc import Mapping


class _LineFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)-7s {process:<14} %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        fields: Mapping[str, object] = getattr(record, "fields", {})
        pairs = " ".join(f"{key}={_printable(value)}" for key, value in fields.items())
        return f"{line} {pairs}" if pairs else line


def _printable(value: object) -> str:
    """Control characters would let a client write lines of its own into the log."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def configure(process: str, level: str = "INFO") -> None:
    """Send the log of this process to stderr; called once, by `__main__`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel("WARNING")
    logging.getLogger("kvrelay").setLevel(level)


def get(name: str) -> logging.Logger:
    return logging.getLogger(f"kvrelay.{name}")
