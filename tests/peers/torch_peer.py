#!/usr/bin/env python3
"""Time the shape file's rows in PyTorch (CPU, f32), and set our times against them.

    torch_peer.py --set goals --bench target/release/bench-kernels     ours and PyTorch in one window, row by row in turns
    torch_peer.py --set goals --ours target/bench/kernels-....json     PyTorch now, ours from an earlier result

Needs Python 3.11, PyTorch, and nothing else. See docs/benchmarks.md.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCH = HERE.parent.parent / "kernels" / "bench"
# PyTorch as it comes; with an allocator that keeps its pages (glibc reads these at start, hence the process of its own);
# and with the layout that PyTorch recommends for convolutions.
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 28)}
VARIANTS = {"torch": {}, "torch_tuned": KEEP_PAGES, "torch_channels_last": {}}
PASSES = {"conv": ["forward", "weight_grad", "step"]}
SUPPORTED = ["conv", "linear", "matmul", "softmax", "layer_norm", "block"]


def rows_of(shapes):
    """Rows as `bench-kernels --list` prints them; selection and N:M masks have no counterpart here."""
    for op in SUPPORTED:
        for entry in shapes.get(op, []):
            for batch in entry.get("batch", [1]):
                for which in PASSES.get(op, ["forward", "step"]):
                    yield {"op": op, "shape": entry["name"], "batch": batch, "pass": which, "sets": entry["sets"],
                           "id": f"{op} {entry['name']} b{batch} {which}", "entry": entry}


# --- the child: one variant of PyTorch, a row per line of stdin -------------------------------------------------------

def serve(variant, threads):
    import torch
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for line in sys.stdin:
        ask = json.loads(line)
        call = product(torch, ask["row"], variant == "torch_channels_last")
        print(json.dumps(measure(call, ask["rounds"])), flush=True)


def measure(call, rounds):
    call(0)
    start = time.perf_counter()
    call(1)
    repeats = max(1, round(5e-3 / (time.perf_counter() - start)))
    wall, cpu, turn = [], [], 0
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            call(turn % 3)
            turn += 1
        wall.append((time.perf_counter() - start) / repeats)
        cpu.append((time.process_time() - used) / repeats)
    return {"wall": wall, "cpu": cpu}


def product(torch, row, channels_last):
    """A function of the input set that computes the row once."""
    F, entry, batch, op = torch.nn.functional, row["entry"], row["batch"], row["op"]
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def draw(*shape, scale=1.0):
        x = torch.randn(*shape) * scale
        return x.to(memory_format=layout) if x.dim() == 4 else x

    if op == "conv":
        e = {"stride": 1, "padding": 0, "groups": 1} | entry
        weights = [draw(e["outputs"], e["inputs"] // e["groups"], e["kernel"], e["kernel"], scale=0.05)]
        inputs = [[draw(batch, e["inputs"], e["size"], e["size"])] for _ in range(3)]
        run = lambda x, w: F.conv2d(x, w, None, e["stride"], e["padding"], 1, e["groups"])
    elif op == "linear":
        weights = [draw(entry["outputs"], entry["inputs"], scale=0.05)]
        inputs = [[draw(batch, entry.get("tokens", 1), entry["inputs"])] for _ in range(3)]
        run = F.linear
    elif op == "matmul":
        sizes = [(entry["count"], entry["m"], entry["k"]), (entry["count"], entry["k"], entry["n"])]
        weights, inputs, run = [], [[draw(*size) for size in sizes] for _ in range(3)], torch.bmm
    elif op in ("softmax", "layer_norm"):
        width = entry["width"]
        weights = [] if op == "softmax" else [draw(width), draw(width)]
        inputs = [[draw(1, entry["rows"], width)] for _ in range(3)]
        run = (lambda x: F.softmax(x, -1)) if op == "softmax" else (lambda x, g, b: F.layer_norm(x, (width,), g, b))
    else:
        size = [batch, entry["channels"], entry["size"], entry["size"]] if "channels" in entry else \
            [batch, entry["tokens"], entry["width"]]
        inputs = [[draw(*size)] for _ in range(3)]
        weights, run = block(torch, entry["steps"], size[1] if len(size) == 4 else size[2], draw)

    if row["pass"] == "forward":
        def forward(index):
            with torch.no_grad():
                return run(*inputs[index], *weights)
        return forward
    with torch.no_grad():
        grad = torch.randn_like(run(*inputs[0], *weights))
    if row["pass"] == "weight_grad":
        pair = lambda value: [value, value]
        return lambda index: torch.ops.aten.convolution_backward(
            grad, inputs[index][0], weights[0], None, pair(e["stride"]), pair(e["padding"]), [1, 1], False, [0, 0],
            e["groups"], [False, True, False])
    leaves = [[x.requires_grad_() for x in group] for group in inputs]
    weights = [w.requires_grad_() for w in weights]
    return lambda index: torch.autograd.grad(run(*leaves[index], *weights), (*leaves[index], *weights), grad)


def block(torch, steps, width, draw):
    """The weights of a block, and a function of the input and these."""
    F, weights, plan = torch.nn.functional, [], []
    for step in steps:
        name, e = (step, {}) if isinstance(step, str) else next(iter(step.items()))
        count = 0
        if name == "conv":
            e = {"stride": 1, "padding": 0, "groups": 1} | e
            weights.append(draw(e["outputs"], width // e["groups"], e["kernel"], e["kernel"], scale=0.05))
            width, count = e["outputs"], 1
        elif name == "linear":
            weights.append(draw(e["outputs"], width, scale=0.05))
            width, count = e["outputs"], 1
        elif name == "layer_norm":
            weights += [draw(width), draw(width)]
            count = 2
        elif name == "attention":
            width //= 3
        plan.append((name, e, count))

    def run(x, *weights):
        weights, saved = iter(weights), None
        for name, e, count in plan:
            w = [next(weights) for _ in range(count)]
            if name == "save":
                saved = x
            elif name == "add":
                x = x + saved
            elif name == "conv":
                x = F.conv2d(x, w[0], None, e["stride"], e["padding"], 1, e["groups"])
            elif name == "linear":
                x = F.linear(x, w[0])
            elif name == "layer_norm":
                x = F.layer_norm(x, x.shape[-1:], *w, 1e-6)
            elif name == "group_norm":
                x = F.group_norm(x, e["groups"], eps=1e-6)
            elif name == "attention":
                parts = x.unflatten(-1, (3, e["heads"], -1)).permute(2, 0, 3, 1, 4)
                x = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
            else:
                x = {"relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu}[name](x)
        return x
    return weights, run


# --- the parent: children and our program in turns --------------------------------------------------------------------

class Child:
    def __init__(self, variant, threads):
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} | VARIANTS[variant]
        command = [sys.executable, __file__, "--serve", variant, "--threads", str(threads)]
        self.process = subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, row, rounds):
        self.process.stdin.write(json.dumps({"row": row, "rounds": rounds}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        return json.loads(answer) if answer else sys.exit(f"PyTorch stopped at {row['id']}")


def used_by_all():
    """Processor seconds of the whole machine so far, the host's share included."""
    ticks = [int(tick) for tick in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def used_by(children):
    """Processor seconds of these processes and of those that have ended."""
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for child in children:
        fields = Path(f"/proc/{child.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return own.ru_utime + own.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def run_ours(args, row):
    """Our program on one row: its machine, and its measured row."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.json"
        command = [args.bench, "--filter", row["id"], "--threads", str(args.threads), "--rounds", str(args.rounds),
                   "--shapes", args.shapes, "--json", path]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode not in (0, 1):
            sys.exit(f"{row['id']}: {done.stderr.strip()}")
        result = json.loads(path.read_text())
    return result["machine"], next(r for r in result["rows"] if ident(r) == row["id"])


def ident(row):
    return f"{row['op']} {row['shape']} b{row['batch']} {row['pass']}"


def spread(values):
    q = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": q[1], "low": q[0], "high": q[2], "min": min(values)}


def entrant(name, sparsity, cycles, flops):
    wall = spread([spread(c["wall"])["median"] for c in cycles])
    return {"name": name, "sparsity": sparsity, "wall": wall, "cpu": spread([spread(c["cpu"])["median"] for c in cycles]),
            "gflops": flops / wall["median"] / 1e9, "of_peak": 0.0, "peak_bytes": None, "path": None}


def judge(goals, rows):
    """Prints each goal against PyTorch over the rows that were measured."""
    inside = lambda value, bounds: bounds is None or bounds.get("min", 0) <= value <= bounds.get("max", value)
    for goal in (g for g in goals if g["against"].startswith("torch")):
        want, found = goal["rows"], []
        for row in rows:
            same = all(row[key] == want[key] for key in ("op", "pass", "kernel", "depthwise") if key in want)
            if same and inside(row["width"] or 0, want.get("width")) and inside(row["batch"], want.get("batch")) \
                    and set(want.get("sets", row["sets"])) & set(row["sets"]):
                found += [(r["ratio"]["median"], ident(row)) for r in row["ratios"]
                          if (r["ours"], r["against"], r["sparsity"]) == (goal["ours"], goal["against"], 0)]
        if found:
            missed = [f"{ratio:.2f} {name}" for ratio, name in sorted(found) if ratio < goal["must"]]
            print(f"{goal['id']:4} {goal['title']:58} must {goal['must']:<5} {len(found) - len(missed)}/{len(found)}",
                  *missed, sep="\n       " if missed else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=str(BENCH / "shapes.toml"))
    parser.add_argument("--goals", default=str(BENCH / "goals.toml"))
    parser.add_argument("--filter", action="append", default=[], help="only rows whose name contains this")
    parser.add_argument("--set", action="append", default=[], help="only rows of this set")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7, help="per cycle")
    parser.add_argument("--cycles", type=int, default=3, help="how often the programs take turns on a row")
    parser.add_argument("--bench", help="path of bench-kernels, to run in the same window")
    parser.add_argument("--ours", help="result of an earlier run of bench-kernels")
    parser.add_argument("--json", help="write everything here")
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.threads)
    if args.bench and args.ours:
        parser.error("give --bench or --ours, not both")
    for path in filter(None, (args.bench, args.ours, args.shapes, args.goals)):
        if not Path(path).is_file():
            parser.error(f"there is no file {path}")

    shapes = tomllib.loads(Path(args.shapes).read_text())
    rows = [row for row in rows_of(shapes)
            if (not args.filter or any(text in row["id"] for text in args.filter))
            and (not args.set or set(args.set) & set(row["sets"]))]
    if not rows:
        parser.error("no row is left by --filter and --set")
    earlier = json.loads(Path(args.ours).read_text()) if args.ours else {"rows": [], "machine": None}
    if args.ours and earlier["machine"]["threads"] != args.threads:
        parser.error(f"{args.ours} was measured with {earlier['machine']['threads']} threads; give --threads")
    machine = earlier["machine"] or {"cpu": "", "isa": "", "amx": False, "cores": os.cpu_count(),
                                     "threads": args.threads, "peak_gflops": 0.0, "l2_bytes": 0}
    children = {variant: Child(variant, args.threads) for variant in VARIANTS}
    report = {"schema": 1, "machine": machine, "rounds": args.rounds * args.cycles, "rows": []}
    print(f"{args.threads} threads; PyTorch's time / ours, median of {args.cycles} turns of {args.rounds} rounds\n")
    for row in rows:
        theirs, ours = {variant: [] for variant in VARIANTS}, []
        start, everyone, us = time.perf_counter(), used_by_all(), used_by(children.values())
        for _ in range(args.cycles):
            if args.bench:
                report["machine"], one = run_ours(args, row)
                ours.append(one)
            for variant, child in children.items():
                if variant != "torch_channels_last" or row["op"] == "conv" or "channels" in row["entry"]:
                    theirs[variant].append(child.ask(row, args.rounds))
        if not args.bench:
            ours = [r for r in earlier["rows"] if ident(r) == row["id"]]
        others = used_by_all() - everyone - (used_by(children.values()) - us)
        others = max(0.0, others) / (time.perf_counter() - start) / os.cpu_count()
        measured = merge(row, theirs, ours, others)
        report["rows"].append(measured)
        show(measured)
        if args.json:
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    print()
    judge(tomllib.loads(Path(args.goals).read_text())["goal"], report["rows"])


def merge(row, theirs, ours, others):
    """One row of our program's schema with the peers in it; a ratio is taken per turn, then the median."""
    facts = ours[0] if ours else {"kernel": row["entry"].get("kernel"), "width": row["entry"].get("size"), "flops": 0.0,
                                  "depthwise": row["entry"].get("groups", 1) > 1}
    keep = {key: facts[key] for key in ("kernel", "depthwise", "width", "flops")}
    entrants = [entrant(name, 0, cycles, keep["flops"]) for name, cycles in theirs.items() if cycles]
    ratios = []
    for first in ours[0]["entrants"] if ours else []:
        key = (first["name"], first["sparsity"])
        mine = [next(e for e in turn["entrants"] if (e["name"], e["sparsity"]) == key) for turn in ours]
        turns = [{"wall": [e["wall"]["median"]], "cpu": [e["cpu"]["median"]]} for e in mine]
        entrants.append(entrant(*key, turns, keep["flops"]) | {k: first[k] for k in ("peak_bytes", "path")})
        for name, cycles in theirs.items():
            if cycles:
                # An earlier result is one turn: it stands against every turn of the peer.
                pairs = zip(cycles, turns if len(turns) == len(cycles) else turns * len(cycles))
                quotients = [spread(c["wall"])["median"] / t["wall"][0] for c, t in pairs]
                ratios.append({"ours": key[0], "sparsity": key[1], "against": name, "against_sparsity": 0,
                               "ratio": spread(quotients)})
    # Threads that wait for each other lose far more than the share that others took.
    busy = others > 0.1 or any(turn["busy"] for turn in ours)
    return {key: row[key] for key in ("op", "shape", "batch", "pass", "sets")} | keep | {
        "others": others, "busy": busy, "entrants": entrants, "ratios": [] if busy else ratios}


def show(row):
    print(ident(row), f"(no ratios: one of the programs found the machine busy; others had {100 * row['others']:.0f} % of it in all)" if row["busy"] else "")
    for e in row["entrants"]:
        label = f"{e['name']}@{e['sparsity']}" if e["sparsity"] else e["name"]
        against = [f"{r['against']} {r['ratio']['median']:.2f} ({r['ratio']['low']:.2f}..{r['ratio']['high']:.2f})"
                   for r in row["ratios"] if (r["ours"], r["sparsity"]) == (e["name"], e["sparsity"])]
        rate = f"{e['gflops']:8.1f} GFLOP/s" if e["gflops"] else ""
        print(f"  {label:20} {1e3 * e['wall']['median']:10.3f} ms {rate:16} {'  '.join(against)}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
