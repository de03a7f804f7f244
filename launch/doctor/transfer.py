"""How fast do pages travel from worker to worker here, and what limits them?

Pure: facts to findings.
"""

from launch.doctor.facts import Facts, LinkFacts, Variable
from launch.doctor.finding import Finding, asks_for_shared_memory, error, info, ok, variable, warning

_PASSED_ON = ("UCX_TLS", "UCX_NET_DEVICES")  # the others do not reach UCX (`transport.ucx`)
_PROMPT_TOKENS = 1000
_PROMPT_BYTES = _PROMPT_TOKENS * 46_080  # of the default model in float32


def judge(facts: Facts) -> list[Finding]:
    findings = [] if facts.link is None else [_link(facts.link, facts)]
    if facts.gpu is not None and facts.gpu.gpus:
        findings.append(
            info(
                "kv link",
                "that was host memory; kvrelay up --device cuda:0 measures the way between GPUs when it starts",
            )
        )
    return findings + _variables(facts)


def _link(link: LinkFacts, facts: Facts) -> Finding:
    if link.unusable_directory is not None:
        return error(
            "kv link",
            f"no cell can keep its sockets in {link.unusable_directory}: {link.error}",
            "export XDG_RUNTIME_DIR=a directory of yours with a short path",
        )
    if link.error is not None or link.gigabytes_per_s is None or link.memcpy_gigabytes_per_s is None:
        chosen = _chosen(facts)
        unset = f"try without {' '.join(chosen)}; " if chosen else ""
        tail = "".join(f"\n{line}" for line in link.last_lines)
        return error(
            "kv link",
            f"a cell without a model does not start: {link.error}{tail}",
            f"{unset}the last lines name the cause, docs/operations.md explains many; kvrelay up --mock --verbose "
            "shows the whole log",
        )
    rate, copy = link.gigabytes_per_s, link.memcpy_gigabytes_per_s
    text = f"UCX/{link.transport} at {rate:.2f} GB/s, {_share(rate, copy)} of one memory copy ({copy:.1f} GB/s)"
    if link.slow:
        return warning("kv link", f"{text}: slow", _why_slow(link, facts))
    took_ms = _PROMPT_BYTES / rate / 1e6
    text += f"; {_PROMPT_TOKENS:,} prompt tokens are {took_ms:.0f} ms of it, most of them while the prompt is computed"
    if link.transport == "tcp":
        text += ". TCP is a choice: it survives the death of a peer"
    return ok("kv link", text)


def _why_slow(link: LinkFacts, facts: Facts) -> str:
    reasons = []
    if facts.cpu is not None and facts.cpu.load_1m >= 0.7 * facts.cpu.machine_cores:
        reasons.append("other programs use the cores: run this again when they are done")
    if facts.cpu is not None and len(facts.cpu.cores) < 2:
        reasons.append("both workers share one core: give them two")
    if facts.cpu is not None and facts.cpu.quota_cores is not None and facts.cpu.quota_cores < 2:
        reasons.append(f"a cgroup allows {facts.cpu.quota_cores:g} cores: raise the quota")
    chosen = _chosen(facts)
    if chosen:
        reasons.append(f"{' '.join(chosen)} chose the transport {link.transport}: unset it")
    return "; ".join(reasons) or "nothing here explains it: run it again, and look for what else uses the cores (top)"


def _chosen(facts: Facts) -> list[str]:
    return [f"{name}={value}" for name in _PASSED_ON if (value := variable(facts, name))]


def _variables(facts: Facts) -> list[Finding]:
    findings = []
    chosen = {found.name for found in facts.environment if found.name in _PASSED_ON and found.value}
    if asks_for_shared_memory(facts.environment):
        findings.append(
            warning(
                "ucx",
                f"UCX_TLS={variable(facts, 'UCX_TLS')} brings shared memory back: faster, and a worker may fall with a "
                "peer that is killed",
                "unset UCX_TLS, unless speed is worth that",
            )
        )
    elif "UCX_TLS" in chosen:
        findings.append(info("ucx", f"UCX_TLS={variable(facts, 'UCX_TLS')} chooses the transports"))
    if chosen and "UCX_NET_DEVICES" not in chosen:
        findings.append(
            warning(
                "ucx",
                "with UCX_TLS and without UCX_NET_DEVICES, UCX listens on every network device, and it authenticates "
                "nobody",
                "export UCX_NET_DEVICES=lo, or unset UCX_TLS",
            )
        )
    elif "UCX_NET_DEVICES" in chosen and variable(facts, "UCX_NET_DEVICES") != "lo":
        findings.append(
            warning(
                "ucx",
                f"UCX_NET_DEVICES={variable(facts, 'UCX_NET_DEVICES')}: whoever reaches that device is trusted",
                "unset it, unless that network is yours alone",
            )
        )
    ignored = [found for found in facts.environment if _is_ignored(found)]
    if ignored:
        findings.append(
            info(
                "ucx",
                f"kvrelay ignores {', '.join(found.name for found in ignored)}: of UCX's variables only "
                f"{' and '.join(_PASSED_ON)} count",
            )
        )
    return findings


def _is_ignored(found: Variable) -> bool:
    return found.name.startswith("UCX_") and found.name not in _PASSED_ON


def _share(rate: float, copy: float) -> str:
    return f"{rate / copy:.2f}" if copy > 0 else "an unknown part"
