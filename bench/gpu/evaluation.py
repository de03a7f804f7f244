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
from bench.rows import summarise
from launch.evaluation.recording import STUDY_FILE
from launch.evaluation.study import Study

_KVRELAY = (sys.executable, "-c", "from launch.cli import main; main()")
_PROMPTS, _ANSWERS = "lognormal:900:0.8:32-4000", "lognormal:130:0.7:8-400"
_ENDING_S = 20.0
_NOTE = "the highest rate at which 90 % of the requests kept to the SLO; few probes, so see low and high in the notes"


def run(settings: Settings, tell: Tell) -> None:
    with TemporaryDirectory() as directory:
        model = shapes.write(settings.shape, Path(directory))
        results = Path(directory) / "results"
        code = _evaluate(arguments(settings, model, results), settings.limit_s)
        if (results / STUDY_FILE).is_file():
            _tell(msgspec.json.decode((results / STUDY_FILE).read_bytes(), type=Study), tell)
    if code:
        sys.exit(code)


def _evaluate(words: list[str], limit_s: float) -> int:
    """`kvrelay eval`; before the limit it is interrupted, and writes what it has."""
    process = subprocess.Popen([*_KVRELAY, "eval", *words], cwd=ROOT)
    try:
        return process.wait(max(limit_s - _ENDING_S, _ENDING_S))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
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
        *("--rate", "6", "--pairs", "2", "--requests", "48" if gpu else "8"),
        *("--output", str(results), "--no-report", "--quiet"),
    ]


def _tell(study: Study, tell: Tell) -> None:
    for goodput in study.goodputs:
        found = goodput.found
        tell(
            note=f"{goodput.system}: goodput {found.goodput_per_s} requests/s, certain from {found.low_per_s} to "
            f"{found.high_per_s}, {found.ending}, {len(goodput.run_ids)} probes"
        )
        if found.goodput_per_s is not None:
            tell(
                summarise(
                    "eval",
                    "goodput",
                    [found.goodput_per_s],
                    unit="requests/s",
                    limited_by=_NOTE,
                    parameters={"system": goodput.system},
                )
            )
    for duel in study.duels:
        tell(note=f"{duel.a} against {duel.b} at {duel.rate_per_s} requests/s: {duel.verdict}")
        for name, comparison in duel.comparisons.items():
            tell(note=f"{name}: {comparison.statement}")
