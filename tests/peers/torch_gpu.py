#!/usr/bin/env python3
"""Time the GPU rows of a `bench-kernels --device` result in PyTorch, and set our times against them.

    torch_gpu.py --ours results/kernels.json --json results/peers.json

torch_bf16 is cuBLAS's dense product, torch_semi_structured cuSPARSELt's 2:4 product as PyTorch calls it, torch_sort and
torch_topk a threshold by sorting and by top-k. Needs PyTorch with CUDA, and Python 3.11 or the package tomli.
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROUNDS = 15


def shapes():
    """The shape file, beside this script or in the repository."""
    try:
        import tomllib
    except ImportError:
        try:
            import tomli as tomllib
        except ImportError:
            sys.exit("this needs Python 3.11 or the package tomli, to read the shape file")
    for path in (HERE / "shapes.toml", HERE.parent.parent / "kernels" / "bench" / "shapes.toml"):
        if path.exists():
            with open(path, "rb") as file:
                return tomllib.load(file)
    sys.exit("shapes.toml lies neither beside this script nor in kernels/bench")


def contestants(torch, op, entry, batch, device):
    """Name and call of everybody who can compute the row here; who cannot says why on stderr."""
    functional = torch.nn.functional
    if op == "linear":
        size = (batch * entry.get("tokens", 1), entry["inputs"])
        x = [torch.randn(size, device=device, dtype=torch.bfloat16) for _ in range(3)]
        w = torch.randn(entry["outputs"], entry["inputs"], device=device, dtype=torch.bfloat16) * 0.05
        yield "torch_bf16", lambda i: functional.linear(x[i], w)
        if device == "cuda":
            try:
                groups = w.float().abs().view(-1, 4)
                kept = torch.zeros_like(groups).scatter_(1, groups.topk(2, dim=1).indices, 1.0).view_as(w)
                sparse = torch.sparse.to_sparse_semi_structured(w * kept.to(w.dtype))
                functional.linear(x[0], sparse)
            except (RuntimeError, AttributeError, NotImplementedError) as error:
                print(f"torch_semi_structured cannot: {str(error).splitlines()[0]}", file=sys.stderr)
            else:
                yield "torch_semi_structured", lambda i: functional.linear(x[i], sparse)
    elif op == "select":
        count = entry["count"]
        k = int(count * entry["share"])
        scores = [torch.randn(count, device=device) for _ in range(3)]
        yield "torch_sort", lambda i: scores[i] > scores[i].sort().values[k - 1]
        yield "torch_topk", lambda i: scores[i] > scores[i].topk(k, largest=False).values[-1]
    elif op == "nm":
        groups = (entry["rows"] * entry["cols"] // entry["m"], entry["m"])
        scores = [torch.randn(groups, device=device) for _ in range(3)]

        def mask(i):
            kept = scores[i].argsort(1, descending=True)[:, : entry["n"]]
            return torch.zeros_like(scores[i]).scatter_(1, kept, 1.0)
        yield "torch_argsort", mask


def measure(torch, call, device):
    """Seconds per call, one number per round; one wait per round."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    call(0), wait()
    start = time.perf_counter()
    call(1), wait()
    repeats = max(1, round(5e-3 / (time.perf_counter() - start)))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for turn in range(repeats):
            call(turn % 3)
        wait()
        times.append((time.perf_counter() - start) / repeats)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True, type=Path, help="result of bench-kernels --device")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: only to see that it runs")
    args = parser.parse_args()
    try:
        ours = json.loads(args.ours.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{args.ours}: {error}")
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no CUDA device")
    entries = {(op, entry["name"]): entry for op, rows in shapes().items() if isinstance(rows, list) for entry in rows}
    result = {"torch": torch.__version__, "cuda": torch.version.cuda, "rows": []}
    result["device"] = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    with torch.no_grad():
        for row in ours["rows"]:
            entry = entries.get((row["op"], row["shape"]))
            if entry is None or row["pass"] != "forward":
                continue
            name = f"{row['op']} {row['shape']} b{row['batch']}"
            figures = {"id": name, "entrants": [], "ratios": []}
            for who, call in contestants(torch, row["op"], entry, row["batch"], args.device):
                theirs = statistics.median(measure(torch, call, args.device))
                figures["entrants"].append({"name": who, "median": theirs})
                for entrant in row["entrants"]:
                    label = entrant["name"] + (f"@{entrant['sparsity']}" if entrant["sparsity"] else "")
                    ratio = theirs / entrant["wall"]["median"]
                    figures["ratios"].append({"ours": label, "against": who, "ratio": ratio})
                    print(f"{name}: {label} runs at {ratio:.2f} times the speed of {who} ({1e3 * theirs:.3f} ms)")
            result["rows"].append(figures)
    if args.json:
        part = args.json.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(args.json)


if __name__ == "__main__":
    main()
