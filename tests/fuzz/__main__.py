"""Run mutations in workers, watch these, and say how each ended.

python -m tests.fuzz --mutations 10000 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from .judge import FAILED, REFUSED, SECONDS, Outcome, message_class
from .worker import work

PIECE = 500
"""How many mutations a worker runs: a fresh process now and then keeps what they leave behind small."""
PATIENCE = 12 * SECONDS
"""How long a worker may be silent: it ends what is too slow itself, unless that is native code."""


def outcomes(seed: int, indices: range, keep: Path | None = None) -> Iterator[Outcome]:
    """Yield how each mutation ended, in order."""
    while indices:
        piece = indices[:PIECE]
        done = 0
        for outcome in _piece(seed, piece, keep):
            done += 1
            yield outcome
        indices = indices[done:]


def _piece(seed: int, indices: range, keep: Path | None) -> Iterator[Outcome]:
    """Yield what one worker reports; where it dies or falls silent, that mutation has failed, and the rest is left to another."""
    command = [sys.executable, "-m", str(__package__), "--worker", str(indices.start), str(indices.stop), "--seed", str(seed)]
    command += [] if keep is None else ["--keep", str(keep.resolve())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, env=environment) as process:
        assert process.stdout is not None
        running = indices.start
        try:
            while line := _line(process):
                found = json.loads(line)
                if isinstance(found, int):
                    running = found
                else:
                    running += 1
                    yield Outcome(**found)
            ended = bool(select.select([process.stdout], [], [], 0)[0])  # readable: there is its end
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
            process.kill()
    if running < indices.stop:
        said = f"its process ended with {process.returncode}" if ended else f"its process was silent for {PATIENCE:g} s"
        yield Outcome(running, "worker", "see --only", FAILED, said, PATIENCE)


def _line(process: subprocess.Popen[bytes]) -> bytes:
    """Return the next line of a worker; none when it has ended, or was silent for too long."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
    return process.stdout.readline() if ready else b""


def command(seed: int, index: int) -> str:
    """Return what to type to run one mutation again."""
    return f"python -m tests.fuzz --seed {seed} --only {index}"


def report(seed: int, found: Sequence[Outcome], shown: int = 60) -> str:
    """Say how many mutations ended how, by surface and by message, and how to run the failures again."""
    verdicts = Counter(outcome.verdict for outcome in found)
    slowest = max(found, key=lambda outcome: outcome.seconds)
    lines = [
        f"{len(found):,} mutations, seed {seed}: "
        + ", ".join(f"{count:,} {verdict}" for verdict, count in sorted(verdicts.items()))
    ]
    lines.append(f"slowest: {slowest.seconds:.2f} s, mutation {slowest.index} ({slowest.told[:100]})")
    lines.append("\nby what was mutated:")
    for surface in dict.fromkeys(sorted(outcome.surface for outcome in found)):
        count = Counter(outcome.verdict for outcome in found if outcome.surface == surface)
        lines.append(f"  {surface:26}" + ", ".join(f"{count[verdict]:5,} {verdict}" for verdict in sorted(verdicts)))
    messages = Counter(message_class(outcome.said) for outcome in found if outcome.verdict == REFUSED)
    lines.append(f"\nrefused by {len(messages)} kinds of messages, the most frequent ones:")
    lines += [f"  {count:5,}  {message}" for message, count in messages.most_common(shown)]
    failures = [outcome for outcome in found if outcome.verdict == FAILED]
    lines += [f"\nFAILED  {command(seed, failure.index)}\n  {failure.told}\n  {failure.said}" for failure in failures]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutations asked for; return 1 where one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Mutate what swcompile reads, and see that it is refused."
    )
    parser.add_argument("--mutations", type=int, default=10_000, metavar="N", help="how many [10000]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other mutations [0]")
    parser.add_argument("--first", type=int, default=0, metavar="INDEX", help="begin with this one [0]")
    parser.add_argument("--only", type=int, nargs="+", metavar="INDEX", help="run these alone, and say all that happened")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="with --only: put the mutated files there")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write a line of JSON for each")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.worker is not None:
        work(asked.seed, range(*asked.worker), asked.keep)
        return 0
    if asked.only is not None:
        found = [outcome for index in asked.only for outcome in outcomes(asked.seed, range(index, index + 1), asked.keep)]
        shown = "\n".join(f"{one.index} {one.verdict} in {one.seconds:.2f} s\n  {one.told}\n  {one.said}" for one in found)
    else:
        found = list(_logged(outcomes(asked.seed, range(asked.first, asked.first + asked.mutations)), asked.log))
        shown = report(asked.seed, found)
    print(shown.encode("utf-8", "backslashreplace").decode())
    return int(any(outcome.verdict == FAILED for outcome in found))


def _logged(found: Iterable[Outcome], log: Path | None) -> Iterator[Outcome]:
    """Pass outcomes on, and tell of them: a line in the log for each, one on stderr now and then."""
    start, failed = time.perf_counter(), 0
    with contextlib.nullcontext() if log is None else log.open("w", encoding="utf-8") as file:
        for count, outcome in enumerate(found, 1):
            if file is not None:
                print(json.dumps(asdict(outcome)), file=file, flush=True)
            failed += outcome.verdict == FAILED
            if count % 500 == 0:
                print(f"{count:,} done in {time.perf_counter() - start:.0f} s, {failed} failed", file=sys.stderr, flush=True)
            yield outcome


if __name__ == "__main__":
    sys.exit(main())
