"""What every command shares: its exit status, and the options that several have."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from detkit.config import UserError
from detkit.engine.prediction.interrupts import Stopped
from detkit.engine.speed import prepare_process
from detkit.files import write_text, writing

CONFIG = "a YAML file, or a name that `detkit configs` lists"
SOURCE = (
    "a run (its last.pt), a checkpoint, or public weights: torchvision:NAME[:FILE], hf:FOLDER, hf:OWNER/NAME, "
    "detr:NAME[:FILE], yolox:NAME[:FILE], yolov5:NAME:FILE, yolov7:NAME:FILE, detectron2:FILE[:NAMES], "
    "darknet:CFG[:WEIGHTS[:NAMES]] or NAME.cfg with NAME.weights beside it"
)


def add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="change one setting; repeatable"
    )


def add_class_match(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--class-map", type=Path, metavar="FILE", help="YAML lines `detector's name of a class: the data's name`"
    )
    parser.add_argument("--classes", choices=("all", "shared"), default="all", help="shared: those that both have")


def run_command(
    parser: argparse.ArgumentParser, action: Callable[[argparse.Namespace], None], arguments: Sequence[str] | None
) -> int:
    """Status 0; 2 for a user's mistake (one message, no stack trace); 130, 143 for a signal; 141 for a closed pipe."""
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes need not be UTF-8
    try:
        prepare_process()
        action(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141
    except UserError as error:
        traceback.clear_frames(error.__traceback__)  # ends the progress bars: the message stands on its own line
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG):
            raise
        traceback.clear_frames(error.__traceback__)
        what = "" if error.errno == errno.ENAMETOOLONG else "cannot write: "
        print(f"error: {error.filename or 'a file'}: {what}{error.strerror}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, RuntimeError) as error:
        if not _is_interrupt(error):
            raise
        traceback.clear_frames(error.__traceback__)
        print(
            "interrupted; a training run goes on with --resume" if parser.prog == "train" else "interrupted",
            file=sys.stderr,
        )
        return error.status if isinstance(error, Stopped) else 130
    return 0


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is one, or was raised while one was handled: torch's writer of files then complains for itself."""
    return isinstance(error, KeyboardInterrupt) or (error is not None and _is_interrupt(error.__context__))


def refuse_overwriting(outputs: Sequence[Path | None], inputs: Sequence[Path | str | None]) -> None:
    """Raises UserError if a file that the command is to write is one that it reads, or the checkpoint of a run."""
    sources = [Path(source) for source in inputs if source]
    read = {path.resolve() for source in sources for path in (source, *source.glob("*.pt"))}
    for output in filter(None, outputs):
        if output.resolve() in read:
            raise UserError(f"{output}: is read by this command, and would be overwritten; name another file")


def check_file(option: str, path: Path | None) -> None:
    """Raises UserError if a file that is to be written is a folder: rather now than after an hour of work."""
    if path is not None and path.is_dir():
        raise UserError(f"{option} {path}: expected a file to write, found a folder; name a file in it")


def write_json(path: Path, value: object) -> None:
    """Also to /dev/stdout, a pipe or the like, which no other file can take the place of."""
    text = json.dumps(value, indent=1)
    if _is_stdout(path):
        print(text)
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
    write_text(path, text)


def _is_stdout(path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):  # no such file yet, or a stdout that is none
        return False
