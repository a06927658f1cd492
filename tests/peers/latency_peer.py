#!/usr/bin/env python3
"""Time whole networks in PyTorch (CPU, f32, eval mode) beside `ptsbench latency`, network by network in turns.

    latency_peer.py --ptsbench target/release/ptsbench --batch 1,8 resnet50 mobilenetv2_100_tv ...

Needs Python 3.11, PyTorch, torchvision and timm. Weights are random on both sides. PyTorch runs as it comes and with an
allocator that keeps its pages; the ratio is PyTorch's time over ours, in the same round.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 28)}
# Our name: (library, its name).
PEERS = {
    "resnet18": ("torchvision", "resnet18"),
    "resnet50": ("torchvision", "resnet50"),
    "regnetx_004": ("torchvision", "regnet_x_400mf"),
    "regnetx_032": ("torchvision", "regnet_x_3_2gf"),
    "mobilenetv2_100_tv": ("torchvision", "mobilenet_v2"),
    "mobilenetv3_large_100_tv": ("torchvision", "mobilenet_v3_large"),
    "shufflenet_v2_x1_0": ("torchvision", "shufflenet_v2_x1_0"),
    "vgg19_bn": ("torchvision", "vgg19_bn"),
    "vit_base_patch16_224": ("timm", "vit_base_patch16_224"),
    "deit_small_patch16_224": ("timm", "deit_small_patch16_224"),
}


def build(name):
    library, theirs = PEERS[name]
    if library == "timm":
        import timm
        return timm.create_model(theirs, pretrained=False)
    import torchvision
    return getattr(torchvision.models, theirs)(weights=None)


def serve(threads):
    import torch
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for line in sys.stdin:
        ask = json.loads(line)
        net, x = build(ask["model"]).eval(), torch.randn(ask["batch"], 3, 224, 224)
        times = []
        with torch.inference_mode():
            net(x)
            for _ in range(ask["rounds"]):
                start = time.perf_counter()
                net(x)
                times.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(times), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(PEERS))
    parser.add_argument("--ptsbench", default="target/release/ptsbench")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--windows", type=int, default=3, help="turns of ours, PyTorch, PyTorch tuned")
    parser.add_argument("--rounds", type=int, default=7, help="passes in a window")
    parser.add_argument("--rate", help="also ours with these fractions pruned")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.threads)
    unknown = [name for name in args.models if name not in PEERS]
    if unknown:
        parser.error(f"no peer is known for {', '.join(unknown)}; known: {', '.join(PEERS)}")
    child = [sys.executable, __file__, "--serve", "--threads", str(args.threads)]
    peers = {
        which: subprocess.Popen(child, env=os.environ | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for which, env in {"torch": {}, "torch_tuned": KEEP_PAGES}.items()
    }
    print("| network | batch | rate | ours ms | PyTorch ms | tuned ms | PyTorch / ours | tuned / ours |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.models:
        for batch in map(int, args.batch.split(",")):
            ours, theirs = {}, {which: [] for which in peers}
            for _ in range(args.windows):
                command = [args.ptsbench, "latency", name, "--json", "--batch", str(batch), "--threads",
                           str(args.threads), "--rounds", str(args.rounds)]
                if args.rate:
                    command += ["--rate", args.rate]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                for row in found:
                    ours.setdefault(row["rate"], []).append(row["ms"][1])
                for which, peer in peers.items():
                    peer.stdin.write(json.dumps({"model": name, "batch": batch, "rounds": args.rounds}) + "\n")
                    peer.stdin.flush()
                    theirs[which].append(statistics.median(json.loads(peer.stdout.readline())))
            torch, tuned = (statistics.median(theirs[which]) for which in ("torch", "torch_tuned"))
            for rate, times in ours.items():
                ms = statistics.median(times)
                print(f"| {name} | {batch} | {rate:g} | {ms:.1f} | {torch:.1f} | {tuned:.1f} | {torch / ms:.2f} "
                      f"| {tuned / ms:.2f} |", flush=True)


if __name__ == "__main__":
    main()
