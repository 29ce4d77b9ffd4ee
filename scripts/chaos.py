"""What happens to a run when things go wrong: real training processes, really disturbed.

    python scripts/chaos.py                     # the whole table, two cases at a time
    python scripts/chaos.py --only='SIGKILL'    # the cases whose names match
    python scripts/chaos.py --list

Each case does one thing to a training process (a signal, a damaged checkpoint, a full disk, bad
data ...), runs the same command again where it should go on, and compares with a run that nobody
disturbed: the arrays of the last checkpoint and all losses, bit for bit on the same devices. One
line a case, with the steps that had to be computed again; then totals. Exit status 1 if any fails.
Steps take milliseconds here, so that a save may last longer than the thirty steps between two: what
is killed meanwhile loses the steps since the save before.
Bad inputs, bad configurations and bit flips are in chaos_inputs.py, which this starts.

All files are in a temporary directory that is removed, and only processes are ended that this
started. Nothing but the loopback interface is used. Linux.
"""

import argparse
import concurrent.futures
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import chaos_saves
import chaos_stops
import chaos_training
from chaos_runs import (
    LIMIT,
    PLAIN,
    ROOT,
    RUNNING,
    Case,
    Failed,
    Impossible,
    Outcome,
    Process,
    environment,
    scratch,
)
from chaos_saves import halfway


def inside(part: str, place: Path, report: Callable[[Outcome], None], only: str) -> None:
    """Run the cases of chaos_inputs.py, each of which prints a line of JSON."""
    place.mkdir()
    arguments = [str(ROOT / "scripts" / "chaos_inputs.py"), part, f"--place={place}"]
    arguments += [f"--only={only}"] if only else []
    if part == "flips":
        arguments += [f"--checkpoints={halfway(place / 'run')}", *PLAIN.arguments]
    run = Process(arguments, environment(devices=4 if part == "configs" else 1), privileged=False)
    seen, until = 0, time.monotonic() + LIMIT
    while time.monotonic() < until:
        ended = not run.reader.is_alive()
        for line in run.lines[seen:]:
            seen += 1
            if line.startswith('{"kind"'):
                report(Outcome(**json.JSONDecoder().raw_decode(line)[0]))
                until = time.monotonic() + LIMIT
        if ended:
            break
        time.sleep(0.05)
    else:
        run.kill()
    if status := run.end():
        text = f"status {status}: {run.last}"
        report(Outcome(part.removesuffix("s"), "what comes after", text, None, False, 0))


def attempt(case: Case) -> Outcome:
    began, place = time.monotonic(), scratch() / re.sub(r"\W+", "_", case.fault)
    ok: bool | None = False
    lost: int | None = None
    try:
        happened, lost = case.act(place)
        ok = True
    except Failed as error:
        happened = str(error)
    except Impossible as error:
        happened, ok = f"not possible here: {error}", None
    except Exception as error:  # of the case itself: it is not proven
        happened = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    if not KEEP:
        shutil.rmtree(place, ignore_errors=True)
    happened = " ".join(happened.replace(f"{place}/", "").replace(str(place), "").split())
    return Outcome(case.kind, case.fault, happened, lost, ok, seconds)


KEEP = False
WORDS = {True: "pass", False: "FAIL", None: "skip"}


def show(outcome: Outcome) -> None:
    lost = "-" if outcome.lost is None else str(outcome.lost)
    text = f"{WORDS[outcome.ok]}  {outcome.kind:<6}  {outcome.fault:<46}  lost {lost:>3}"
    print(f"{text}  {outcome.seconds:5.1f} s  {outcome.happened}", flush=True)


def totals(outcomes: Sequence[Outcome], seconds: float) -> str:
    lines = []
    for kind in dict.fromkeys(outcome.kind for outcome in outcomes):
        of = [outcome for outcome in outcomes if outcome.kind == kind]
        passed, skipped = sum(o.ok is True for o in of), sum(o.ok is None for o in of)
        more = f", {skipped} not possible here" if skipped else ""
        if kind == "flip":
            silent = sum(o.happened.startswith("silent") for o in of)
            named = sum("named" in o.happened for o in of)
            more += f" ({named} named, {passed - named} carried nothing, {silent} silent)"
        lines.append(f"{kind}: {passed} of {len(of)} passed{more}")
    minutes, rest = divmod(round(seconds), 60)
    return "\n".join([*lines, f"{minutes}:{rest:02} minutes"])


def markdown(outcomes: Sequence[Outcome], seconds: float) -> str:
    """The table of each kind but the flips, and the totals."""
    where = re.compile(re.escape(tempfile.gettempdir()) + r"/[^\s']*")
    head = "# What happens when things go wrong\n\n    python scripts/chaos.py --markdown=FILE\n"
    lines = [head, totals(outcomes, seconds).replace("\n", "  \n")]
    for kind, title in (("fault", "fault"), ("input", "bad input"), ("config", "bad config")):
        lines += ["", f"| {title} | what happens | steps lost |", "|---|---|---|"]
        for o in outcomes:
            if o.kind == kind:
                happened = where.sub("...", o.happened).replace("|", "/")
                happened = happened if len(happened) < 140 else f"{happened[:136]} ..."
                lost = "" if o.lost is None else o.lost
                lines.append(f"| {o.fault} | {WORDS[o.ok]}: {happened} | {lost} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="regular expression over the names of faults")
    parser.add_argument("--list", action="store_true", help="the names alone")
    parser.add_argument("--seed", type=int, default=0, help="of the random steps")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--json", help="write the outcomes to this file")
    parser.add_argument("--markdown", help="write the tables to this file")
    parser.add_argument("--keep", action="store_true", help="keep the temporary directory")
    options = parser.parse_args()
    globals()["KEEP"] = options.keep

    every = chaos_stops.cases(options.seed) + chaos_saves.cases() + chaos_training.cases()
    chosen = [case for case in every if re.search(options.only, case.fault)]
    if options.list:
        print("\n".join(case.fault for case in chosen), flush=True)
        for part in ("inputs", "configs", "flips"):
            script = [sys.executable, str(ROOT / "scripts" / "chaos_inputs.py")]
            subprocess.run([*script, part, "--list", f"--only={options.only}"], check=True)
        return 0

    began, outcomes, lock = time.monotonic(), [], threading.Lock()

    def report(outcome: Outcome) -> None:
        with lock:
            outcomes.append(outcome)
            show(outcome)

    parts = [
        functools.partial(inside, part, scratch() / part, report, options.only)
        for part in ("inputs", "configs", "flips")
    ]
    pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
    try:
        jobs = [pool.submit(part) for part in parts]
        jobs += [pool.submit(lambda c=c: report(attempt(c))) for c in chosen if not c.alone]
        for job in jobs:
            job.result()
        for case in chosen:
            if case.alone:
                report(attempt(case))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(RUNNING):
            process.kill()
        pool.shutdown()
        if not options.keep:
            shutil.rmtree(scratch(), ignore_errors=True)
    seconds = time.monotonic() - began
    print("\n" + totals(outcomes, seconds), flush=True)
    order = {case.fault: i for i, case in enumerate(every)}  # not as they ended
    outcomes.sort(key=lambda o: order.get(o.fault, len(order)))
    if options.json:
        found = [outcome._asdict() for outcome in outcomes]
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")
    if options.markdown:
        Path(options.markdown).write_text(markdown(outcomes, seconds))
    return int(any(outcome.ok is False for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
