"""How is langchain-openai run against a cell, and what does its script print?

It is a library, so the program is ours: `langchain_calls.py`, run by the Python of its virtual environment, knows
nothing of kvrelay and prints one JSON object per call. `-P` hides the modules beside the script, one of which has the
name of a package that LangChain looks for.
"""

from pathlib import Path

import msgspec

from bench.compat.tool import Call, Counted, Load, Tool

_SCRIPT = Path(__file__).with_name("langchain_calls.py")
MARK = "call: "


class _Line(msgspec.Struct):
    name: str
    ok: bool
    outcome: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


def command(load: Load) -> list[str]:
    return ["python", "-P", str(_SCRIPT), f"{load.url}/v1", load.model]


def read(_folder: Path, printed: str) -> Counted:
    return parse(printed)


def parse(printed: str) -> Counted:
    lines = [
        msgspec.json.decode(line.removeprefix(MARK), type=_Line)
        for line in printed.splitlines()
        if line.startswith(MARK)
    ]
    return Counted(
        requests=sum(line.requests for line in lines),
        prompt_tokens=sum(line.prompt_tokens for line in lines),
        completion_tokens=sum(line.completion_tokens for line in lines),
        calls=tuple(Call(name=line.name, outcome=line.outcome, ok=line.ok) for line in lines),
    )


TOOL = Tool(
    name="langchain",
    requirement="langchain-openai==1.7.*",
    package="langchain-openai",
    command=command,
    read=read,
    account=None,
    environment={},
    definitions="Measures no times. Counts are the sums of `usage_metadata`.",
    notes="Streams carry usage only with `stream_usage=True`.",
)
