"""`detkit serve` as a process: how it starts, ends, and behaves under load; and what users get wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import detkit
from detkit import cli
from detkit.serve.settings import ServeConfig
from tests.cli_support import train_tiny

ROOT = Path(detkit.__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one epoch, so that its detector is poor."""
    return train_tiny(tmp_path_factory.mktemp("runs"))


def listen_to_interrupts() -> None:
    """A shell starts what runs in its background deaf to Ctrl-C, and its children with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(run: Path, log: Path, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    """The process, and the address that its first line names."""
    command = [sys.executable, "-m", "detkit", "serve", str(run), "--port", "0", "--device", "cpu", *options]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, preexec_fn=listen_to_interrupts
        )
    for _ in range(1200):
        if found := re.search(r"^detkit serves \S+ \(6 classes, cpu\) at (http\S+)$", log.read_text(), re.MULTILINE):
            return process, found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def post(address: str, data: bytes) -> dict[str, object]:
    with urllib.request.urlopen(f"{address}/predict?max_detections=3", data, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.long
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it(run: Path, tmp_path: Path, number: signal.Signals, status: int) -> None:
    """It answers as `detkit.predict` does; then it ends within seconds and says nothing but that it was interrupted."""
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    process, address = start(run, tmp_path / "log")
    try:
        answer = post(address, (tmp_path / "a.png").read_bytes())
        expected = detkit.predict(run, image)[0]
        assert (answer["width"], answer["height"]) == (90, 60)
        best = [found["score"] for found in answer["detections"]]
        assert best == pytest.approx(expected.scores[:3].tolist(), abs=1e-4)
        process.send_signal(number)
        assert process.wait(20) == status
    finally:
        process.kill()
    after = (tmp_path / "log").read_text().splitlines()[1:]
    assert after == (["interrupted"] if number == signal.SIGINT else [])


@pytest.mark.long
def test_other_networks_are_warned_of(run: Path, tmp_path: Path) -> None:
    process, address = start(run, tmp_path / "log", "--host", "0.0.0.0")
    process.kill()
    process.wait(20)
    assert address.startswith("http://0.0.0.0:")
    assert (
        "warning: whoever reaches this address can use it: there is no authentication" in (tmp_path / "log").read_text()
    )


@pytest.mark.long
def test_no_answer_is_wrong_or_lost_under_load(run: Path, tmp_path: Path) -> None:
    """See benchmarks/serve_load.py; 100 requests, good and bad, from 16 clients."""
    command = [sys.executable, "benchmarks/serve_load.py", str(run), "--requests", "100", "--clients", "16"]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "report.json")], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert (tmp_path / "report.json").is_file(), done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    log = [line for line in report["log"] if "PNG" not in line]  # OpenCV writes a line for one that is cut short
    assert (report["wrong"], report["lost"], log) == ([], [], []), done.stdout
    assert sum(report["by_kind"].values()) == 100
    assert len(report["by_kind"]) == 9, "each kind has one status"
    assert report["batches"] < report["pictures"]
    assert set(report["stop_answers"]) <= {"200", "503"}
    assert (report["stop_status"], done.returncode) == (0, 0)
    assert report["stop_seconds"] < 20


# ---- what users get wrong


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert cli.main(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    return captured.err


def test_a_port_that_is_taken(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        message = refused(capsys, str(run), "--port", port)
    assert message == (
        f"error: 127.0.0.1:{port} is taken by another program; choose another --port, or 0 for a free one\n"
    )


def test_a_port_that_is_not_ones_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may use every port")
    assert "127.0.0.1:80 is not yours to use; choose a --port from 1024 on" in refused(capsys, str(run), "--port", "80")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "192.0.2.1"], "192.0.2.1:8000 is not an address of this machine; choose another --host"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: no such address"),
        (["--port", "70000"], "port: .*less than or equal to 65535, found 70000"),
        (["--max-batch", "0"], "max_batch: .*greater than or equal to 1, found 0"),
        (["--score-threshold", "nan"], "score_threshold: .*found nan"),
        (["--timeout-s", "0", "--max-queue", "-1"], "2 errors"),
        (["--set", "model.nonsense=1", "--port", "0"], "nonsense"),
        (["--device", "gpu", "--port", "0"], "device"),
    ],
)
def test_an_option_that_cannot_be(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert re.search(message, refused(capsys, str(run), *options))


def test_a_source_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refused(capsys, "nowhere", "--port", "0")


def test_a_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    absent = {"starlette", "prometheus_client"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find_spec(name))
    message = refused(capsys, "nowhere")
    assert message == (
        "error: to serve a detector, starlette and prometheus_client must be installed: pip install -e '.[serve]'\n"
    )


def test_every_setting_has_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in ServeConfig.model_fields.items():
        assert f"--{name.replace('_', '-')} " in text
        assert f"{field.description} ({field.default})" in text


def test_the_extra_and_the_page_are_in_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^serve = \[.*starlette.*uvicorn.*prometheus-client", text, re.MULTILINE)
    for suffix in ("html", "css", "js"):
        assert f'"serve/*.{suffix}"' in text
