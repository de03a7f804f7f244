"""Is a system what its name says, and does a wrong name say what would be right?"""

import pytest

from launch.config import Workers
from launch.evaluation.systems import CellByName, OwnCell, SystemSpec, Url, parse_system


@pytest.mark.parametrize(
    ("text", "spec", "name"),
    [
        ("1P1D", OwnCell(Workers(prefill=1, decode=1)), "1P1D"),
        (" 2p3d ", OwnCell(Workers(prefill=2, decode=3)), "2P3D"),
        ("aggregated", OwnCell(Workers(prefill=0, decode=0, aggregated=1)), "aggregated 1"),
        ("aggregated 2", OwnCell(Workers(prefill=0, decode=0, aggregated=2)), "aggregated 2"),
        ("aggregated:2", OwnCell(Workers(prefill=0, decode=0, aggregated=2)), "aggregated 2"),
        ("cell:default", CellByName("default"), "cell:default"),
        ("http://127.0.0.1:8000", Url("http://127.0.0.1:8000"), "http://127.0.0.1:8000"),
        ("https://host.example/llm/v1/", Url("https://host.example/llm"), "https://host.example/llm"),
        ("http://[::1]:8000/v1", Url("http://[::1]:8000"), "http://[::1]:8000"),
    ],
)
def test_a_name_is_a_system(text: str, spec: SystemSpec, name: str) -> None:
    assert parse_system(text) == spec
    assert spec.name == name


@pytest.mark.parametrize(
    ("text", "help_"),
    [
        ("", "1P1D"),
        ("default", "cell:NAME"),
        ("cell:", "cell:NAME"),
        ("cell:a/b", "cell:NAME"),
        ("0P1D", "aggregated N"),
        ("aggregated:0", "at least one"),
        ("ftp://host", "http://HOST:PORT"),
        ("http://", "http://HOST:PORT"),
        ("http://host?x=1", "http://HOST:PORT"),
        ("http://user:secret@host", "environment"),
    ],
)
def test_what_is_none_is_told_what_would_be(text: str, help_: str) -> None:
    with pytest.raises(ValueError, match=help_):
        parse_system(text)
