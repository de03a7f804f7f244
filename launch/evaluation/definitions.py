"""What does each word in a result mean?

Pure. This dictionary goes into every JSON file of results; docs/metrics.md puts it next to what other tools mean.
"""

DEFINITIONS: dict[str, str] = {
    "send": "the client hands the request to its connection",
    "token": "a token at the client; tokens that arrive in one chunk arrive at one time, with gaps of 0 between them",
    "ttft": "first token - send",
    "itl": "gap between consecutive tokens, one value per token after the first; all requests together",
    "tpot": "(last token - first token) / (tokens - 1), one value per request of two tokens or more: the mean of the"
    " request's gaps, so also its ITL per request",
    "handoff_gap": "token 2 - token 1, one value per request of two tokens or more; the first of its gaps",
    "longest_stall": "the largest of a request's gaps",
    "e2e": "last token - send",
    "latencies": "of requests that complete and arrive, as planned, inside the window; whatever does not complete is in"
    " no latency and misses every SLO",
    "window": "from the first planned arrival + warm-up to the last planned arrival - cool-down; without these two, to"
    " the last end",
    "rates": "what happens inside the window / its length, whichever request it belongs to",
    "outcomes": "completed, failed (error, lost connection or deadline), rejected (turned away before a token), cut_off"
    " (the run ended first)",
    "percentile": "linear between order statistics (NumPy's default; definition 7 of Hyndman and Fan, 1996)",
    "percentile_interval": "95 %, from order statistics with binomial ranks, no distribution assumed; null where the"
    " sample does not bound that side; for the gaps of ITL from the variance between requests (Woodruff, 1952);"
    " requests are taken to be independent, which near saturation makes it too narrow",
    "mean_interval": "95 %, Student's t over requests; for ITL from the variance between requests",
    "std": "of the population (divided by n)",
    "attainment": "requests that meet every bound of the SLO / requests sent in the window; an answer of one token"
    " has no gaps to miss",
    "attainment_interval": "95 %, Wilson, for the effective number of requests: their number / the ratio of the"
    " variance of 20 batches of neighbours to that of independent requests, which counts as 1 where it is less",
    "goodput": "the highest rate of requests/s at which attainment is at least 0.9; divide by the workers for goodput"
    " per worker",
    "request_goodput": "under the name of vllm bench and not the goodput above: requests that met the SLO and ended in"
    " the window / its length, at the rate of this run",
    "dispatch_lag": "sent - planned arrival; in no latency",
    "over_saturation": "TTFT or the number of requests under way grows with time of arrival: the 95 % interval of the"
    " growth, from steps between the means of 10 batches, is above 0, and the growth above 1 % of the load",
}
