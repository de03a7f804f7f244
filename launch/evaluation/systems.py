"""How does one name the server that is to be measured?

Pure. `1P1D` and `aggregated 2` are cells that the evaluation starts itself, `cell:NAME` is one that runs already, and
everything with a scheme is a URL.
"""

import re
from urllib.parse import urlsplit

from msgspec import Struct

from launch.config import Workers

GRAMMAR = "1P1D, 2P1D, 'aggregated 2' (or aggregated:2), cell:NAME, or http://HOST:PORT"

_SPLIT = re.compile(r"(\d+)p(\d+)d", re.IGNORECASE)
_AGGREGATED = re.compile(r"aggregated(?:[ :]\s*(\d+))?", re.IGNORECASE)
_CELL_NAME = re.compile(r"[A-Za-z0-9_-]+")


class OwnCell(Struct, frozen=True):
    """Started and ended by the evaluation."""

    workers: Workers

    @property
    def name(self) -> str:
        workers = self.workers
        if workers.aggregated:
            return f"aggregated {workers.aggregated}"
        return f"{workers.prefill}P{workers.decode}D"


class CellByName(Struct, frozen=True):
    """Runs on this machine already."""

    cell: str

    @property
    def name(self) -> str:
        return f"cell:{self.cell}"


class Url(Struct, frozen=True):
    """Any server with the OpenAI API; `base` is without `/v1`."""

    base: str

    @property
    def name(self) -> str:
        return self.base


SystemSpec = OwnCell | CellByName | Url


def parse_system(text: str) -> SystemSpec:
    """
    Raises:
        ValueError: it names no system; the text says what would.
    """
    text = text.strip()
    if "://" in text:
        return Url(_base(text))
    if split := _SPLIT.fullmatch(text):
        prefill, decode = int(split[1]), int(split[2])
        if prefill < 1 or decode < 1:
            raise ValueError(f"{text}: a cell needs a prefill and a decode worker; for one kind alone: aggregated N")
        return OwnCell(Workers(prefill=prefill, decode=decode))
    if aggregated := _AGGREGATED.fullmatch(text):
        count = int(aggregated[1] or 1)
        if count < 1:
            raise ValueError(f"{text}: a cell needs at least one worker")
        return OwnCell(Workers(prefill=0, decode=0, aggregated=count))
    kind, colon, name = text.partition(":")
    if colon and kind == "cell" and _CELL_NAME.fullmatch(name):
        return CellByName(name)
    raise ValueError(f"{text!r} names no system; a system is {GRAMMAR}")


def _base(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{text!r} is no URL of a server; say http://HOST:PORT")
    path = parts.path.rstrip("/").removesuffix("/v1")
    if "@" in parts.netloc:
        raise ValueError("a URL with a password would end up in every report; the API key comes from the environment")
    return f"{parts.scheme}://{parts.netloc}{path}"
