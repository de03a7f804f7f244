"""Is the transport found in what UCX prints?"""

from transport.ucx_report import UNKNOWN, bulk_transport

HEAD = "# | ucp_context_0 intra-node cfg#0 | tagged message by ucp_tag_send* from {} |"
FAST = "# | ucp_context_0 intra-node cfg#0 | tagged message by ucp_tag_send*(fast-completion) from host memory |"
LINE = "# +--------------------------------+-------------------------------------------+-------------+"


def report(memory: str, *rows: str) -> str:
    return "\n".join([LINE, HEAD.format(memory), LINE, *rows, LINE, "# "])


def row(sizes: str, protocol: str, transports: str) -> str:
    return f"# | {sizes:>30} | {protocol:<41} | {transports:<11} |"


SHORT = row("0..92", "eager short", "sysv/memory")
SYSV = report("host memory", SHORT, row("8K..inf", "(?) rendezvous fragmented copy-in copy-out", "sysv/memory"))
CUDA = report("cuda/GPU0", row("0..inf", "(?) rendezvous zero-copy read from remote", "cuda_ipc/cuda"))


def test_the_row_of_the_largest_messages_counts() -> None:
    assert bulk_transport(SYSV) == "sysv"
    cma = report("host memory", SHORT, row("8K..inf", "(?) rendezvous zero-copy read from remote", "cma/memory"))
    assert bulk_transport(cma) == "cma"


def test_gpu_memory_counts_before_host_memory() -> None:
    assert bulk_transport(SYSV + CUDA) == bulk_transport(CUDA + SYSV) == "cuda_ipc"


def test_several_networks_are_all_named_once() -> None:
    rails = row("0..inf", "50% on one and 50% on the other", "rc_mlx5/mlx5_0:1 and rc_mlx5/mlx5_1:1 and tcp/eth0")
    assert bulk_transport(report("host memory", rails)) == "rc_mlx5+tcp"


def test_other_tables_do_not_count() -> None:
    fast = "\n".join([FAST, LINE, row("0..inf", "short", "tcp/lo")])
    assert bulk_transport(fast + "\n" + SYSV) == bulk_transport(SYSV + "\n" + fast) == "sysv"


def test_what_is_not_there_is_unknown() -> None:
    assert bulk_transport("") == UNKNOWN
    assert bulk_transport(report("host memory", SHORT)) == UNKNOWN
    assert bulk_transport(report("host memory", row("0..inf", "none", ""))) == UNKNOWN
