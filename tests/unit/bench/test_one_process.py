import pytest

from bench.one_process import first_token
from engine.fake import FakeEngine, fake_layout, fake_tokens


@pytest.mark.parametrize("prompt_tokens", [1, 7, 8, 9, 16, 40])
def test_token_1_is_that_of_the_whole_prompt_however_it_is_cut(prompt_tokens: int) -> None:
    engine = FakeEngine(fake_layout(page_tokens=4, kv_bytes_per_token=16), total_pages=10)
    prompt = [3 * i + 1 for i in range(prompt_tokens)]
    assert [first_token(engine, prompt, chunk_tokens=8)] == fake_tokens(prompt, 1)


def test_an_empty_prompt_is_a_mistake() -> None:
    engine = FakeEngine(fake_layout(page_tokens=4, kv_bytes_per_token=16), total_pages=1)
    with pytest.raises(ValueError, match="empty prompt"):
        first_token(engine, [], chunk_tokens=8)
