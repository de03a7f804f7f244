"""How does a conversation become the prompt that a model was trained on?

By the model's own Jinja template, in the environment that `transformers.apply_chat_template` defines; a test holds the
two against each other. The template comes with the model, so it runs in jinja2's sandbox.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_FAILURES = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)


class ChatTemplate:
    """A compiled template.

    Args:
        source: the Jinja text.
        special_tokens: such as `bos_token` -> `<s>`, visible to the template by these names.

    Raises:
        ValueError: `source` is not a Jinja template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source)
            self.takes_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        except TemplateSyntaxError as error:
            raise ValueError(f"the model's chat template is broken in line {error.lineno}: {error}") from error
        self._special_tokens = dict(special_tokens)
        self.source = source

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] = (),
        arguments: Mapping[str, object] = MappingProxyType({}),
    ) -> str:
        """The prompt, up to where the assistant's answer begins.

        Args:
            tools: functions that the model may call, in the form of the OpenAI API.
            arguments: further variables; they cannot replace those that are set here.

        Raises:
            ValueError: the template refuses these messages (its own words), or there are none.
        """
        if not messages:
            raise ValueError("a chat has at least one message")
        variables = {
            **arguments,
            **self._special_tokens,
            "messages": list(messages),
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            return self._template.render(variables)
        except _FAILURES as error:
            raise ValueError(str(error)) from error


class _GenerationBlock(Extension):
    """`{% generation %}`: marks the assistant's tokens for training and shows its body here."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance's set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own, without escaping for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
