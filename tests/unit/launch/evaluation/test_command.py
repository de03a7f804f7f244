"""Is what was measured told first, whatever goes wrong afterwards?"""

from pathlib import Path

import pytest

from launch.evaluation import command
from launch.evaluation.asked import Asked
from launch.evaluation.conduct import Interrupted, Outputs
from launch.evaluation.recording import Recording
from tests.support.studies import SPLIT, Builder


@pytest.mark.parametrize("name", ["[/v1/models]", "cell:a: against cell:b"])
def test_an_error_is_told_as_it_is_and_not_as_markup_or_emoji(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.run_eval(name)
    assert ended.value.code == 1
    assert f"error: '{name}' names no system" in capsys.readouterr().err


def test_results_are_shown_before_a_page_that_cannot_be_drawn_and_the_reason_of_an_early_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = Builder(requests=20)
    builder.run(SPLIT, 2.0, 0, "single")

    async def outputs(_asked: Asked, _base: Path, _cache: Path) -> Outputs:
        return Outputs(builder.study(), Recording(tmp_path / "without-a-study"), "ended early: [1P1D] is lost")

    monkeypatch.setattr(command, "evaluate", outputs)
    with pytest.raises(SystemExit) as ended:
        command.run_eval("1P1D")
    told = capsys.readouterr()
    assert ended.value.code == 1
    assert told.out.index("throughput:") < told.out.index("no report: StudyUnreadable")
    assert "error: ended early: [1P1D] is lost" in told.err


def test_who_does_not_wait_is_told_where_the_results_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(_asked: Asked, _base: Path, _cache: Path) -> Outputs:
        raise Interrupted("interrupted; what was measured is in here")

    monkeypatch.setattr(command, "evaluate", interrupted)
    with pytest.raises(SystemExit) as ended:
        command.run_eval("1P1D")
    assert ended.value.code == 130
    assert "is in here" in capsys.readouterr().err
