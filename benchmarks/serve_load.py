"""`detkit serve` under load: many clients that send good pictures, bad ones and none at all, on this machine.

python benchmarks/serve_load.py runs/ssd --requests 2000 --clients 64

Starts the server as a process of its own. Every answer to a good picture is compared with that of `detkit.predict`.
Status 1 if an answer was wrong, none came, or the server did not end as it should.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
from PIL import Image

import detkit
from detkit.data.shapes_drawing import draw_picture
from detkit.structures import Detections

ROOT = Path(__file__).resolve().parents[1]
# Shares of the requests, and the status of their answer; None: the client goes away and hears nothing.
KINDS: dict[str, tuple[int, int | None]] = {
    "good": (60, 200),
    "slow": (6, 200),  # in pieces, within the time limit
    "truncated": (8, 422),
    "no picture": (8, 422),
    "huge header": (6, 413),
    "large body": (4, 413),
    "trickling": (1, 408),
    "aborted while sending": (3, None),
    "aborted while waiting": (4, None),
}
THRESHOLD = 0.05
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-4  # px, and of the score: of pictures in a batch instead of alone
READ_TIMEOUT, MAX_MB, CONTENTS = 4.0, 2.0, 10


@dataclass
class Report:
    """What came of it; `resident_mb` of the server after the warm-up and after each quarter of the requests."""

    requests: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)  # kind and status
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of good pictures
    wall: float = 0.0
    resident_mb: list[float] = field(default_factory=list)
    batches: int = 0
    pictures: int = 0
    stop_seconds: float = 0.0
    stop_status: int | None = None
    stop_answers: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)  # lines of the server after its first

    @property
    def passed(self) -> bool:
        return not self.wrong and not self.lost and self.stop_status == 0


@dataclass(frozen=True)
class Content:
    data: bytes
    expected: Detections
    size: tuple[int, int]


def contents(source: str) -> list[Content]:
    """Pictures of the built-in set with their detections, of which no two are alike."""
    detector = detkit.load(source)
    result = []
    for seed in range(CONTENTS):
        image, _ = draw_picture(np.random.default_rng([7, seed]))
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG" if seed % 2 else "JPEG", quality=95)
        pixels = np.array(Image.open(file))
        found = detkit.predict(detector, pixels)[0]
        result.append(Content(file.getvalue(), found, pixels.shape[:2]))
    return result


def difference(content: Content, answer: Any) -> str | None:
    """Why the answer is not that of `detkit.predict`. Detections at the very threshold may be there or not."""
    if (answer["height"], answer["width"]) != content.size:
        return f"{answer['width']} x {answer['height']} for {content.size[::-1]}"
    names = content.expected.categories.names
    rows = zip(*(column.tolist() for column in (content.expected.labels, content.expected.scores)), strict=True)
    expected = [(names[label], score) for label, score in rows]
    boxes = content.expected.boxes.numpy()
    free = set(range(len(expected)))
    for found in answer["detections"]:
        near = [
            row
            for row in free
            if expected[row][0] == found["class"]
            and abs(expected[row][1] - found["score"]) <= SCORE_TOLERANCE
            and np.abs(boxes[row] - found["box"]).max() <= BOX_TOLERANCE
        ]
        if near:
            free.discard(near[0])
        elif found["score"] > THRESHOLD + SCORE_TOLERANCE:
            return f"unexpected {found}"
    missing = [expected[row] for row in free if expected[row][1] > THRESHOLD + SCORE_TOLERANCE]
    return f"missing {missing[0]}" if missing else None


class Server:
    """The process. `health` and `resident_mb` are asked of it."""

    def __init__(self, source: str, options: Sequence[str], log: Path) -> None:
        settings = ("--read-timeout-s", str(READ_TIMEOUT), "--max-body-mb", str(MAX_MB), "--port", "0", *options)
        command = [sys.executable, "-m", "detkit", "serve", source, "--score-threshold", str(THRESHOLD), *settings]
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        while not (started := re.search(r" at http://127\.0\.0\.1:(\d+)", log.read_text())):
            if self.process.poll() is not None:
                raise SystemExit(log.read_text())
            sleep(0.05)
        self.port = int(started[1])

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def health(self) -> Any:
        return json.loads(self.get("/health"))

    def resident_mb(self) -> float:
        found = re.search(r"^process_resident_memory_bytes (\S+)", self.get("/metrics"), re.MULTILINE)
        return float(found[1]) / 1e6 if found else 0.0


@contextmanager
def connected(port: int, length: int) -> Iterator[socket.socket]:
    """A connection on which the head of a request was sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: load\r\nContent-Length: {length}\r\n\r\n".encode())
        yield connection


def answer_of(connection: socket.socket) -> tuple[int, Any]:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read())


def ask(port: int, kind: str, content: Content, rng: np.random.Generator) -> tuple[int, Any] | None:
    """One request of a kind; status and content of the answer."""
    data = content.data
    match kind:
        case "truncated":
            data = data[: int(len(data) * rng.uniform(0.1, 0.9))]
        case "no picture":
            data = bytes(rng.integers(65, 90, int(rng.integers(1, 5000)), dtype=np.uint8))
        case "huge header":
            data = data_of_a_huge_picture()
        case "large body":
            data = bytes(int(MAX_MB * 1e6 * rng.uniform(1.01, 4)))
    with connected(port, len(data)) as connection:
        match kind:
            case "slow":
                for start in range(0, len(data), step := len(data) // 8 + 1):
                    connection.sendall(data[start : start + step])
                    sleep(float(rng.uniform(0, READ_TIMEOUT / 20)))
            case "trickling":
                connection.sendall(data[:100])
            case "aborted while sending":
                connection.sendall(data[: len(data) // 2])
                return None
            case "aborted while waiting":
                connection.sendall(data)
                sleep(float(rng.uniform(0, 0.05)))
                return None
            case _:
                connection.sendall(data)
        return answer_of(connection)


def data_of_a_huge_picture() -> bytes:
    """A bitmap whose header claims 10^9 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "BMP")
    data = bytearray(file.getvalue())
    data[18:26] = (40_000).to_bytes(4, "little") + (25_000).to_bytes(4, "little")
    return bytes(data)


def send_all(server: Server, known: Sequence[Content], num_requests: int, clients: int, report: Report) -> None:
    shares = [share for share, _ in KINDS.values()]
    kinds = np.random.default_rng(0).choice(list(KINDS), num_requests, p=np.array(shares) / sum(shares)).tolist()
    lock = threading.Lock()

    def one(number: int) -> None:
        kind, rng = kinds[number], np.random.default_rng([1, number])
        content = known[number % len(known)]
        start = monotonic()
        try:
            answer = ask(server.port, kind, content, rng)
        except (OSError, http.client.HTTPException, ValueError) as error:
            with lock:
                report.lost.append(f"{number} ({kind}): {type(error).__name__}: {error}")
            return
        seconds = monotonic() - start
        with lock:
            report.by_kind[f"{kind}: {answer[0] if answer else 'gone'}"] += 1
            if kind == "good":
                report.seconds.append(seconds)
            expected = KINDS[kind][1]
            if answer and answer[0] != expected:
                report.wrong.append(f"{number} ({kind}): status {answer[0]} {answer[1]}")
            elif answer and expected == 200 and (why := difference(content, answer[1])):
                report.wrong.append(f"{number} ({kind}): {why}")

    report.resident_mb.append(server.resident_mb())
    start = monotonic()
    with ThreadPoolExecutor(clients) as pool:
        for quarter in np.array_split(np.arange(num_requests), 4):
            list(pool.map(one, quarter.tolist()))
            report.resident_mb.append(server.resident_mb())
    report.wall = monotonic() - start


def stop(server: Server, known: Sequence[Content], report: Report) -> None:
    """SIGTERM while sixteen pictures are in flight: each is answered, with its detections or with 503."""

    def one(number: int) -> str:
        content = known[number % len(known)]
        try:
            status, answer = ask(server.port, "good", content, np.random.default_rng(0))  # type: ignore[misc]
        except (OSError, http.client.HTTPException) as error:
            report.lost.append(f"at the end: {type(error).__name__}: {error}")
            return "none"
        if status == 200 and (why := difference(content, answer)):
            report.wrong.append(f"at the end: {why}")
        return str(status)

    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(one, number) for number in range(16)]
        while server.health()["in_flight"] < 12 and not all(it.done() for it in answers):
            sleep(0.001)
        sleep(0.05)  # all have connected
        start = monotonic()
        server.process.send_signal(signal.SIGTERM)
        report.stop_status = server.process.wait(60)
        report.stop_seconds = monotonic() - start
        report.stop_answers.update(it.result() for it in answers)


def run_load(source: str, num_requests: int, clients: int, options: Sequence[str] = ()) -> Report:
    report = Report(num_requests)
    known = contents(source)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(source, options, Path(folder) / "log")
        try:
            for content in known:  # a few pictures first, so that memory is what it is in use
                ask(server.port, "good", content, np.random.default_rng(0))
            send_all(server, known, num_requests, clients, report)
            health = server.health()
            report.batches, report.pictures = health["batches"], health["pictures"]
            stop(server, known, report)
        finally:
            server.process.kill()
            report.log = server.log.read_text().splitlines()[1:]
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a run or a checkpoint")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--json", type=Path, help="file for the report")
    parser.add_argument("--options", default="", help="more options of `detkit serve`, in one text")
    options = parser.parse_args()
    report = run_load(options.source, options.requests, options.clients, options.options.split())
    if options.json:
        options.json.write_text(json.dumps({**vars(report), "passed": report.passed}))
    print(f"{report.requests} requests from {options.clients} clients in {report.wall:.1f} s on {os.cpu_count()} cores")
    for kind, count in sorted(report.by_kind.items()):
        print(f"  {count:5d}  {kind}")
    print(f"wrong {len(report.wrong)}, lost {len(report.lost)}", *report.wrong[:5], *report.lost[:5], sep="\n  ")
    p50, p95 = np.percentile(report.seconds, [50, 95])
    print(f"good pictures: p50 {p50 * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms")
    print(f"{report.pictures} pictures in {report.batches} batches")
    print("resident MB at the start and after each quarter:", *(f"{value:.0f}" for value in report.resident_mb))
    print(f"end: status {report.stop_status} after {report.stop_seconds:.2f} s, answers {dict(report.stop_answers)}")
    print("the server's log:", *(report.log or ["empty"]), sep="\n  ")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
