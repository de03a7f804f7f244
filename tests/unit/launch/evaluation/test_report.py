"""Does the page show what a study has, nothing that it has not, and nothing that it was told to execute?"""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from msgspec.structs import replace

from launch.evaluation.arrivals import ClosedLoop
from launch.evaluation.goodput import REMARKS, Ending
from launch.evaluation.recording import STUDY_FILE
from launch.evaluation.report.files import PAGE, StudyUnreadable, load, write
from launch.evaluation.report.findings import complaints
from launch.evaluation.report.page import Results, render
from launch.evaluation.report.selection import comparable, of_interest
from launch.evaluation.report.tables import overview
from launch.evaluation.report.words import number
from launch.evaluation.results import Outcome, RequestResult, to_lines
from launch.evaluation.slo import Slo
from launch.evaluation.study import Study, System
from tests.support.studies import AGGREGATED, SPLIT, Builder, failed, full_study

ALL_FIGURES = {
    "attainment-rate",
    "attainment-scale",
    "distributions",
    "stages",
    "timeline-0",
    "timeline-1",
    "latency-rate",
    "duel-1",
    "regions",
}
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Checked(HTMLParser):
    """Complains where an element is not closed, and where the page asks for something outside itself."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.wanted: set[str] = set()
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            assert not key.startswith("on"), f"{key} of {tag} is a script"
            if key == "id":
                self.ids.append(value or "")
            if key in {"href", "src", "xlink:href", "data", "action"}:
                assert (value or "").startswith("#"), f"{tag} asks for {value}"
                self.wanted.add((value or "")[1:])
            self.wanted |= set(re.findall(r"url\(#([^)]+)\)", value or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def figures(page: str) -> set[str]:
    """Names of the figures; each is well-formed SVG, and the page is sound."""
    checked = Checked(page)
    assert len(set(checked.ids)) == len(checked.ids)
    assert checked.wanted <= set(checked.ids)
    assert not checked.tags & {"script", "link", "iframe", "object", "img"}
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r">[^<]*\bnan\b|\binf\b[^<]*<", page, re.IGNORECASE)
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        root = ElementTree.fromstring(drawing)
        assert root.get("aria-label")
        assert not any("nan" in (path.get("d") or "").lower() for path in root.iter("path"))
    return set(re.findall(r'<figure id="([^"]+)"', page))


@pytest.fixture(scope="module")
def full() -> tuple[Study, Results]:
    return full_study(requests=60)


@pytest.fixture(scope="module")
def full_page(full: tuple[Study, Results]) -> str:
    return render(*full)


def one_run(slo: Slo | None = None, requests: int = 60) -> tuple[Study, dict[str, tuple[RequestResult, ...]]]:
    builder = Builder(slo=slo, requests=requests)
    builder.run(SPLIT, 2.0, 0, "single")
    return builder.study(), builder.results


def test_a_full_study_has_every_figure_with_a_caption(full: tuple[Study, Results], full_page: str) -> None:
    assert figures(full_page) == ALL_FIGURES
    captions = re.findall(r"<figcaption><p>(.*?)</p>", full_page, re.DOTALL)
    assert len(captions) == len(ALL_FIGURES)
    assert not any("{" in caption for caption in captions)
    for run in full[0].runs:
        assert f'id="run-{run.run_id}"' in full_page
    assert full[0].duels[0].verdict in full_page.replace("&gt;", ">")
    found = full[0].goodputs[0].found.goodput_per_s
    assert f"{number(found)} (" in full_page


def test_the_same_study_gives_the_same_bytes() -> None:
    study, results = one_run()
    assert render(study, results) == render(study, results)


def test_a_figure_without_its_data_is_not_there() -> None:
    study, results = one_run()
    assert figures(render(study, results)) == {"distributions", "stages", "timeline-0"}
    bare = {run_id: [replace(one, ledger=None) for one in of] for run_id, of in results.items()}
    assert figures(render(study, bare)) == {"distributions", "timeline-0"}
    assert figures(render(study, {})) == set()


def test_attainment_needs_an_slo_and_latency_only_two_rates() -> None:
    for slo, wanted in ((None, {"latency-rate"}), (Slo(ttft_s=0.4), {"latency-rate", "attainment-rate"})):
        builder = Builder(slo=slo, requests=40)
        for rate in (1.0, 3.0):
            builder.run(SPLIT, rate, 0)
        assert figures(render(builder.study(), {})) == wanted


def test_what_came_from_outside_is_text() -> None:
    study, results = one_run(Slo(ttft_s=0.4))
    evil = "<script>alert(1)</script>\"'><b>$x_1$\x00\x1b漢"
    system = System(name=evil, description=evil, workers=1)
    run = replace(study.runs[0], system=evil)
    broken = {run.run_id: (*results[run.run_id][:30], *failed(results[run.run_id][30:], evil))}
    study = replace(
        study, title=evil, command=evil, workload=(evil,), environment={evil: evil}, systems=(system,), runs=(run,)
    )
    page = render(study, broken)
    assert figures(page) >= {"distributions", "timeline-0"}
    assert "<b>" not in page
    assert page.count("&lt;script&gt;") > 6


def test_nothing_but_failures_is_told() -> None:
    slo = Slo(ttft_s=0.4)
    results, builder = one_run(slo)[1], Builder(slo=slo)
    builder.add("1P1D", "single", 2.0, failed(results["single-000"], "worker_lost: it died"))
    page = render(builder.study(), builder.results)
    assert figures(page) == {"timeline-0"}
    assert "failed (in single-000); most often: worker_lost: it died" in page


def test_studies_of_almost_nothing_have_a_page() -> None:
    study, results = one_run(requests=1)
    assert figures(render(study, results)) == {"distributions", "stages", "timeline-0"}
    cut = {run_id: [replace(one, token_s=one.token_s[:1]) for one in of] for run_id, of in results.items()}
    assert "distributions" in figures(render(study, cut))
    assert figures(render(replace(study, runs=(), systems=()), {})) == set()
    closed = replace(study.runs[0], arrivals=ClosedLoop(4), rate_per_s=None, dispatch=None, saturation=None)
    assert "4 at a time" in render(replace(study, runs=(closed,)), results)


def test_a_lagging_client_and_cut_requests_stand_in_the_box() -> None:
    builder = Builder(requests=60)
    lagging = [replace(one, sent_s=one.arrival_s + 0.2) for one in builder.results[builder.run(SPLIT, 2.0, 0).run_id]]
    builder.add("1P1D", "sweep", 3.0, lagging)
    study = builder.study(workload=("3 of 60 requests cut to 512 tokens of context",), commit="0123abc-dirty")
    page = render(study, {})
    box = page[page.index("Before you believe") : page.index("What was asked")]
    assert "the client lagged in 1 of 2 runs (at 3 requests/s)" in box
    assert "3 of 60 requests cut" in box
    assert "no commit" in box


def test_every_ending_of_a_search_has_its_words(full: tuple[Study, Results]) -> None:
    study, _ = full
    assert set(REMARKS) == set(Ending)
    one = study.goodputs[0]
    cut = replace(one, found=replace(one.found, ending=Ending.INTERRUPTED))
    told = complaints(replace(study, goodputs=(cut,)), {})
    assert f"Goodput of {one.system}: {REMARKS[Ending.INTERRUPTED]}." in told


def test_what_was_cut_off_by_hand_is_held_against_nobody() -> None:
    builder = Builder(requests=60)
    whole = builder.run(SPLIT, 2.0, 0)
    answers = builder.results[whole.run_id]
    cut = [replace(one, token_s=(), outcome=Outcome.CUT_OFF, ledger=None) for one in answers[-5:]]
    stopped = replace(builder.add("1P1D", "sweep", 3.0, [*answers[:-5], *cut]), stopped=True)
    study = builder.study(runs=(whole, stopped), workload=("sweep-001: stopped by hand after 60 of 90 requests",))
    assert comparable(study) == (whole,)
    assert comparable(replace(study, runs=(stopped,))) == (stopped,), "where there is nothing else, it is shown"
    told = " ".join(complaints(study, builder.results))
    assert "cut off (in" not in told
    assert "stopped by hand after 60 of 90" in told
    assert [row[-1].startswith("stopped by hand") for row in overview(study).rows] == [False, True]


def test_requests_are_compared_under_the_heaviest_load_that_all_systems_bore() -> None:
    builder = Builder(requests=200)
    for rate in (1.0, 2.0):
        builder.run(SPLIT, rate, 0)
        builder.run(AGGREGATED, rate, 0)
    builder.run(SPLIT, 20.0, 0)  # only one had it
    overloaded = [builder.run(of, 30.0, 0) for of in (SPLIT, AGGREGATED)]
    assert any(run.saturation is not None and run.saturation.found for run in overloaded)
    interest = of_interest(builder.study(), builder.results)
    assert interest is not None
    assert [(shown.system, shown.runs[0].rate_per_s) for shown in interest.shown] == [
        ("1P1D", 2.0),
        ("aggregated 2", 2.0),
    ]


def test_a_directory_gives_the_page_again(tmp_path: Path, full: tuple[Study, Results]) -> None:
    study, results = full
    (tmp_path / STUDY_FILE).write_bytes(msgspec.json.encode(study))
    for run_id, of in results.items():
        (tmp_path / f"{run_id}.jsonl").write_bytes(b"".join(to_lines(of)))
    loaded, again = load(tmp_path)
    assert loaded == study
    assert again == results


def test_the_page_is_written_beside_the_results_or_where_asked(tmp_path: Path) -> None:
    study, _ = one_run()
    (tmp_path / STUDY_FILE).write_bytes(msgspec.json.encode(study))
    page = render(study, {})
    assert write(tmp_path) == tmp_path / PAGE
    assert (tmp_path / PAGE).read_text(encoding="utf-8") == page
    write(tmp_path, tmp_path / "other.html")
    assert (tmp_path / "other.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (STUDY_FILE, None, "directory of results"),
        (STUDY_FILE, b"{", "truncated"),
        (STUDY_FILE, b'{"format": 99, "new": 1}', "format 99; this version of kvrelay reads format 1"),
        (STUDY_FILE, b'{"format": 1}', "title"),
        ("single-000.jsonl", b"{}\n", "index"),
    ],
)
def test_results_that_cannot_be_read_are_refused_with_the_reason(
    tmp_path: Path, name: str, text: bytes | None, said: str
) -> None:
    (tmp_path / STUDY_FILE).write_bytes(msgspec.json.encode(one_run()[0]))
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(text)
    with pytest.raises(StudyUnreadable, match=said):
        load(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (1.005, "1.00"), (12.34, "12.3"), (999.4, "999"), (999.6, "1,000"), (0.09996, "0.100")],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text
