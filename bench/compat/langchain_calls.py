"""What does langchain-openai make of this server?

`python langchain_calls.py URL MODEL`, in an environment that has langchain-openai and nothing of kvrelay. Prints a line
per call: what came of it, and the tokens that LangChain counted.
"""

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

QUESTION = "What is the capital of France?"
CITY = {
    "title": "City",
    "description": "A city and its country.",
    "type": "object",
    "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_OUTCOME_CHARS = 200


def joined(chunks: Iterable[Any]) -> Any:  # noqa: ANN401 - a message of LangChain
    whole = None
    for chunk in chunks:
        whole = chunk if whole is None else whole + chunk
    return whole


async def streamed(model: Any) -> Any:  # noqa: ANN401 - a message of LangChain
    return joined([chunk async for chunk in model.astream(QUESTION)])


def structured(model: Any, method: str) -> tuple[list[Any], str]:  # noqa: ANN401 - a model of LangChain
    done = model.with_structured_output(CITY, method=method, include_raw=True).invoke(f"{QUESTION} Answer in JSON.")
    if done["parsing_error"] is not None:
        raise done["parsing_error"]
    return [done["raw"]], json.dumps(done["parsed"])


def tools(model: Any, choice: str) -> tuple[list[Any], str]:  # noqa: ANN401 - a model of LangChain
    message = model.bind_tools([WEATHER], tool_choice=choice).invoke("How is the weather in Paris?")
    return [message], json.dumps([[call["name"], call["args"]] for call in message.tool_calls]) + f" {message.text!r}"


def say(name: str, call: Callable[[], tuple[list[Any], str]]) -> None:
    """Whatever happens is an outcome; that is what is asked here."""
    messages: list[Any] = []
    try:
        messages, outcome = call()
        ok = True
    except Exception as error:  # noqa: BLE001 - see above
        outcome, ok = f"{type(error).__name__}: {error}", False
    usage = [message.usage_metadata for message in messages]
    line = {
        "name": name,
        "ok": ok,
        "outcome": outcome[:_OUTCOME_CHARS],
        "requests": len(messages),
        "prompt_tokens": sum(one["input_tokens"] for one in usage),
        "completion_tokens": sum(one["output_tokens"] for one in usage),
    }
    print("call: " + json.dumps(line), flush=True)


def answers(messages: list[Any]) -> tuple[list[Any], str]:
    return messages, " | ".join(repr(message.content) for message in messages)


def main(url: str, name: str) -> None:
    chat = importlib.import_module("langchain_openai").ChatOpenAI  # no dependency of the project: nothing imports it
    model = chat(model=name, base_url=url, api_key="none", temperature=0, max_tokens=24, stream_usage=True)
    say("invoke", lambda: answers([model.invoke(QUESTION)]))
    say("stream", lambda: answers([joined(model.stream(QUESTION))]))
    say("astream", lambda: answers([asyncio.run(streamed(model))]))
    say("batch of 4", lambda: answers(model.batch([QUESTION, "Say yes.", "Count to three.", "Who are you?"])))
    say("with_structured_output, json_schema", lambda: structured(model, "json_schema"))
    say("with_structured_output, json_mode", lambda: structured(model, "json_mode"))
    say("with_structured_output, function_calling", lambda: structured(model, "function_calling"))
    say("bind_tools, tool_choice auto", lambda: tools(model, "auto"))
    say("bind_tools, tool_choice required", lambda: tools(model, "required"))


if __name__ == "__main__":
    main(*sys.argv[1:3])
