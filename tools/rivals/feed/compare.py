"""Our feed and its peers on the same images, interleaved round by round: medians as a Markdown table.

Each run is a process of its own. A peer that fails (a package that is missing, say) is named below the table and left out; ours must run.

Usage: python tools/rivals/feed/compare.py --ours "vicreg-stream" --recipe pipelines/imagenet-100ep.toml --data DIR
           [--ours-args "..."] [--rounds 3] [--workers 0 2] [--images N] [--batch N] [--only NAME ...] [--json FILE]
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent

# Name -> script and the options that make it this peer.
PEERS = {
    "official": ["torchvision_pillow.py", "--float"],
    "torchvision-pillow": ["torchvision_pillow.py"],
    "torchvision-tensor": ["torchvision_tensor.py"],
    "albumentations": ["albumentations_opencv.py"],
    "albumentations-area": ["albumentations_opencv.py", "--area"],
    "dali-cpu": ["dali_cpu.py"],
    "spdl": ["spdl_threads.py"],
    "hf-datasets": ["hf_datasets.py"],
}


def command(name, workers, args):
    """Workers 0 is one process without any: one thread of ours."""
    if name == "ours":
        ours = [*shlex.split(args.ours), "bench", "feed", args.recipe, "--data", args.data, "--json"]
        return [*ours, "--workers", str(max(1, workers)), *shlex.split(args.ours_args)]
    script, *options = PEERS[name]
    peer = [sys.executable, str(HERE / script), "--recipe", args.recipe, "--data", args.data, "--json", *options]
    return [*peer, "--workers", str(workers), "--images", str(args.images), "--batch", str(args.batch)]


def run(name, workers, args):
    """The JSON object that a run prints last, or what it said before it failed."""
    done = subprocess.run(command(name, workers, args), capture_output=True, text=True)
    if done.returncode == 0:
        # One object, on one line or on several; a library may have printed before it.
        start = done.stdout.rfind("\n{") + 1
        return json.loads(done.stdout[start:])
    said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
    return {"error": f"exit status {done.returncode}: {said[-1]}"}


def measure(names, args):
    """All runs, round by round: what drifts on the machine meets everyone alike."""
    runs, failed = [], {}
    for number in range(args.rounds):
        for workers in args.workers:
            for name in names:
                if name in failed:
                    continue
                began = time.perf_counter()
                result = run(name, workers, args)
                print(f"round {number + 1}, {workers} workers, {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
                if "error" in result:
                    if name == "ours":
                        raise SystemExit(f"ours failed: {result['error']}")
                    failed[name] = result["error"]
                    continue
                runs.append({"round": number, "peer": name, "asked_workers": workers, **result})
    return [run for run in runs if run["peer"] not in failed], failed


def cells(runs, ours):
    """One row: median, range and ratio of the CPU time; medians of the others."""
    column = lambda key: [run[key] for run in runs if run.get(key) is not None]
    cpu = column("cpu_ms_per_image")
    median = statistics.median(cpu)
    # Ours is one process and reports its resident set: no less than its PSS.
    pss = column("peak_pss_mb") or column("peak_rss_mb")
    return [
        f"{median:.3g} ({min(cpu):.3g}-{max(cpu):.3g})",
        f"{median / ours:.2f}",
        f"{statistics.median(column('images_per_s')):.0f}",
        f"{statistics.median(pss):.0f}" if pss else "-",
    ]


def table(names, runs, workers):
    of = lambda name: [run for run in runs if run["peer"] == name and run["asked_workers"] == workers]
    ours = statistics.median(run["cpu_ms_per_image"] for run in of("ours"))
    rows = [["feed", "CPU-ms an image (range)", "ratio", "images/s", "peak PSS, MB"], ["---", "---", "---", "---", "---"]]
    rows += [[name, *cells(of(name), ours)] for name in names if of(name)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def stages(runs):
    """Ours by stage: medians over the runs."""
    found = [run["stages"] for run in runs if run["peer"] == "ours" and run.get("stages")]
    names = {name: None for stages in found for name in stages}
    return ", ".join(f"{name} {statistics.median(s.get(name, 0.0) for s in found):.3g}" for name in names)


def processor():
    """The processor's name, where the system tells."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", required=True, help="our program, with what stands before `bench feed`")
    parser.add_argument("--ours-args", default="", help="more arguments for `bench feed`, in one string")
    parser.add_argument("--recipe", required=True, help="pipelines/X.toml")
    parser.add_argument("--data", required=True, help="folder of Parquet shards")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="0: one process, one thread [default: 0 2]")
    parser.add_argument("--images", type=int, default=0, help="images that a peer is measured on [default: each once]")
    parser.add_argument("--batch", type=int, default=64, help="the peers' batch [default: 64]")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME", help=", ".join(PEERS))
    parser.add_argument("--json", metavar="FILE", help="writes the single runs")
    args = parser.parse_args()

    names = ["ours", *args.only]
    runs, failed = measure(names, args)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"processor": processor(), "runs": runs, "failed": failed}, indent=1) + "\n")
    print(f"{processor()}, {os.cpu_count()} cores; {args.recipe}; medians of {args.rounds} rounds.")
    for workers in args.workers:
        print(f"\n{f'{workers} workers' if workers else 'One process, no workers'}:\n\n{table(names, runs, workers)}")
    if stages(runs):
        print(f"\nOurs by stage, CPU-ms an image: {stages(runs)}.")
    versions = {run["peer"]: run["version"] for run in runs if "version" in run}
    print("\n" + "\n".join(f"- {name}: {version}" for name, version in versions.items()))
    for name, error in failed.items():
        print(f"- {name}: not measured ({error})")


if __name__ == "__main__":
    main()
