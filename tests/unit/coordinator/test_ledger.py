"""Is every moment of a request in its ledger once?"""

from coordinator.ledger import Moments
from runtime.stages import Ledger
from tests.support.metrics import SimulatedService, ask


def moments() -> Moments:
    made = Moments("r0", received_at=1.0)
    made.submitted_at, made.tokenise_s = 2.0, 0.25
    made.ordered(0.125, admit=True)
    made.ordered(0.5, admit=False)
    made.token(4.0, 4.125, last=False)
    made.passed(4.5, last=False)
    made.token(8.0, 8.25, last=True)
    return made


def test_what_the_shell_noted_joins_what_the_machine_knows() -> None:
    made = moments()
    made.passed(9.0, last=True)
    made.passed(10.0, last=True)
    assert made.complete(Ledger(queue_s=0.5, total_s=6.0), now=99.0) == Ledger(
        prepare_s=0.75,
        tokenise_s=0.25,
        queue_s=0.5,
        admit_s=0.125,
        dispatch_s=0.5,
        first_out_s=0.5,
        total_s=6.0,
        detokenise_s=0.25,
        send_s=0.75,
    )


def test_a_last_word_that_leaves_with_the_last_token_says_how_long_that_has_waited() -> None:
    assert moments().complete(Ledger(), now=8.75).send_s == 0.5


def test_answers_are_remembered_and_cancelled_requests_are_not() -> None:
    cell = SimulatedService()
    answered, _ = cell.submit(ask(stop=("b",)))
    cell.first(answered, ord("a"))
    cell.token(answered, 1, ord("b"))
    cell.let_go(answered)
    cancelled, _ = cell.submit(ask())
    cell.service.cancel(cancelled)
    cell.let_go(cancelled)
    (ended,) = cell.service.ended
    assert (ended.request_id, ended.tokens) == (answered, 2)
    assert ended.moments.has_all_text
    assert ended.moments.first_token_at is not None


def test_what_ended_before_its_text_was_out_waited_for_nothing() -> None:
    ended = moments().complete(Ledger(), now=8.0)  # the last token was taken in then, its text came at 8.25
    assert ended.send_s == 0.0
