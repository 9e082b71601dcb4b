"""What a trace of jax.profiler says the device spent its time on: python benchmarks/profile_costs.py DIR

DIR is what jax.profiler.trace was given. On GPUs and TPUs the operations are those of the device's own rows, on CPUs
those of XLA's threads. Time within an operation that ran inside another counts for the inner one alone.
"""

from __future__ import annotations

import collections
import gzip
import json
import pathlib
import sys
from typing import Any

OPERATIONS = ("Stream", "XLA Ops")  # rows of a device, on GPUs and on TPUs; its other rows say the same again


def trace_file(folder: str | pathlib.Path) -> pathlib.Path:
    """The latest trace under a folder.

    Raises:
      ValueError: there is none.
    """
    found = sorted(pathlib.Path(folder).glob("plugins/profile/*/*.trace.json.gz"))
    if not found:
        raise ValueError(f"no plugins/profile/*/*.trace.json.gz in {folder}; give the folder of jax.profiler.trace")
    return found[-1]


def operations(trace: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The timed operations of each row that shows what the device does."""
    processes, threads = {}, {}
    rows = collections.defaultdict(list)
    for event in trace["traceEvents"]:
        if event.get("ph") == "M" and event["name"] == "process_name":
            processes[event["pid"]] = event["args"]["name"]
        elif event.get("ph") == "M" and event["name"] == "thread_name":
            threads[event["pid"], event["tid"]] = event["args"]["name"]
        elif event.get("ph") == "X":
            rows[event["pid"], event["tid"]].append(event)
    devices = {pid for pid, name in processes.items() if name.startswith("/device:")}
    if devices:
        streams = any(name.startswith("Stream") for (pid, _), name in threads.items() if pid in devices)
        wanted = OPERATIONS[0] if streams else OPERATIONS[1]
        return [row for key, row in rows.items() if key[0] in devices and threads.get(key, "").startswith(wanted)]
    return [[event for event in row if "hlo_op" in event.get("args", {})] for row in rows.values()]


def costs(trace: dict[str, Any]) -> dict[str, float]:
    """Milliseconds by name of the operation, the most expensive first."""
    total: collections.Counter[str] = collections.Counter()
    for row in operations(trace):
        open_: list[tuple[float, str]] = []  # (end, name) of what the next operation may be inside of
        for event in sorted(row, key=lambda event: (event["ts"], -event["dur"])):
            while open_ and open_[-1][0] <= event["ts"]:
                open_.pop()
            if open_:
                total[open_[-1][1]] -= event["dur"] / 1000
            total[event["name"]] += event["dur"] / 1000
            open_.append((event["ts"] + event["dur"], event["name"]))
    return dict(total.most_common())


def summary(folder: str | pathlib.Path, largest: int = 3) -> str:
    """The largest costs in print."""
    file = trace_file(folder)
    with gzip.open(file) as stream:
        found = costs(json.load(stream))
    total = sum(found.values())
    lines = [f"  {file}: {total:.1f} ms in {len(found)} operations"]
    for name, milliseconds in list(found.items())[:largest]:
        lines.append(f"  {100 * milliseconds / total:5.1f} %  {milliseconds:10.1f} ms  {name}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary(sys.argv[1]))
