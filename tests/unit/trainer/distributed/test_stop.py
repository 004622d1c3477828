"""SIGUSR1 while a run still loads counts as one that comes during its steps."""

import os
import signal

import pytest

from trainer.distributed.stop import SIGNALS, listen_early, listening

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")


@pytest.fixture(autouse=True)
def handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_while_libraries_load_is_kept():
    listen_early()
    os.kill(os.getpid(), signal.SIGUSR1)
    with listening() as request:
        assert request.signal_number == signal.SIGUSR1
    assert signal.getsignal(signal.SIGTERM) not in (None, request.receive), "only SIGUSR1 is listened to outside"


def test_a_signal_after_the_steps_does_not_end_the_writing_of_the_model():
    listen_early()
    with listening() as request:
        assert request.signal_number == 0
    os.kill(os.getpid(), signal.SIGUSR1)


def test_without_the_early_one_a_request_is_new():
    with listening() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal_number == signal.SIGTERM
    with listening() as request:
        assert request.signal_number == 0
