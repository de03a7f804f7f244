"""How does the page say whether tools and server agree?

Pure: runs to Markdown.
"""

from collections.abc import Iterator, Mapping, Sequence

from bench.compat.relaying import Added
from bench.compat.report_agreement import agreements
from bench.compat.runs import Run
from bench.compat.tool import ALLOWED_S, ALLOWED_SHARE, OUTPUT_TOKENS, PROMPT_TOKENS, Tool, agree
from bench.machine import Environment

_HEAD = """# Compatibility

Written by `make compat` (`python -m bench.compat`): do not edit. It starts a cell with the default model as
`kvrelay up` does, and runs tools that others wrote against it, unchanged and each in a virtual environment of its own.

Compared are the tokens that a tool counted with those that the server counted meanwhile (`/metrics` before and after):
exactly; and its mean TTFT and ITL with the server's own: within {share:.0%} or {ms:g} ms, whichever is more. The server
measures at the coordinator, from `submit` to a token's arrival there. What a tool shows in addition is HTTP, tokenising
the prompt, the network, and the tool itself, which runs on the same cores as the cell;
[experiments.md](experiments.md#what-lies-between-the-coordinator-and-a-benchmark-tool) takes that apart.

Each prompt has {prompt} tokens of text, to which the model's chat template adds its own; an answer has {output} tokens,
or, where that is said, lengths that the tool draws around it.
"""


def page(runs: Sequence[Run], tools: Mapping[str, Tool], where: Environment, added: Added) -> str:
    return "\n".join(_lines(runs, tools, where, added)) + "\n"


def _lines(runs: Sequence[Run], tools: Mapping[str, Tool], where: Environment, added: Added) -> Iterator[str]:
    yield _HEAD.format(share=ALLOWED_SHARE, ms=1000 * ALLOWED_S, prompt=PROMPT_TOKENS, output=OUTPUT_TOKENS)
    dirty = " with local changes" if where.dirty else ""
    yield (
        f"Measured {where.date} on {where.cores} cores ({where.cpu}), load average {where.load_average:g} before, at "
        f"{where.commit}{dirty}: Python {where.python}, torch {where.torch}, transformers {where.transformers}; "
        + ", ".join(sorted({f"{tools[run.tool].package} {run.version}" for run in runs}))
        + "."
    )
    yield "\n## Tokens\n"
    yield "| Tool | Concurrency | Requests | Prompt tokens: tool, server | Completion tokens: tool, server | Agree |"
    yield "|---|---|---|---|---|---|"
    for run in runs:
        theirs, ours = run.reported, run.server
        requests = f"{theirs.requests}" if theirs.requests == ours.requests else f"{theirs.requests}, {ours.requests}"
        yield (
            f"| {run.tool} | {run.concurrency} | {requests} | {theirs.prompt_tokens}, {ours.prompt_tokens} "
            f"| {theirs.completion_tokens}, {ours.completion_tokens} | {_yes(run.tokens_agree)} |"
        )
    yield "\n## Times, beside the server's own\n"
    yield "| Tool | Concurrency | What | Tool | Server | Difference | Agree |"
    yield "|---|---|---|---|---|---|---|"
    for run in runs:
        yield from _times(run)
    yield from agreements(runs, added)
    yield from _calls(runs)
    yield "\n## Commands and definitions"
    for run in runs:
        if run is next(other for other in runs if other.tool == run.tool):
            yield f"\n### {run.tool}\n\n{tools[run.tool].definitions} {tools[run.tool].notes}\n"
        yield f"```bash\n{_environment(tools[run.tool])}{run.command}\n```"


def _times(run: Run) -> Iterator[str]:
    for what, theirs, ours in (
        ("TTFT", run.reported.ttft_s, run.server.ttft_s),
        ("ITL", run.reported.itl_s, run.server.itl_s),
        ("TPOT", run.reported.tpot_s, run.server.tpot_s),
    ):
        if theirs is not None and ours is not None:
            difference = f"{1000 * (theirs - ours):+.2f} ms ({(theirs - ours) / ours:+.1%})"
            yield (
                f"| {run.tool} | {run.concurrency} | {what} | {1000 * theirs:.2f} ms | {1000 * ours:.2f} ms "
                f"| {difference} | {_yes(agree(theirs, ours))} |"
            )


def _calls(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        if run.reported.calls:
            yield f"\n## Calls of {run.tool}\n"
            yield "| Call | Works | What came of it |"
            yield "|---|---|---|"
            for call in run.reported.calls:
                outcome = call.outcome.replace("|", "\\|").replace("\n", " ")
                yield f"| {call.name} | {_yes(call.ok)} | {outcome} |"


def _environment(tool: Tool) -> str:
    return "".join(f"{name}={value} " for name, value in tool.environment.items())


def _yes(agreed: bool | None) -> str:
    return "yes" if agreed else "**no**"
