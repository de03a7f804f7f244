"""What does the reader of a study see?

One HTML page that needs nothing else: no script, no other file, no network. A figure is there when its data is;
whatever came from outside (names, errors, commands) is escaped by the template.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from launch.evaluation.report import drawing, duels, findings, rates, requests, selection, stages, tables, words
from launch.evaluation.report.drawing import Plot
from launch.evaluation.report.selection import Interest
from launch.evaluation.results import RequestResult
from launch.evaluation.study import Study

Results = Mapping[str, Sequence[RequestResult]]
"""By `Run.run_id`; a run whose requests were not kept is in no figure of single requests."""


def render(study: Study, results: Results) -> str:
    """The page as text."""
    interest = selection.of_interest(study, results)
    bars = stages.bars(interest)
    with drawing.styled():
        plots = _plots(study, interest)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("launch.evaluation.report").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        study=study,
        words=words,
        slo=words.bounds(study.slo) if study.slo is not None else "",
        verdicts=findings.verdicts(study),
        goodputs=findings.goodput_rows(study),
        confidence=f"{100 * study.goodputs[0].search.confidence:g}" if study.goodputs else "",
        target=f"{100 * study.goodputs[0].search.target:g}" if study.goodputs else "",
        complaints=findings.complaints(study, results),
        colours={system.name: drawing.colour(at) for at, system in enumerate(study.systems)},
        plots=plots,
        stage_table=tables.stage_table(bars) if bars else None,
        region_table=tables.region_table(study) if study.region_map is not None else None,
        overview=tables.overview(study),
        runs=[tables.of_run(run, results.get(run.run_id, ())) for run in study.runs],
        machine=tables.environment(study.environment),
    )


def _plots(study: Study, interest: Interest | None) -> list[Plot]:
    names = [system.name for system in study.systems]
    plots: list[Plot | None] = [
        rates.attainment_by_rate(study),
        rates.attainment_by_scale(study, interest),
        requests.distributions(study, interest),
        stages.stage_breakdown(names, interest),
    ]
    plots += requests.timeline(study, interest)
    plots.append(rates.latency_by_rate(study))
    plots += [duels.duel_plot(study, duel, number) for number, duel in enumerate(study.duels, start=1)]
    if study.region_map is not None:
        plots.append(duels.region_plot(study, study.region_map))
    return [plot for plot in plots if plot is not None]
