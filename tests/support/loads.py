"""How does a campaign run its loads when the servers are simulated?

`SimulatedLoads.run_load` is the `RunLoad` of a test: it asks a simulated server and sums up what came of it as a runner
would, without a clock. It remembers what it was asked.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from launch.evaluation.arrivals import Arrivals, ClosedLoop
from launch.evaluation.compatible import vllm_keys
from launch.evaluation.lengths import Lengths
from launch.evaluation.load import dispatch, saturation
from launch.evaluation.measures import measure
from launch.evaluation.results import RequestResult, arriving, steady
from launch.evaluation.slo import Slo, attain
from launch.evaluation.study import Run
from launch.evaluation.workload import Workload, synthetic

NO_SLO = Slo()

Server = Callable[[Workload, Arrivals, int], list[RequestResult]]
"""The last argument is the number of the run, from 0: what differs between runs of one load."""


@dataclass(frozen=True)
class Drawn:
    """A `Source` of drawn lengths."""

    prompts: Lengths
    outputs: Lengths
    seed: int = 1

    def workload(self, arrivals: Arrivals, count: int, first: int) -> Workload:
        return synthetic(self.prompts, self.outputs, arrivals, count, self.seed, first=first)


@dataclass(frozen=True)
class Asked:
    system: str
    workload: Workload
    arrivals: Arrivals
    purpose: str

    @property
    def indices(self) -> range:
        requests = self.workload.requests
        return range(requests[0].index, requests[-1].index + 1)


@dataclass
class SimulatedLoads:
    servers: dict[str, Server]
    warm_up: float = 0.1  # of the arrivals of an open loop, in which the queue is still as empty as it began
    fails_at: int | None = None  # the number of the run that is interrupted
    slo: Slo = NO_SLO  # of the study
    asked: list[Asked] = field(default_factory=list)

    async def run_load(
        self, system: str, workload: Workload, arrivals: Arrivals, purpose: str
    ) -> tuple[Run, list[RequestResult]]:
        number = len(self.asked)
        if number == self.fails_at:
            raise InterruptedError
        self.asked.append(Asked(system, workload, arrivals, purpose))
        results = self.servers[system](workload, arrivals, number)
        return summed_up(f"{purpose}-{number}", self.asked[-1], results, self.warm_up, self.slo), results


def summed_up(run_id: str, asked: Asked, results: list[RequestResult], warm_up: float = 0.0, slo: Slo = NO_SLO) -> Run:
    open_loop = not isinstance(asked.arrivals, ClosedLoop)
    planned = [request.arrival_s for request in asked.workload.requests]
    window = steady(results, warm_up * max(planned), 0.0) if open_loop else None
    measures = measure(results, window)
    return Run(
        run_id=run_id,
        system=asked.system,
        purpose=asked.purpose,
        arrivals=asked.arrivals,
        rate_per_s=len(planned) / max(planned) if open_loop else None,
        requests=len(planned),
        seconds=max(result.end_s for result in results) - min(planned),
        measures=measures,
        attainments=attain(arriving(results, window) if window is not None else results, slo),
        dispatch=dispatch(results) if open_loop else None,
        saturation=saturation(results) if open_loop else None,
        vllm=vllm_keys(measures, results),
    )
