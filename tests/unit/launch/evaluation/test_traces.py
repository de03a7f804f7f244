"""Do the readers find in real traces what stands there, and refuse what does not belong?"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from launch.evaluation.traces import (
    PromptRecord,
    TraceInvalid,
    TraceRecord,
    lines_of,
    read_azure,
    read_mooncake,
    read_prompts,
)

TRACES = Path(__file__).parent / "traces"
"""The first lines of the published files, byte for byte."""

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"


def test_azure_conv() -> None:
    records = list(read_azure(lines_of(TRACES / "azure_conv.csv")))
    assert [(record.prompt_tokens, record.output_tokens) for record in records] == [
        (374, 44),
        (396, 109),
        (879, 55),
        (91, 16),
        (91, 16),
    ]
    first = records[0].at_s  # 18:15:46.6805900, then :50.9951690, :51.2224670, :51.3910170, :52.5732450
    assert [record.at_s - first for record in records] == pytest.approx(
        [0, 4.314579, 4.541877, 4.710427, 5.892655], abs=1e-4
    )


def test_azure_code_across_a_second() -> None:
    records = list(read_azure(lines_of(TRACES / "azure_code.csv")))
    assert [record.prompt_tokens for record in records] == [4808, 3180, 110, 7433]
    assert records[1].at_s - records[0].at_s == pytest.approx(0.052, abs=1e-4)


def test_mooncake() -> None:
    records = list(read_mooncake(lines_of(TRACES / "mooncake.jsonl")))
    assert [(record.prompt_tokens, record.output_tokens) for record in records] == [
        (6758, 500),
        (7322, 490),
        (7236, 794),
        (2290, 316),
        (6760, 3),
    ]
    assert records[3].blocks == (0, 42, 43, 44, 45)
    assert {record.blocks[0] for record in records} == {0}


def test_mooncake_milliseconds_and_lines_without_ids() -> None:
    line = '{"timestamp": 1500, "input_length": 513, "output_length": 2, "hash_ids": [3, 9]}'
    bare = '{"timestamp": 2000.5, "input_length": 513, "output_length": 2, "session_id": "x"}'
    assert list(read_mooncake([line, "\n", bare])) == [
        TraceRecord(at_s=1.5, prompt_tokens=513, output_tokens=2, blocks=(3, 9)),
        TraceRecord(at_s=2.0005, prompt_tokens=513, output_tokens=2),
    ]


def test_prompts() -> None:
    lines = ['{"prompt": "Once"}', "", '{"prompt": "Zwei", "output_tokens": 7, "id": 1}']
    assert list(read_prompts(lines)) == [PromptRecord(prompt="Once"), PromptRecord(prompt="Zwei", output_tokens=7)]


@pytest.mark.parametrize(
    ("reader", "lines", "line"),
    [
        (read_azure, [], 1),
        (read_azure, ["time,in,out"], 1),
        (read_azure, [AZURE, "2023-11-16 18:17:03.9799600,4808"], 2),
        (read_azure, [AZURE, "yesterday,4808,10"], 2),
        (read_azure, [AZURE, "2023-11-16 18:17:03.9799600,0,10"], 2),
        (read_azure, [AZURE, "2023-11-16 18:17:03.98,5,1", "2023-11-16 18:17:03.97,5,1"], 3),
        (read_mooncake, ["{"], 1),
        (read_mooncake, ['{"timestamp": 0, "input_length": 513, "output_length": 2, "hash_ids": [3]}'], 1),
        (read_mooncake, ['{"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [-3]}'], 1),
        (
            read_mooncake,
            [
                "",
                '{"timestamp": 9, "input_length": 5, "output_length": 2}',
                '{"timestamp": 8, "input_length": 5, "output_length": 2}',
            ],
            3,
        ),
        (read_prompts, ['{"prompt": ""}'], 1),
        (read_prompts, ['{"prompt": "a", "output_tokens": 0}'], 1),
    ],
)
def test_a_bad_line_is_named(reader: Callable[[Iterable[str]], Iterator[object]], lines: list[str], line: int) -> None:
    with pytest.raises(TraceInvalid, match=rf"^line {line}: "):
        list(reader(lines))
