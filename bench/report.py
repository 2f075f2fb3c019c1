#!/usr/bin/env python3
"""Makes tables and charts of the benchmark's results. Needs nothing but Python 3.

    python3 bench/report.py            bench/results/GPU/*.json -> README.md and *.svg beside them
    python3 bench/report.py --print    prints the tables, writes nothing

A result is what `chat --bench SHAPE --json` prints; startup.json comes from bench/gpu_bench.sh. The
floor is the time in which the GPU reads what a token must read (bench/peers.json says how much), at the
rate of the read loop in the same results: so a share of the floor says the same on every machine.
"""
import html
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
SHAPES = ["llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3-8b", "llama-3.2-1b", "mistral-7b",
          "mpt-7b", "mpt-30b", "falcon-7b", "qwen2.5-7b", "qwen3-8b"]


# ---- results ----

class Result:
    """One shape at one precision."""

    def __init__(self, data, peers):
        self.data = data
        self.shape = data["model"]
        self.w4 = data["precision"].startswith("W4")
        self.precision = data["precision"]
        self.head_in_8 = "int8 head" in self.precision
        self.decode = {t["context"]: t for t in data["timings"] if t["what"] == "decode"}
        self.prefill = {t["tokens"]: t for t in data["timings"] if t["what"] == "prefill"}
        self.read_gbs = data["read_loop_gbs"]  # load() takes the best one of the machine
        self.known_gbs = peers["read_gbs"] if peers["gpu"] in data["device"] else None
        floor_mb = peers["floor_mb"].get(self.shape) if self.w4 else None
        self.floor_bytes = floor_mb * 1e6 if floor_mb else data["bytes_per_token"]

    def floor_ms(self, context, gbs=None):
        """Of the median step, when half of the tokens have been generated."""
        positions = context + (self.decode[context]["runs"] + 1) / 2
        return (self.floor_bytes + positions * self.data["kv_bytes_per_token"]) / (
            gbs or self.read_gbs) * 1e-6

    def of_floor(self, context, gbs=None):
        return 100 * self.floor_ms(context, gbs) / self.decode[context]["ms_per_token"]


def load(folder, peers):
    """Results, those with an 8-bit head, which are no part of the other tables, and the start-up."""
    results = []
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text())
        if "timings" in data:
            results.append(Result(data, peers))
    for result in results:
        result.read_gbs = max(r.data["read_loop_gbs"] for r in results)
    order = {name: i for i, name in enumerate(SHAPES)}
    results.sort(key=lambda r: (order.get(r.shape, 99), not r.w4))
    startup = folder / "startup.json"
    return ([r for r in results if not r.head_in_8], [r for r in results if r.head_in_8],
            json.loads(startup.read_text()) if startup.exists() else None)


# ---- tables ----

def table(header, rows):
    """Markdown with columns of equal width; the first one to the left, the others to the right."""
    width = [max(len(row[i]) for row in [header] + rows) for i in range(len(header))]

    def line(row):
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, width))]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join(("-" * (w + 2)) if i == 0 else "-" * (w + 1) + ":"
                          for i, w in enumerate(width)) + "|"
    return "\n".join([line(header), rule] + [line(row) for row in rows])


def decode_cell(result, context):
    if context not in result.decode:
        return "-"
    t = result.decode[context]
    return f"{t['ms_per_token']:.3f} / {t['mean_ms_per_token']:.3f} ({result.of_floor(context):.0f} %)"


def decode_table(results):
    rows, known = [], results[0].known_gbs
    for r in results:
        first = r.decode.get(4)
        rows.append([f"{r.shape} {r.precision}", f"{r.floor_ms(4):.3f}" if first else "-"] +
                    [decode_cell(r, c) for c in (4, 512, 2048)] +
                    [f"{first['tokens_per_second']:.0f}" if first else "-",
                     f"{first['read_gbs']:.0f}" if first else "-",
                     f"{first['read_percent']:.0f} %" if first else "-"])
        if known:
            rows[-1].append(" / ".join(f"{r.of_floor(c, known):.0f}" for c in r.decode) + " %")
    return table(["decode, ms/token", "floor", "context 4: median / mean (of floor)", "512", "2048",
                  "tok/s", "GB/s", "of read loop"] +
                 ([f"of floor at {known} GB/s"] if known else []), rows)


def short_prompt(result, tokens):
    """Milliseconds that a short prompt takes, how many decode steps that is; and those to the first token."""
    t, step = result.prefill.get(tokens), result.decode.get(4)
    if not t or not step:
        return "-"
    whole = t["ms_per_token"] * tokens
    return f"{whole:.2f} ({whole / step['ms_per_token']:.2f}x), {t['ttft_ms']:.2f}"


def prefill_table(results):
    rows = []
    for r in results:
        ttft, long = r.prefill.get(512), r.prefill.get(2048)
        memory = r.data["weight_bytes"] + r.data["kv_bytes"] + r.data["workspace_bytes"]
        rows.append([f"{r.shape} {r.precision}", short_prompt(r, 8), short_prompt(r, 64),
                     f"{ttft['ttft_ms']:.1f}" if ttft else "-",
                     f"{long['tflops']:.0f}" if long else "-",
                     f"{long['tokens_per_second']:.0f}" if long else "-", f"{memory * 1e-9:.1f}",
                     f"{r.data['kv_bytes'] * 1e-9:.2f}"])
    return table(["prefill, ms", "8 tokens (decode steps), to the first token", "64", "TTFT 512",
                  "2048: TFLOP/s", "tok/s", "GPU memory, GB", "of it KV cache"], rows)


def startup_table(startup):
    rows = []
    for what in ("cold", "warm"):
        runs = sorted(startup[what]["runs"], key=lambda r: r["total_s"])
        r = runs[len(runs) // 2]
        rows.append([what] + [f"{r[k]:.3f}" for k in ("gpu_s", "kernels_s", "loading_s",
                                                      "first_token_s", "total_s")] +
                    [f"{r['load_gbs']:.1f}", f"{startup[what]['plain_copy_gbs']:.1f}"])
    gigabytes = startup["bytes"] * 1e-9
    return table([f"start-up, s ({startup['startup']} W4A16, {gigabytes:.2f} GB)", "GPU", "kernels",
                  "weights", "first token", "all", "loading GB/s", "plain copies GB/s"], rows)


def head_table(results, others):
    """What a head in 8 bits gives, beside the same shape with the head as it is."""
    rows = []
    for r in others:
        plain = find(results, r.shape, r.w4)
        for context in (4, 2048):
            if plain and context in r.decode and context in plain.decode:
                ms = [x.decode[context]["ms_per_token"] for x in (plain, r)]
                rows.append([f"{r.shape} {plain.precision}, context {context}", f"{ms[0]:.3f}",
                             f"{ms[1]:.3f}", f"{100 * (ms[1] / ms[0] - 1):+.0f} %"])
    return table(["--head int8, ms/token", "without", "with", "time"], rows) if rows else None


def facts(results):
    d = results[0].data
    return (f"{d['device']}, {d['device_details']}; tinychat {d['version']}; read loop "
            f"{max(r.data['read_loop_gbs'] for r in results):.0f} GB/s; {d['processor']}")


def report(results, others, startup):
    parts = [facts(results), decode_table(results), prefill_table(results)]
    heads = head_table(results, others)
    if heads:
        parts.append(heads)
    if startup:
        parts.append(startup_table(startup))
    parts.append("Batch 1, random weights, default sampling. Decode: 200 tokens after the context, one by "
                 "one; the median step and the mean.\nThe floor is the time in which the GPU reads "
                 f"the weights (and KV cache) once at {results[0].read_gbs:.0f} GB/s, its own read "
                 "loop;\nits share is the floor's part of the median. TFLOP/s counts the linear layers over "
                 "the whole time of a prompt.")
    return "\n\n".join(parts) + "\n"


# ---- drawing ----

INK, PALE, GRID, PAPER = "#24292f", "#8c959f", "#d8dee4", "#ffffff"
OURS, W16, PEER = "#1a7f37", "#0969da", "#afb8c1"
LINES = ["#1a7f37", "#0969da", "#bc4c00", "#8250df", "#bf3989", "#6a3d0a", "#57606a", "#0b7a75",
         "#d4a72c", "#cf222e", "#1f2f7a"]


class Svg:
    def __init__(self, width, height, title):
        self.width, self.height, self.parts = width, height, []
        self.rect(0, 0, width, height, PAPER)
        self.text(20, 30, title, size=16, weight="bold")

    def rect(self, x, y, w, h, fill, radius=0):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" '
                          f'rx="{radius}" fill="{fill}"/>')

    def line(self, x1, y1, x2, y2, stroke=GRID, width=1, dash=""):
        dash = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
                          f'stroke="{stroke}" stroke-width="{width}"{dash}/>')

    def path(self, points, stroke):
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{text}" fill="none" stroke="{stroke}" '
                          f'stroke-width="2"/>')
        for x, y in points:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{stroke}"/>')

    def text(self, x, y, text, size=12, fill=INK, anchor="start", weight="normal", inside="",
             more=""):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" '
                          f'text-anchor="{anchor}" font-weight="{weight}"{more}>{html.escape(text)}'
                          f'{inside}</text>')

    def write(self, path):
        path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" '
                        f'height="{self.height}" viewBox="0 0 {self.width} {self.height}" '
                        'font-family="ui-sans-serif, system-ui, sans-serif">\n' +
                        "\n".join(self.parts) + "\n</svg>\n")


def step_of(most):
    """A round distance of grid lines: 4 to 8 of them."""
    step = 1.0
    while most / step > 8:
        step *= 2 if str(step)[0] in "15" else 2.5
    while most / step < 4:
        step /= 2 if str(step)[0] in "12" else 2.5
    return step


def find(results, shape, w4):
    return next((r for r in results if r.shape == shape and r.w4 == w4), None)


def draw_floor(results, peers, path):
    """Bars: how near to the floor of its GPU each engine comes, whichever GPU it ran on."""
    groups = []
    for key, w4 in (("w4a16", True), ("w16a16", False)):
        ours = find(results, peers["shape"], w4)
        if not ours:
            continue
        floor = ours.floor_ms(4) * ours.read_gbs / peers["read_gbs"]  # of the peers' GPU
        group = [(100 * floor / p["ms"], p["name"], f"{p['ms']:.2f} ms", PEER)
                 for p in peers[key]]
        group.append((ours.of_floor(4), f"tinychat, {ours.precision}",
                      f"{ours.decode[4]['ms_per_token']:.2f} ms", OURS if w4 else W16))
        groups.append(sorted(group, reverse=True))
    if not groups:
        return
    gpu = results[0].data["device"].split(" (")[0]
    svg = Svg(860, 96 + sum(28 * len(g) + 34 for g in groups),
              f"One token of {peers['shape']}: how near to reading the weights once, at the memory's speed")
    svg.text(20, 50, f"tinychat on {gpu} (reads {results[0].read_gbs:.0f} GB/s), the others on "
                     f"{peers['gpu']} (reads {peers['read_gbs']} GB/s)", fill=PALE)
    y = 70
    for title, group in zip(("4-bit weights", "16-bit weights"), groups):
        svg.text(20, y + 8, title, fill=PALE)
        y += 20
        for share, name, time, color in group:
            svg.text(310, y + 15, name, anchor="end")
            svg.rect(320, y + 2, 400, 18, GRID, 2)
            svg.rect(320, y + 2, 4 * share, 18, color, 2)
            svg.text(730, y + 16, f"{share:.0f} %, {time}",
                     weight="bold" if color in (OURS, W16) else "normal")
            y += 28
        y += 14
    svg.write(path)


def draw_context(results, path):
    """Lines: milliseconds per token against the context."""
    shown = [r for r in results if r.w4 and len(r.decode) == 3 and r.decode[4]["ms_per_token"] < 4]
    if not shown:
        return
    most = max(t["ms_per_token"] for r in shown for t in r.decode.values())
    svg = Svg(860, 420, "Milliseconds per token against the context, W4A16")
    left, right, top, bottom, step = 60, 640, 60, 370, step_of(most)
    place = {4: left + 20, 512: left + 20 + (right - left - 40) / 4, 2048: right - 20}
    i = 0
    while i * step <= most * 1.02:
        y = bottom - (bottom - top) * i * step / (most * 1.05)
        svg.line(left, y, right, y)
        svg.text(left - 8, y + 4, f"{i * step:g}", anchor="end", fill=PALE)
        i += 1
    for context, x in place.items():
        svg.text(x, bottom + 18, str(context), anchor="middle", fill=PALE)
    svg.text((left + right) / 2, bottom + 38, "tokens of context", anchor="middle", fill=PALE)
    ends = []
    for k, r in enumerate(shown):
        points = [(place[c], bottom - (bottom - top) * r.decode[c]["ms_per_token"] / (most * 1.05))
                  for c in (4, 512, 2048)]
        svg.path(points, LINES[k % len(LINES)])
        ends.append([points[-1][1], f"{r.shape} {r.decode[2048]['ms_per_token']:.2f}",
                     LINES[k % len(LINES)]])
    ends.sort()
    for i, end in enumerate(ends):  # names must not lie on each other
        if i and end[0] < ends[i - 1][0] + 16:
            end[0] = ends[i - 1][0] + 16
        svg.text(right + 4, end[0] + 4, end[1], fill=end[2])
    svg.write(path)


def draw_precision(results, path):
    """Pairs of bars: W4 against W16."""
    pairs = [(r, find(results, r.shape, False)) for r in results if r.w4]
    pairs = [(a, b) for a, b in pairs if b]
    if not pairs:
        return
    most = max(a.decode[4]["tokens_per_second"] for a, _ in pairs)
    svg = Svg(860, 76 + 62 * len(pairs), "Tokens per second: 4-bit against 16-bit weights")
    for i, (a, b) in enumerate(pairs):
        y = 54 + 62 * i
        svg.text(130, y + 26, a.shape, anchor="end")
        for k, (r, color) in enumerate(((a, OURS), (b, W16))):
            speed = r.decode[4]["tokens_per_second"]
            svg.rect(140, y + 22 * k, 560 * speed / most, 18, color, 2)
            ratio = f", {speed / b.decode[4]['tokens_per_second']:.1f}x" if r is a else ""
            svg.text(148 + 560 * speed / most, y + 22 * k + 14, f"{speed:.0f}{ratio}")
    svg.rect(20, svg.height - 22, 12, 12, OURS)
    svg.text(38, svg.height - 12, "W4A16", fill=PALE)
    svg.rect(100, svg.height - 22, 12, 12, W16)
    svg.text(118, svg.height - 12, "W16A16", fill=PALE)
    svg.write(path)


# A text to show the times with; the benchmark's own tokens are random.
SAMPLE = """A language model reads all of its weights for every token that it writes. On a GPU the
arithmetic of one token is quickly done: what takes the time is to bring the weights from the memory to
where they are used. A model with 16-bit weights moves two bytes for each of them. If the same weights are
kept in 4 bits, about a quarter of the bytes have to come, and a token takes about a quarter of the time.
The bits that are left must be chosen well. AWQ looks at the activations: where they are large, an error
of the weight costs most, and so these channels are scaled up before rounding and the scale is taken back
afterwards. Groups of 128 weights share one scale and one zero point. The answers stay nearly the same,
the memory that the model needs shrinks to a third, and the words appear three times as fast, as you can
see here: both sides began at the same moment, and each word appeared when its token was ready."""


def draw_replies(results, shape, slow, path):
    """Two replies side by side, each word when its token came, `slow` times slower; without end."""
    words, sides = SAMPLE.split(), [find(results, shape, False), find(results, shape, True)]
    if None in sides:
        return
    tokens = [r.decode[4]["steps_ms"] for r in sides]
    length = max(sum(t[:len(words)]) for t in tokens) * slow / 1000 + 2.5  # seconds
    svg = Svg(860, 466, f"{shape} on {sides[0].data['device'].split(' (')[0]}: recorded times of each "
                        f"token, {slow} times slower")
    for side, (r, steps) in enumerate(zip(sides, tokens)):
        x, y, color = 20 + 420 * side, 84, OURS if r.w4 else W16
        svg.rect(x, 46, 400, 384, "#f6f8fa", 6)
        svg.text(x + 12, 66, f"{r.precision}: {1000 / r.decode[4]['mean_ms_per_token']:.0f} "
                             "tokens per second", weight="bold", fill=color)
        column, now = 0, 0.0
        for word, step in zip(words, steps * (len(words) // len(steps) + 1)):
            now += step * slow / 1000
            if column + len(word) > 53:
                column, y = 0, y + 19
            appear = (f'<animate attributeName="opacity" dur="{length:.2f}s" calcMode="discrete" '
                      f'values="0;1" keyTimes="0;{now / length:.4f}" repeatCount="indefinite"/>')
            svg.text(x + 12 + 7.1 * column, y + 8, word, inside=appear,
                     more=f' font-family="Menlo, Consolas, monospace" textLength="{7.1 * len(word):.1f}"')
            column += len(word) + 1
    svg.text(20, 452, "The weights are random, so the text is a sample: one word stands for one token.",
             fill=PALE)
    svg.write(path)


# ---- all of it ----

def main():
    peers = json.loads((HERE / "peers.json").read_text())
    folders = [f for f in sorted((HERE / "results").glob("*")) if f.is_dir()]
    for folder in folders:
        results, others, startup = load(folder, peers)
        if not results:
            continue
        text = report(results, others, startup)
        if "--print" not in sys.argv:
            draw_floor(results, peers, folder / "floor.svg")
            draw_context(results, folder / "context.svg")
            draw_precision(results, folder / "precision.svg")
            draw_replies(results, "llama-2-7b", 20, folder / "replies.svg")
            (folder / "README.md").write_text("# " + folder.name + "\n\n" + text)
        print(text)
    if not folders:
        print("there are no results yet: make gpu-bench on a machine with a GPU")


if __name__ == "__main__":
    main()
