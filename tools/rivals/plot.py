"""Draws the three loss terms of several runs over the steps, as an SVG: does one program learn what the other does?

Reads `metrics.jsonl` of `vicreg-stream train` and of `cifar10.py`: `step`, `invariance`, `variance`, `covariance`, a line each. Pale: the
lines as they are; strong: their mean over a window of steps. Needs nothing but Python 3.9 or later.

Usage: python tools/rivals/plot.py --run NAME=PATH ... --out FILE.svg [--window STEPS] [--title TEXT]
"""

import argparse
import json
import math
import pathlib
from xml.sax.saxutils import escape

TERMS = ("invariance", "variance", "covariance")
COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#0e7490", "#475569")  # all at least 4.5 : 1 on white
WIDTH, PANEL, GAP = 900, 170, 34
LEFT, TOP, BOTTOM = 64, 20, 46
MOST_POINTS = 400  # a curve of more is drawn by means


# ---- data ----------------------------------------------------------------------------------------------------------------

def read(path):
    """Steps and, by term, values: of a file or of a run's folder."""
    path = pathlib.Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append([row["step"], *(float(row[term]) for term in TERMS)])
        except (ValueError, KeyError, TypeError) as error:
            print(f"{path}, line {number}: left out ({error!r})")
    rows = [row for row in rows if all(map(math.isfinite, row))]
    if len(rows) < 2:
        raise SystemExit(f"{path}: fewer than two lines to draw")
    steps, *values = zip(*rows)
    return steps, dict(zip(TERMS, values))


def thin(steps, values):
    """Means of neighbours, so that a long run makes a small file."""
    share = math.ceil(len(steps) / MOST_POINTS)
    mean = lambda part: sum(part) / len(part)
    parts = range(0, len(steps), share)
    return [mean(steps[i : i + share]) for i in parts], [mean(values[i : i + share]) for i in parts]


def smooth(steps, values, window):
    """Mean of the values up to half a window of steps away; at the start no further than there are steps before, which fall fast."""
    means = []
    for step in steps:
        reach = min(window / 2, step - steps[0])
        near = [v for s, v in zip(steps, values) if abs(s - step) <= reach]
        means.append(sum(near) / len(near))
    return means


def extent(values):
    """Smallest and largest value, but for the outermost half per cent, with a margin."""
    ordered = sorted(values)
    cut = int(0.005 * len(ordered))
    low, high = ordered[cut], ordered[-1 - cut]
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def ticks(low, high, most):
    """Round numbers between two values, and how many decimals they need."""
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough)
    decimals = next(d for d in range(12) if abs(round(step, d) - step) < 1e-9 * step)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)], decimals


# ---- drawing -------------------------------------------------------------------------------------------------------------

def text(x, y, words, anchor="start", **style):
    style = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def polyline(points, colour, width, opacity):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}"/>'


def apart(heights, distance, low, high):
    """Moves labels so that none lies on another, and all within the panel."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = [heights[i] for i in order]
    for _ in range(200):
        for a in range(len(placed) - 1):
            lack = distance - (placed[a + 1] - placed[a])
            if lack > 0:
                placed[a], placed[a + 1] = placed[a] - lack / 2, placed[a + 1] + lack / 2
        placed = [min(max(y, low), high) for y in placed]
    return [y for _, y in sorted(zip(order, placed))]


def panel(term, runs, window, last, top, right, number):
    """One term: axes, each run's curves, its name and last mean."""
    bottom = top + PANEL
    low, high = extent([value for _, steps, values in runs for value in values[term]])
    x = lambda step: LEFT + (right - LEFT) * step / last
    y = lambda value: bottom - PANEL * (value - low) / (high - low)
    out = [text(LEFT, top - 7, term, font_weight="600")]
    marks, decimals = ticks(low, high, 7)
    for mark in marks:
        out.append(f'<line x1="{LEFT}" x2="{right:.1f}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="#e5e7eb"/>')
        out.append(text(LEFT - 8, y(mark) + 4, f"{mark:.{decimals}f}", "end", fill="#4b5563"))
    marks, _ = ticks(0, last, 10)
    for mark in marks:
        out.append(f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="#6b7280"/>')
        if number == len(TERMS) - 1:
            out.append(text(x(mark), bottom + 18, f"{mark:.0f}", "middle", fill="#4b5563"))
    out.append(f'<line x1="{LEFT}" x2="{right:.1f}" y1="{bottom}" y2="{bottom}" stroke="#6b7280"/>')
    out.append(f'<clipPath id="p{number}"><rect x="{LEFT}" y="{top}" width="{right - LEFT:.1f}" height="{PANEL}"/></clipPath>')
    pale, strong, ends = [], [], []
    for (_, steps, values), colour in zip(runs, COLOURS):
        means = smooth(steps, values[term], window)
        ends.append(means[-1])
        for curve, into, width, opacity in ((values[term], pale, 1, 0.4), (means, strong, 2, 1)):
            into.append(polyline([(x(s), y(v)) for s, v in zip(*thin(steps, curve))], colour, width, opacity))
    out.append(f'<g clip-path="url(#p{number})" stroke-linejoin="round">' + "".join(pale + strong) + "</g>")
    heights = apart([y(end) for end in ends], 16, top + 6, bottom - 6)
    for (name, *_), end, height, colour in zip(runs, ends, heights, COLOURS):
        out.append(text(right + 8, height + 4, f"{name} {end:.3g}", fill=colour, font_weight="600"))
    return out


def draw(runs, window, title):
    top = TOP + (26 if title else 0) + 14
    last = max(steps[-1] for _, steps, _ in runs)
    right = WIDTH - 20 - 8.5 * (max(len(name) for name, *_ in runs) + 7)  # room for a name and a number beside the curves
    height = top + len(TERMS) * PANEL + (len(TERMS) - 1) * GAP + BOTTOM
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#111827">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    if title:
        out.append(text(LEFT, TOP + 6, title, font_size=15, font_weight="600"))
    for number, term in enumerate(TERMS):
        out += panel(term, runs, window, last, top + number * (PANEL + GAP), right, number)
    words = f"step (mean over {window} steps; pale: every logged step)"
    out.append(text((LEFT + right) / 2, height - 8, words, "middle", fill="#4b5563"))
    return "\n".join([*out, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", required=True, metavar="NAME=PATH", help="a run's folder or its metrics.jsonl; up to 6")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE.svg")
    parser.add_argument("--window", type=int, default=100, metavar="STEPS", help="of the mean")
    parser.add_argument("--title", default="")
    args = parser.parse_args()
    if len(args.run) > len(COLOURS) or not all("=" in run for run in args.run):
        parser.error(f"--run is NAME=PATH, at most {len(COLOURS)} times")
    runs = [(name, *read(path)) for name, path in (run.split("=", 1) for run in args.run)]
    args.out.write_text(draw(runs, args.window, args.title), encoding="utf-8")
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
