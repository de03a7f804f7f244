"""Does a wrong engine configuration fail before anything is loaded?"""

import msgspec
import pytest

from engine.config import EngineConfig


def test_a_plain_one() -> None:
    cfg = msgspec.convert({"model": "some/model", "pool_bytes": 1 << 30, "device": "cuda:3"}, EngineConfig)
    assert (cfg.dtype, cfg.page_tokens, cfg.load_format) == ("auto", 16, "auto")


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({}, id="no pool"),
        pytest.param({"pool_pages": 1, "pool_bytes": 1}, id="two sizes"),
        pytest.param({"pool_pages": 0}, id="no pages"),
        pytest.param({"pool_pages": 1, "device": "tpu"}, id="device"),
        pytest.param({"pool_pages": 1, "dtype": "int8"}, id="dtype"),
        pytest.param({"pool_pages": 1, "page_tokns": 4}, id="typing error"),
    ],
)
def test_wrong_ones(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"model": "some/model", **wrong}, EngineConfig)
