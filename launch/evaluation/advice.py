"""What would make a stage of a request shorter?

Data: one entry per stage of `launch.evaluation.breakdown`, and one for the residual. Flags are those of `kvrelay up`.
"""

from collections.abc import Mapping
from types import MappingProxyType

RESIDUAL = "residual"

ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "tokenise": "send prompt_token_ids instead of text, or a shorter prompt; long texts share helper threads",
        "prepare": "the coordinator was busy, or a grammar was tried: give it a core of its own, or fewer clients",
        "queue": "no worker had room: more workers (--prefill, --decode), larger pools (--decode-kv-tokens), a smaller "
        "max_tokens per request, since its worst case is reserved, or a smaller load",
        "dispatch": "the coordinator was busy with the tokens of others: a core of its own, or another cell",
        "prefill queue": "prompts wait for each other: more prefill workers (--prefill), or a smaller load",
        "prefill": "compute: a shorter prompt, more cores per prefill worker, another --dtype, a GPU (--device); a "
        "larger --chunk-tokens saves the overhead per chunk",
        "prefill wait": "steps that held only prompts of others, and a busy loop: more prefill workers, a larger "
        "--chunk-tokens; in an aggregated worker a larger --mixed-chunk-tokens",
        "transfer tail": "the transfer that computing did not hide: a smaller --chunk-tokens makes the last piece "
        "smaller; a faster path for the pages (`kvrelay doctor` measures it)",
        "send token 1": "the prefill worker was busy: fewer workers per core",
        "verify wait": "a decode step was under way: shorter steps (a smaller --max-batch, more --decode workers)",
        "verify": "the digest reads every page once: a shorter prompt, or a faster memory",
        "join": "it waited for the border of a decode step: shorter steps (a smaller --max-batch, more --decode "
        "workers, a smaller --mixed-chunk-tokens where prompts share the steps)",
        "first decode step": "one step of the whole batch: a smaller --max-batch, more --decode workers, another "
        "--dtype, more cores per decode worker",
        "decode": "one step per token, each of the whole batch: fewer tokens (max_tokens), more --decode workers or a "
        "smaller --max-batch, another --dtype, more cores per decode worker, a GPU (--device)",
        "send tokens": "the decode worker's loop was busy, or its batch large: fewer workers per core",
        "detokenise": "the texts of its batch were made before it: fewer streams per cell, or another cell",
        "send": "the coordinator was busy with other streams, or the client did not read: fewer streams per cell",
        RESIDUAL: "nobody's work: processes waited for a core or for each other's loops. Give the coordinator and the "
        "clients cores that no worker computes on (`kvrelay doctor`), or fewer workers per machine",
    }
)
