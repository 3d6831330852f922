"""Fuzzing for longer: `python -m tests.fuzz.run --seconds 600 --seed 3`, all targets or the ones that are named.

Each target runs in a process of its own with a limit of its memory, so that the death of one is told and ends no other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.harness import Tally, run
from tests.fuzz.targets import BUILDERS

ADDRESS_SPACE = 16 << 30  # bytes that the process of one target may map


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=Path, default=Path("fuzz_faults"), help="folder for inputs that are a fault")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(BUILDERS)}; all without it")
    options = parser.parse_args()
    names = options.targets or list(BUILDERS)
    if unknown := sorted(set(names) - set(BUILDERS)):
        parser.error(f"unknown target {unknown[0]}; known: {', '.join(BUILDERS)}")
    bad = 0
    for name in names:
        tally = _apart(name, options.seed, options.seconds, options.faults)
        bad += tally is None or bool(tally.faults)
        if tally is not None:
            print(describe(tally), flush=True)
    return 1 if bad else 0


def describe(tally: Tally) -> str:
    ends = ", ".join(f"{end} {count}" for end, count in tally.ends.most_common())
    slowest, number = tally.slowest
    head = (
        f"{tally.target:17} {tally.inputs:9} inputs in {tally.seconds:.0f} s, {len(tally.faults)} faults; slowest "
        f"{1000 * slowest:.0f} ms (input {number}); largest memory {tally.memory >> 20} MB, of which at the start "
        f"{tally.memory_before >> 20}; {ends}"
    )
    return "\n".join([head, *(f"  FAULT {kind}\n{text}" for kind, text in tally.faults.items())])


def _apart(name: str, seed: int, seconds: float, faults: Path) -> Tally | None:
    """None: the process died, which is printed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="detkit-fuzz-") as base:
        folder = Path(base, *["work", "in", "a", "deep", "folder"])  # so that `..` in an input stays inside
        process = context.Process(target=_child, args=(name, seed, seconds, folder, faults.resolve(), sender))
        process.start()
        sender.close()
        try:
            tally: Tally | None = receiver.recv()
        except EOFError:
            tally = None
        process.join()
        if tally is None:
            faults.mkdir(parents=True, exist_ok=True)
            (last,) = folder.glob("input.*")
            kept = faults / f"{name}-death{last.suffix}"
            kept.write_bytes(last.read_bytes())
            print(f"{name:17} FAULT: the process died with {process.exitcode} while it read {kept}", flush=True)
        return tally


def _child(name: str, seed: int, seconds: float, folder: Path, faults: Path, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    folder.mkdir(parents=True)
    os.environ["DETKIT_CACHE"] = str(folder / "cache")
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # decoders complain there
    sender.send(run(BUILDERS[name](folder), folder, faults, seed, seconds=seconds))


if __name__ == "__main__":
    sys.exit(main())
