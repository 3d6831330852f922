"""The end of the server, and of its detector."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from detkit.structures import Detections
from tests.serve.support import Detector, encode, picture, running, wait_until

DATA = encode(picture((200, 0, 0)))


def test_what_is_in_flight_is_finished() -> None:
    with running() as it:
        it.detector.gate.clear()
        answers = [it.in_background(DATA) for _ in range(12)]
        wait_until(lambda: it.service.queued == 12)
        it.server.should_exit = True
        wait_until(lambda: it.service.stopping)
        it.detector.gate.set()
        assert [answer.result()[0] for answer in answers] == [200] * 12
    with pytest.raises(ConnectionRefusedError):
        it.ask(DATA)


def test_what_takes_too_long_at_the_end_is_told_so() -> None:
    """The detector is stuck: who waits for it, who waits behind, and who is still sending."""
    with running(stop_s=0.3) as it:
        it.detector.gate.clear()
        answers = [it.in_background(DATA) for _ in range(12)]
        sending = it.raw("POST /predict HTTP/1.1\nHost: x\nContent-Length: 1000", b"abc")
        wait_until(lambda: it.service.queued == 12 and it.service.in_flight == 13)
        it.server.should_exit = True
        assert [answer.result() for answer in answers] == [(503, {"error": "the server is stopping"})] * 12
        assert sending.recv(1000).startswith(b"HTTP/1.1 503")


def test_a_connection_that_is_open_gets_no_more_answers() -> None:
    with running() as it:
        it.service.stopping = True
        status, answer, _ = it.call("GET", "/health")
        assert (status, answer["state"]) == (503, "stopping")
        assert it.ask(DATA) == (503, {"error": "the server is stopping"})


def test_a_detector_that_ends_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """What is no `Exception` ends its thread: those that wait hear of it, and so does whoever watches."""

    def find(_: np.ndarray) -> Detections:
        raise SystemExit("out of the world")

    with running(Detector(find)) as it:
        assert it.call("GET", "/health")[0] == 200
        it.detector.gate.clear()
        answers = [it.in_background(DATA)]
        wait_until(lambda: len(it.detector.batches) == 1)
        answers.append(it.in_background(DATA))
        wait_until(lambda: len(it.service.batcher) == 1)
        with caplog.at_level(logging.CRITICAL):
            it.detector.gate.set()
            assert [answer.result()[0] for answer in answers] == [503, 503]
        status, health, _ = it.call("GET", "/health")
        assert (status, health["state"]) == (503, "the detector has ended: out of the world")
        status, answer = it.ask(b"no picture, which nobody looks at any more")
        assert (status, answer["error"][:22]) == (503, "the detector has ended")


def test_no_thread_is_left() -> None:
    before = set(threading.enumerate())
    with running() as it:
        assert it.ask(DATA)[0] == 200
    wait_until(lambda: not {thread for thread in set(threading.enumerate()) - before if thread.is_alive()})


STUCK = """
import time
from detkit.cli.command import run_command
from detkit.serve.server import _bound, run
from detkit.serve.service import Served, Service
from detkit.serve.settings import ServeConfig
from detkit.structures import Categories
import argparse

def predict(images):
    if images[0].shape[0] < 100:  # not in the warm-up
        print("stuck", flush=True)
        time.sleep(100)

def main(_):
    config = ServeConfig(port=0, stop_s=0.5)
    with _bound(config) as listener:
        run(Service(Served("it", Categories.of_names(["a"]), "cpu", predict, lambda size: size), config), listener)

raise SystemExit(run_command(argparse.ArgumentParser(), main, []))
"""


@pytest.mark.long
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_detector_that_is_stuck_does_not_hold_the_process(number: signal.Signals, status: int) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", STUCK],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background is deaf to Ctrl-C
    ) as process:
        try:
            assert process.stdout
            found = re.search(r"at (http\S+)$", process.stdout.readline())
            assert found
            answers: list[int] = []

            def ask() -> None:
                try:
                    urllib.request.urlopen(f"{found[1]}/predict", DATA, timeout=30)
                except urllib.error.HTTPError as error:
                    answers.append(error.code)

            client = threading.Thread(target=ask)
            client.start()
            assert process.stdout.readline() == "stuck\n"
            start = monotonic()
            process.send_signal(number)
            assert process.wait(15) == status
            assert monotonic() - start < 10
            client.join(10)
            assert answers == [503]
        finally:
            process.kill()
