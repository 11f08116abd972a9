"""All tests, as `make test` runs them: two workers side by side, then what must be alone, then one line about both.

    python tests/run.py                     everything
    python tests/run.py -k exercises -x     what pytest is asked for (any of its options)
    python tests/run.py --record            everything, and remember the seconds: the next run starts the longest first

What is marked `alone` compares times or needs all cores to itself. WORKERS sets the number of workers (default: the cores, at most two).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from gpt2_course.device import cores

ROOT = Path(__file__).resolve().parents[1]
DURATIONS = ROOT / "tests" / "durations.json"
NOTHING = 5  # pytest's exit status where no test was chosen


def known_durations() -> dict[str, float]:
    "Seconds of each unit of work (tests/conftest.py says what one is), by --record"
    return json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}


def expected(workers: int) -> str:
    "How long everything took when it was last recorded, shared out; the machine is not that one"
    known = known_durations()
    if not known:
        return ""
    return f"about {max(sum(known.values()) / workers, max(known.values())) / 60:.0f} minutes with {workers} worker{'s' * (workers > 1)} (recorded on two cores; yours may differ)"


def phase(name: str, chosen: list[str], options: list[str], report: Path, env: dict) -> int:
    "Run pytest once; its exit status"
    print(f"--- {name}", flush=True)
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *chosen]
    return subprocess.run(command, cwd=ROOT, env=env).returncode


def cases(report: Path):
    return ET.parse(report).getroot().iter("testcase") if report.exists() else ()


def outcome(case) -> tuple[str, str]:
    "(what became of a test, why it was skipped)"
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            return {"failure": "failed", "error": "failed", "skipped": "skipped"}[kind], (found.get("message") or "").strip()
    return "passed", ""


def closing(reports: list[Path], minutes: float) -> str:
    "Tests, minutes, and what was skipped and why, on one line"
    found = [outcome(case) for report in reports for case in cases(report)]
    count = Counter(kind for kind, _ in found)
    why = Counter(reason for kind, reason in found if kind == "skipped")
    skipped = "; ".join(f"{n} x {reason}" for reason, n in why.most_common())
    counts = ", ".join(f"{count[kind]} {kind}" for kind in ("passed", "failed", "skipped") if count[kind] or kind == "passed")
    return f"make test: {counts} in {minutes:.1f} minutes" + (f" (skipped: {skipped})" if skipped else "")


def record(reports: list[Path]):
    "Seconds of each unit of work, as tests/conftest.py names it, from what the tests noted"
    seconds: Counter = Counter()
    for report in reports:
        for case in cases(report):
            unit = next((p.get("value") for p in case.iter("property") if p.get("name") == "unit"), None)
            if unit:
                seconds[unit] += float(case.get("time", 0))
    DURATIONS.write_text(json.dumps({unit: round(s, 1) for unit, s in sorted(seconds.items()) if s >= 1}, indent=1) + "\n")


def main() -> int:
    chosen = sys.argv[1:]
    keep = "--record" in chosen
    chosen = [c for c in chosen if c != "--record"]
    workers = int(os.environ.get("WORKERS", min(2, cores())))
    began = time.monotonic()
    if not chosen and expected(workers):
        print(f"make test: {expected(workers)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tests-") as folder:
        reports = [Path(folder) / f"{name}.xml" for name in ("together", "alone")]
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", f"{folder}/inductor")}
        one_each = env | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // workers)))}
        side_by_side = ["-n", str(workers), "--dist", "loadscope", "--no-loadscope-reorder"] if workers > 1 else []
        statuses = [
            phase(f"{workers} worker{'s' * (workers > 1)}", ["-m", "not network and not alone", *chosen], ["-q", *side_by_side], reports[0], one_each),
            phase("alone", ["-m", "alone and not network", *chosen], ["-q"], reports[1], env),
        ]
        if keep:
            record(reports)
        print(closing(reports, (time.monotonic() - began) / 60), flush=True)
    if all(status == NOTHING for status in statuses):
        return NOTHING
    return next((status for status in statuses if status not in (0, NOTHING)), 0)


if __name__ == "__main__":
    sys.exit(main())
