"""Does a key get its requests a minute, and no other key's?"""

import pytest

from coordinator.http.rate import RateLimit


def test_without_a_limit_nobody_waits() -> None:
    rate = RateLimit(0)
    assert [rate.wait_s(b"k", 0.0) for _ in range(1000)] == [0.0] * 1000


def test_a_burst_of_a_minute_then_one_every_so_many_seconds() -> None:
    rate = RateLimit(6)
    assert [rate.wait_s(b"k", 0.0) for _ in range(6)] == [0.0] * 6
    assert rate.wait_s(b"k", 0.0) == 10.0, "the seventh has to wait for the first to be forgotten"
    assert rate.wait_s(b"k", 4.0) == pytest.approx(6.0), "and being refused costs nothing"
    assert rate.wait_s(b"k", 10.0) == 0.0
    assert rate.wait_s(b"k", 10.0) == 10.0


def test_one_key_does_not_pay_for_another() -> None:
    rate = RateLimit(1)
    assert rate.wait_s(b"a", 0.0) == 0.0
    assert rate.wait_s(b"b", 0.0) == 0.0
    assert rate.wait_s(b"a", 0.0) == 60.0


def test_less_than_one_a_minute() -> None:
    rate = RateLimit(0.5)
    assert rate.wait_s(b"k", 0.0) == 0.0
    assert rate.wait_s(b"k", 0.0) == 120.0
    assert rate.wait_s(b"k", 120.0) == 0.0
