"""Peak memory of a process and all its descendants, sampled from /proc/*/smaps_rollup.

    python memory.py PID

Runs beside the measured process, as its child but outside its figures, until its standard input closes. Then it prints one JSON object.
PSS shares out what several processes map; the sum of RSS counts it once for each.
"""

import json
import os
import pathlib
import select
import sys

INTERVAL = 0.1  # seconds


def parents():
    """Process id -> parent's."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # The command's name, in brackets, may hold anything: what follows the last bracket is regular.
                table[int(entry)] = int(pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                pass
    return table


def descendants(root, without=()):
    """Process ids below `root`, without some and what is below them."""
    table, found, front = parents(), [], [root]
    while front:
        front = [pid for pid, parent in table.items() if parent in front and pid not in without]
        found += front
    return found


def rollup(pid):
    """(PSS, RSS) in kB; zeros for a process that ended."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    values = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines)}
    return values.get("Pss", 0), values.get("Rss", 0)


def main():
    root = int(sys.argv[1])
    peak_pss = peak_rss = 0
    while True:
        tree = [rollup(pid) for pid in (root, *descendants(root, without=(os.getpid(),)))]
        peak_pss = max(peak_pss, sum(pss for pss, _ in tree))
        peak_rss = max(peak_rss, sum(rss for _, rss in tree))
        if select.select([sys.stdin], [], [], INTERVAL)[0]:
            break
    print(json.dumps({"peak_pss_mb": round(peak_pss / 1024, 1), "peak_rss_mb": round(peak_rss / 1024, 1)}))


if __name__ == "__main__":
    main()
