"""How does the page say whether a tool and this project measure the same in the same requests?

Pure: agreements to Markdown.
"""

from collections.abc import Iterator, Sequence

from bench.compat.agreement import Agreement, Row, Widest
from bench.compat.relaying import Added
from bench.compat.runs import Run
from bench.compat.tool import ALLOWED_S, ALLOWED_SHARE, Quantity

_NAMES: dict[Quantity, str] = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "E2E",
    "latency": "to the end of the stream",
}
_HEAD = """
## The same requests, measured twice

A tap lies between each tool and the server: a relay that notes when the bytes of a request came from the tool and when
those of each event came from the server (`bench/compat/tap.py`). What it heard becomes one result per request by the
code with which an evaluation counts the tokens of a stream, and `launch.evaluation.measures` makes *our* TTFT, ITL,
TPOT and E2E of exactly the requests that the tool reports and that completed; they are found by `X-Request-ID` (aiperf)
or by the id of the answer (guidellm). *Tool* is what the tool reports; with a star it is computed here of the requests
that the tool wrote down, because its own number is defined otherwise or missing. A token that shows no text is a token
of ours and has no time for the tools: *by text* is ours from one event with text to the next, and TPOT from the first
text to the last over all tokens, where that differs; it is judged again. *Agree* means within {share:.0%} or {ms:g} ms,
whichever is more. The words and the differences of definition are in [metrics.md](metrics.md#as-the-client-sees-it)."""


def agreements(runs: Sequence[Run], added: Added) -> Iterator[str]:
    yield _HEAD.format(share=ALLOWED_SHARE, ms=1000 * ALLOWED_S)
    yield ""
    both = [(run, run.agreement) for run in runs if run.agreement is not None]
    yield from _requests(both)
    yield "\nStatistics of all these requests:\n"
    yield "| Tool | Concurrency | What | Statistic | Tool | Ours | Difference | Agree | By text | Agree by text |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for run, found in both:
        for row in found.rows:
            yield f"| {run.tool} | {run.concurrency} | {_row(row)} |"
    yield "\nRequest by request, and for ITL gap by gap:\n"
    yield "| Tool | Concurrency | What | Agree | Mean difference | Largest difference: tool, ours |"
    yield "|---|---|---|---|---|---|"
    for run, found in both:
        for widest in found.widest:
            yield f"| {run.tool} | {run.concurrency} | {_widest(widest)} |"
    yield from _added(runs, added)


def _requests(both: Sequence[tuple[Run, Agreement]]) -> Iterator[str]:
    yield (
        "| Tool | Concurrency | Load average before | Requests compared | Tokens of an answer "
        "| Answers with tokens that show no text | Events agree with usage "
        "| Reported, not heard | Reported, not completed | Heard, not reported |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for run, found in both:
        tokens = f"{found.fewest_tokens} to {found.most_tokens}"
        yield (
            f"| {run.tool} | {run.concurrency} | {run.load_average:g} | {found.compared} "
            f"| {found.fewest_tokens if found.fewest_tokens == found.most_tokens else tokens} "
            f"| {found.textless} | {f'{found.told - found.miscounted} of {found.told}' if found.told else '-'} "
            f"| {len(found.unheard)} | {found.incomplete} | {found.left_out} |"
        )


def _row(row: Row) -> str:
    difference_s = row.theirs_s - row.ours_s
    same = row.by_text_s is None or _ms(row.by_text_s) == _ms(row.ours_s)
    by_text = " | " if row.by_text_s is None or same else f"{_ms(row.by_text_s)} | {_yes(row.agrees_by_text)}"
    return (
        f"{_NAMES[row.quantity]} | {row.statistic} | {_ms(row.theirs_s)}{' *' if row.from_records else ''} "
        f"| {_ms(row.ours_s)} | {1000 * difference_s:+.2f} ms ({difference_s / row.ours_s:+.1%}) "
        f"| {_yes(row.agrees)} | {by_text}"
    )


def _yes(agrees: bool) -> str:
    return "yes" if agrees else "**no**"


def _widest(widest: Widest) -> str:
    mean_ms = 1000 * widest.mean_difference_s
    return (
        f"{_NAMES[widest.quantity]} | {widest.agreeing} of {widest.compared} | {mean_ms:+.2f} ms "
        f"| {1000 * (widest.theirs_s - widest.ours_s):+.2f} ms: {_ms(widest.theirs_s)}, {_ms(widest.ours_s)}"
    )


def _added(runs: Sequence[Run], added: Added) -> Iterator[str]:
    longest = max(runs, key=lambda run: run.relaying.median_s).relaying
    yield (
        "\nThe tap's own clock runs behind the tool's by the way from the tool, and it adds to what the tool sees. In "
        f"these runs it wrote a piece on within {1e6 * longest.median_s:.0f} us of its arrival (the largest median of "
        f"a run); at most {1000 * max(run.relaying.max_s for run in runs):.1f} ms. {added.rounds} pairs of "
        "requests of a bare socket to a mock cell, directly and through a tap in turn, before these runs: the first "
        f"event came {_quartiles(added.first_event)} later through the tap, the end {_quartiles(added.whole)} (median "
        "and quartiles)."
    )


def _quartiles(values: tuple[float, float, float]) -> str:
    low, middle, high = (1000 * value for value in values)
    return f"{middle:.2f} ms ({low:.2f} to {high:.2f})"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"
