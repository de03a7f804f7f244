"""Is a split cell or an aggregated one better on one GPU, as `kvrelay eval` sees it?

1P1D against one aggregated worker on the same GPU, with lengths like those of the Azure conversation trace of 2023
(prompts with a median near 900 tokens, answers near 130, both lognormal here). Two processes that share a GPU take
turns on it and never compute at once, so 1P1D has no second device to gain from: this shows what splitting costs, and
that it works under load; not what it is for.
"""

import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench.gpu import shapes
from bench.gpu.parts import Settings, Tell
from bench.machine import ROOT
from bench.rows import Row, summarise
from launch.evaluation.recording import STUDY_FILE
from launch.evaluation.study import Study

_KVRELAY = (sys.executable, "-c", "from launch.cli import main; main()")
_PROMPTS, _ANSWERS = "lognormal:900:0.8:32-4000", "lognormal:130:0.7:8-400"
_ENDING_S = 20.0  # before the limit it is interrupted
_WRITING_S = 12.0  # then it is killed; what it had measured is written already
_GOODPUT_NOTE = (
    "the highest rate at which 90 % of the requests kept to the SLO; few probes, so see low and high in the notes"
)


def run(settings: Settings, tell: Tell) -> None:
    with TemporaryDirectory() as directory:
        model = shapes.write(settings.shape, Path(directory))
        results = Path(directory) / "results"
        code = _evaluate(arguments(settings, model, results), settings.limit_s)
        if (results / STUDY_FILE).is_file():
            rows, notes = told(msgspec.json.decode((results / STUDY_FILE).read_bytes(), type=Study))
            tell(*rows)
            for note in notes:
                tell(note=note)
    if code:
        sys.exit(code)


def _evaluate(words: list[str], limit_s: float) -> int:
    """Exit code of `kvrelay eval`, which is ended before the limit; it writes each run as it ends."""
    process = subprocess.Popen([*_KVRELAY, "eval", *words], cwd=ROOT)
    try:
        return process.wait(max(limit_s - _ENDING_S, _ENDING_S))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(_WRITING_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its cells die with it
        return process.wait()


def arguments(settings: Settings, model: Path, results: Path) -> list[str]:
    """Of `kvrelay eval`."""
    gpu = settings.on_gpu
    tokens = str(65_536 if gpu else 2048)
    return [
        *("1P1D", "--compare", "aggregated:1"),
        *("--device", settings.device, "--dtype", "bfloat16" if gpu else "float32", "--load-format", "dummy"),
        *("--model", str(model), "--prefill-kv-tokens", tokens, "--decode-kv-tokens", tokens, "--max-batch", "128"),
        *("--prompt-tokens", _PROMPTS if gpu else "16-64", "--output-tokens", _ANSWERS if gpu else "4"),
        *("--slo-ttft-ms", "500" if gpu else "5000", "--slo-tpot-ms", "50" if gpu else "1000"),
        *("--goodput", "--goodput-from", "8", "--probes", "4" if gpu else "2"),
        *("--rate", "6", "--pairs", "3", "--requests", "36" if gpu else "8"),
        *("--output", str(results), "--no-report", "--quiet"),
    ]


def told(study: Study) -> tuple[list[Row], list[str]]:
    """Rows and notes of a study. Of the runs that were compared, the median over the runs of each system."""
    rows, notes = [], []
    for goodput in study.goodputs:
        found = goodput.found
        notes.append(
            f"{goodput.system}: goodput {found.goodput_per_s} requests/s, certain from {found.low_per_s} to "
            f"{found.high_per_s}, {found.ending}, {len(goodput.run_ids)} probes"
        )
        if found.goodput_per_s is not None:
            rows.append(_row("goodput", goodput.system, [found.goodput_per_s], "requests/s", _GOODPUT_NOTE))
    for duel in study.duels:
        notes.append(duel.verdict)
        notes += [comparison.statement for comparison in duel.comparisons.values()]
        runs = [run for run in study.runs if run.run_id in duel.run_ids]
        for system in (duel.a, duel.b):
            measured = [run.measures for run in runs if run.system == system]
            for name, summaries in (("TTFT p50", [m.ttft for m in measured]), ("TPOT p50", [m.tpot for m in measured])):
                seconds = [one.percentiles["p50"].value for one in summaries if "p50" in one.percentiles]
                if seconds:
                    rows.append(_row(name, system, seconds, "ms", f"at {duel.rate_per_s:g} requests/s", 1e3))
    return rows, notes


def _row(quantity: str, system: str, values: list[float], unit: str, note: str, scale: float = 1.0) -> Row:
    return summarise("eval", quantity, values, unit=unit, limited_by=note, parameters={"system": system}, scale=scale)
