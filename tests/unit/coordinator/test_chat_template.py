"""Is the prompt of a chat the one that transformers makes of it?"""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from coordinator.chat_template import ChatTemplate

CHATML = """\
{% for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}
    {%- endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
  {% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
  {% endif %}
"""
LLAMA = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- if tools is not none %}{{ 'tools!' }}{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now('%d %b %Y') %}
{%- endif %}
{{- system + date_string }}
{%- for message in messages %}
    {%- if message.role not in ['user', 'assistant'] %}{{ raise_exception('no ' + message.role + ' here') }}{% endif %}
    {%- if message.content == 'stop' %}{% break %}{% endif %}
    {{- message | tojson }}{{ message | tojson(indent=2) }}{{ eos_token }}
{%- endfor %}
{%- set ns = namespace(n=0) %}
{%- generation %}{% set system = 'inner' %}{% set ns.n = messages | length %}{{ unk_token }}answer{% endgeneration %}
{{- system ~ ns.n }}
"""
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
ROLE = st.sampled_from(["user", "assistant"])
CHAT = st.tuples(
    st.sampled_from([[], [{"role": "system", "content": "  Sei höflich. \n"}]]),
    st.lists(st.fixed_dictionaries({"role": ROLE, "content": st.text(max_size=20)}), min_size=1, max_size=4),
).map(lambda parts: parts[0] + parts[1])


@settings(deadline=None)
@given(st.sampled_from([CHATML, LLAMA]), CHAT)
def test_equals_transformers(source: str, messages: list[dict[str, str]]) -> None:
    oracle: Any = render_jinja_template  # its annotations are wrong about what it returns
    (expected,), _ = oracle([messages], chat_template=source, add_generation_prompt=True, **TOKENS)
    assert ChatTemplate(source, TOKENS).render(messages) == expected


def test_a_chat_by_hand() -> None:
    prompt = ChatTemplate(CHATML, {}).render([{"role": "user", "content": "<b>Grüß dich & 東京</b>"}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        "<|im_start|>user\n<b>Grüß dich & 東京</b><|im_end|>\n"
        "<|im_start|>assistant\n\n"
    )


def test_the_date_is_today() -> None:
    template = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {})
    before = datetime.now().strftime("%Y-%m-%d")
    assert template.render([{"role": "user", "content": ""}]) in {before, datetime.now().strftime("%Y-%m-%d")}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "^roles must alternate$"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% for i in range(10000000) %}{% endfor %}", "Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_failing_template_is_a_value_error(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(source, {}).render([{"role": "user", "content": "x"}])


def test_a_template_cannot_change_the_messages_of_the_caller() -> None:
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(ValueError, match="safe"):
        ChatTemplate("{{ messages[0].update(content='y') }}", {}).render(messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_a_broken_template_is_found_at_once() -> None:
    with pytest.raises(ValueError, match="line 2"):
        ChatTemplate("ok\n{% if %}", {})


def test_an_empty_chat_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one message"):
        ChatTemplate(CHATML, {}).render([])


def test_templates_read_no_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(ValueError, match="loader"):
        ChatTemplate(f"{{% include '{tmp_path}/secret' %}}", {}).render([{"role": "user", "content": "x"}])
