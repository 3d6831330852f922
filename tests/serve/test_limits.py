"""What is too much, too slow or no picture: one clear line each, and the server goes on."""

from __future__ import annotations

import re
import socket
import struct
import zlib
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from detkit.data import pictures
from detkit.data.pictures import size_in_header
from detkit.serve import receiving
from tests.serve.support import Running, encode, picture, running, wait_until

DATA = encode(picture((200, 0, 0)))
NOISE = encode(np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8), "JPEG")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims this size and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + head, b"IDAT" + zlib.compress(b"")]
    packed = [struct.pack(">I", len(it) - 4) + it + struct.pack(">I", zlib.crc32(it)) for it in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def refused(it: Running, status: int, message: str, answer: tuple[int, Any]) -> None:
    assert answer[0] == status
    assert list(answer[1]) == ["error"]
    assert re.search(message, answer[1]["error"]), answer[1]
    assert "\n" not in answer[1]["error"]
    assert it.ask(DATA)[0] == 200, "the server goes on"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (NOISE[: len(NOISE) // 2], 422, "cannot be decoded: .*truncated"),
        (DATA[: len(DATA) // 2], 422, "cannot be decoded"),
        (b"a letter", 422, "no picture of a known kind"),
        (b"", 422, "found none"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "no picture of a known kind"),
        (png_header(31623, 31623), 413, r"at most 50 megapixels, found 31623 x 31623 \(w x h\)"),
        (png_header(2**31 - 1, 2**31 - 1), 413, "at most 50 megapixels"),
    ],
)
def test_what_is_no_whole_picture(body: bytes, status: int, message: str) -> None:
    with running() as it:
        refused(it, status, message, it.ask(body))
        assert len(it.detector.batches) == 1, "the good picture alone"


def test_float_tiffs_are_measured_before_they_are_decoded() -> None:
    """Pillow cannot open them, so that their header is read by its tags."""
    import cv2

    pixels = np.zeros((40, 50, 3), np.float32)
    data = cv2.imencode(".tiff", pixels)[1].tobytes()
    with running(max_megapixels=0.0019) as it:
        status, answer = it.ask(data)
        assert (status, "50 x 40" in answer["error"]) == (413, True)
    with running(max_megapixels=0.002) as it:
        assert it.ask(data)[0] == 200


def test_the_limit_of_pixels_is_met_exactly() -> None:
    with running(max_megapixels=48 * 64 / 1e6) as it:
        assert it.ask(DATA)[0] == 200
    with running(max_megapixels=(48 * 64 - 1) / 1e6) as it:
        assert it.ask(DATA)[0] == 413


def test_a_huge_header_is_refused_before_memory_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    def seek(_: bytes) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(receiving, "decode_picture", seek)
    with running() as it:
        assert it.ask(png_header(31623, 31623))[0] == 413
        assert it.ask(DATA)[0] == 500, "the stand-in is asked"


@pytest.mark.parametrize("big", [False, True])
def test_the_size_of_a_tiff_is_read_from_its_tags(big: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of those that Pillow cannot open; a BigTIFF has a longer header."""
    data = encode(np.zeros((40, 50, 3), np.uint8), "TIFF", big_tiff=big)
    monkeypatch.setattr(pictures, "_header", lambda *_: None)
    assert size_in_header(data) == (40, 50)


def test_a_body_that_is_announced_too_large_is_not_read() -> None:
    with running(max_body_mb=0.01) as it:
        refused(it, 413, r"at most 0\.01 MB", it.ask(bytes(10_001)))
        assert it.ask(bytes(10_000))[0] == 422, "read, and no picture"
        connection = it.raw("POST /predict HTTP/1.1\nHost: x\nContent-Length: 99999999999\nExpect: 100-continue")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_body_without_an_end_is_not_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks, of which no header says how many there are."""

    def send_without_end(connection: socket.socket) -> None:
        for _ in range(2**12):  # 256 MB
            connection.sendall(b"%x\r\n%s\r\n" % (2**16, bytes(2**16)))

    monkeypatch.setattr(receiving, "LINGER", 60)
    with running(max_body_mb=0.1) as it:
        connection = it.raw("POST /predict HTTP/1.1\nHost: x\nTransfer-Encoding: chunked")
        connection.settimeout(10)
        with pytest.raises(ConnectionError):  # it is closed at the other end
            send_without_end(connection)
        refused(it, 413, r"at most 0\.1 MB", it.ask(chunk for chunk in [bytes(200_000)]))


def test_a_client_that_only_sends_first_still_reads_the_answer() -> None:
    """Three times the limit is on its way before the client looks."""
    with running(max_body_mb=1) as it:
        for _ in range(5):
            assert it.ask(bytes(3_000_000))[0] == 413
            assert it.ask(bytes(3_000_000), "?nonsense=1")[0] == 422


def test_a_picture_that_trickles_is_given_up() -> None:
    with running(read_timeout_s=0.3) as it:
        connection = it.raw("POST /predict HTTP/1.1\nHost: x\nContent-Length: 1000", b"abc")
        start = monotonic()
        connection.settimeout(0.02)
        answer = b""
        while not answer.endswith(b"}"):  # the head of the answer may come alone
            try:
                if not answer:
                    connection.sendall(b"x")
                answer += connection.recv(1000)
            except TimeoutError:
                assert monotonic() - start < 10
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'{"error":"the picture did not arrive within 0.3 s"}' in answer
        assert monotonic() - start < 3
        assert it.ask(DATA)[0] == 200


def test_a_client_that_goes_away_while_it_sends() -> None:
    with running() as it:
        it.raw("POST /predict HTTP/1.1\nHost: x\nContent-Length: 1000", b"abc").close()
        wait_until(lambda: 'status="499"} 1.0' in it.call("GET", "/metrics")[1])
        assert it.service.in_flight == 0


def test_a_full_queue() -> None:
    with running(max_queue=2) as it:
        it.detector.gate.clear()
        accepted = [it.in_background(DATA)]
        wait_until(lambda: len(it.detector.batches) == 1)
        accepted.append(it.in_background(DATA))
        wait_until(lambda: len(it.service.batcher) == 1)
        status, answer, headers = it.call("POST", "/predict", DATA)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert answer == {"error": "2 pictures wait, which is the limit; try again in a second"}
        it.detector.gate.set()
        assert [answer.result()[0] for answer in accepted] == [200, 200]
        assert it.ask(DATA)[0] == 200


def test_too_many_at_once() -> None:
    with running(max_requests=1) as it:
        slow = it.raw("POST /predict HTTP/1.1\nHost: x\nContent-Length: 1000", b"abc")
        wait_until(lambda: it.service.in_flight == 1)
        status, answer = it.ask(DATA)
        assert status == 503
        assert answer["error"].startswith("1 predictions are in flight")
        slow.close()
        wait_until(lambda: it.service.in_flight == 0)
        assert it.ask(DATA)[0] == 200


def test_an_answer_that_takes_too_long() -> None:
    with running(timeout_s=0.3) as it:
        it.detector.gate.clear()
        start = monotonic()
        assert it.ask(DATA) == (504, {"error": "no answer within 0.3 s"})
        waiting = it.in_background(DATA)
        assert waiting.result()[0] == 504
        assert monotonic() - start < 3
        assert len(it.service.batcher) == 0, "what nobody waits for is not detected"
        it.detector.gate.set()
        assert it.ask(DATA)[0] == 200
        assert len(it.detector.batches) == 2


def test_few_pictures_are_decoded_ahead() -> None:
    """A decoded picture takes far more memory than its file: 2 x 1 + 1 of them here, however many wait."""
    with running(max_batch=1, decode_threads=1) as it:
        it.detector.gate.clear()
        answers = [it.in_background(DATA) for _ in range(10)]
        wait_until(lambda: it.service.queued == 10)
        sleep(0.2)
        assert len(it.service.batcher) == 2, "and one is being detected"
        it.detector.gate.set()
        assert [answer.result()[0] for answer in answers] == [200] * 10


def test_a_form() -> None:
    with running() as it:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        status, answer, _ = it.call("POST", "/predict", b"--x", kind)
        assert status == 415
        assert f"curl --data-binary @photo.jpg http://127.0.0.1:{it.port}/predict" in answer["error"]
        kind = {"Content-Type": "application/x-www-form-urlencoded"}  # what that line sends
        assert it.call("POST", "/predict", DATA, kind)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/predict", 405, "/predict does not take GET; it takes POST"),
        ("POST", "/", 405, "/ does not take POST; it takes GET and HEAD"),
        ("PUT", "/predict", 405, "does not take PUT"),
        ("GET", "/nothing", 404, "no such address: /nothing; there are /predict"),
        ("GET", "/../../etc/passwd", 404, "no such address"),
        ("GET", "/server.py", 404, "no such address"),
    ],
)
def test_addresses_that_there_are_not(method: str, path: str, status: int, message: str) -> None:
    with running() as it:
        found, answer, headers = it.call(method, path)
        assert (found, message in answer["error"]) == (status, True), answer
        assert ("Allow" in headers) == (status == 405)


def test_what_is_no_http() -> None:
    with running() as it:
        connection = socket.create_connection(("127.0.0.1", it.port), timeout=10)
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
        assert it.ask(DATA)[0] == 200


def test_an_error_of_the_server_itself_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from detkit.serve import service

    def broken(*_: object) -> None:
        raise RuntimeError("secret of the inside")

    with running() as it:
        monkeypatch.setattr(service, "picture_record", broken)
        assert it.ask(DATA) == (500, {"error": "the server failed on this request; its log says why"})
