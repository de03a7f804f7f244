from bench.startup import Heard, stage_seconds


def test_a_stage_lasts_until_the_same_worker_tells_of_the_next_and_the_slowest_counts() -> None:
    heard = [
        Heard(1.0, "prefill-0", "importing"),
        Heard(1.5, "decode-0", "importing"),
        Heard(3.0, "prefill-0", "loading"),
        Heard(3.25, "prefill-0", "loading"),  # a fraction of it
        Heard(4.5, "decode-0", "loading"),
        Heard(5.0, "decode-0", "opening UCX"),
    ]
    assert stage_seconds(heard, ready_s=6.0) == {
        "starting processes": 1.0,
        "importing": 3.0,  # decode-0: 1.5 -> 4.5
        "loading": 3.0,  # prefill-0: 3.0 -> ready
        "opening UCX": 1.0,
    }
    assert list(stage_seconds(heard, 6.0)) == ["starting processes", "importing", "loading", "opening UCX"]


def test_a_cell_that_told_of_nothing_was_starting_all_the_time() -> None:
    assert stage_seconds([], ready_s=0.5) == {"starting processes": 0.5}
