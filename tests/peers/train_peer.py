#!/usr/bin/env python3
"""Time training steps of built-in networks in PyTorch (CPU, f32, eager) beside `train_times`, in turns.

    train_peer.py --train-times target/release/examples/train_times micro_resnet14 micro_vit_nano ...

Needs Python 3.11 and PyTorch. Both take the same batch through the same layers, forward and backward, and the same optimizer;
images lie ready. PyTorch runs with an allocator that keeps its pages. The ratio is PyTorch's time over ours, by medians.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36), "MALLOC_TOP_PAD_": str(1 << 28)}


def networks():
    import torch
    import torch.nn.functional as F
    from torch import nn

    def norm(inputs, outputs, kernel, stride=1, groups=1, act=None):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act()] if act else []))

    class Residual(nn.Module):
        def __init__(self, body, shortcut=None, last=True):
            super().__init__()
            self.body, self.shortcut, self.last = body, shortcut, last

        def forward(self, x):
            y = self.body(x) + (self.shortcut(x) if self.shortcut else x)
            return F.relu(y) if self.last else y

    def head(layers, width):
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 20))

    def resnet(depths, width):
        layers, inputs = [norm(3, width, 3, 2, act=nn.ReLU)], width
        for stage, depth in enumerate(depths):
            for block in range(depth):
                outputs, stride = width << stage, 2 if stage and not block else 1
                body = nn.Sequential(norm(inputs, outputs, 3, stride, act=nn.ReLU), norm(outputs, outputs, 3))
                layers.append(Residual(body, norm(inputs, outputs, 1, stride) if inputs != outputs else None))
                inputs = outputs
        return head(layers, inputs)

    def regnet(stem, depths, widths):
        layers, inputs = [norm(3, stem, 3, act=nn.ReLU)], stem
        for depth, width in zip(depths, widths):
            for block in range(depth):
                stride = 1 if block else 2
                body = nn.Sequential(norm(inputs, width, 1, act=nn.ReLU),
                                     norm(width, width, 3, stride, width // 8, nn.ReLU), norm(width, width, 1))
                layers.append(Residual(body, None if block else norm(inputs, width, 1, stride)))
                inputs = width
        return head(layers, inputs)

    def mobilenet_v2():
        layers, inputs = [norm(3, 32, 3, 2, act=nn.ReLU6)], 32
        for expansion, width, depth, first in [(1, 32, 1, 1), (4, 32, 2, 1), (6, 48, 3, 2), (6, 96, 4, 2)]:
            for block in range(depth):
                inner, stride = inputs * expansion, 1 if block else first
                body = [norm(inputs, inner, 1, act=nn.ReLU6)] if expansion > 1 else []
                body += [norm(inner, inner, 3, stride, inner, nn.ReLU6), norm(inner, width, 1)]
                body = nn.Sequential(*body)
                layers.append(Residual(body, last=False) if stride == 1 and inputs == width else body)
                inputs = width
        return head([*layers, norm(inputs, 192, 1, act=nn.ReLU6)], 192)

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            batch, tokens, width = x.shape
            q, k, v = self.qkv(self.norms[0](x)).reshape(batch, tokens, 3, width // 8, 8).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
            x = x + self.proj(mixed)
            return x + self.down(F.gelu(self.up(self.norms[1](x))))

    class Vit(nn.Module):
        def __init__(self, width, depth):
            super().__init__()
            self.patches = nn.Conv2d(3, width, 4, 4)
            self.token, self.places = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.randn(1, 65, width))
            self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 20)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
            return self.head(self.norm(self.blocks(x))[:, 0])

    return {
        "micro_resnet14": lambda: resnet([2, 2, 2], 32),
        "micro_resnet20": lambda: resnet([3, 3, 3], 40),
        "micro_regnetx_m": lambda: regnet(24, [1, 1, 2, 1], [32, 80, 160, 304]),
        "micro_mobilenetv2_100": mobilenet_v2,
        "micro_vit_nano": lambda: Vit(64, 3),
    }


def theirs(name, batch, steps, threads):
    import torch
    torch.set_num_threads(threads)
    net = networks()[name]().train()
    if "vit" in name:
        optimizer = torch.optim.AdamW(net.parameters(), 1.5e-3, weight_decay=0.05)
    else:
        optimizer = torch.optim.SGD(net.parameters(), 0.01, 0.9, weight_decay=5e-4)
    x, y, times = torch.randn(batch, 3, 32, 32), torch.randint(0, 20, (batch,)), []
    for _ in range(steps + 3):
        start = time.perf_counter()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - start))
    print(statistics.median(times[3:]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-times", required=True, help="the example of that name, built with --release")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--theirs", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("networks", nargs="*")
    args = parser.parse_args()
    if args.theirs:
        name, batch, threads = args.theirs
        return theirs(name, int(batch), args.steps, int(threads))
    print(f"{'network':24}{'batch':>6}{'ours ms':>10}{'PyTorch ms':>12}{'ratio':>8}")
    for name in args.networks or networks():
        ours, peers = [], []
        for _ in range(args.rounds):
            command = [args.train_times, "--steps", str(args.steps), name]
            line = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            ours.append(line["median_ms"])
            command = [sys.executable, __file__, "--train-times", "-", "--steps", str(args.steps), "--theirs", name,
                       str(line["batch"]), str(line["threads"])]
            found = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **KEEP_PAGES})
            peers.append(float(found.stdout))
        ours, peers = statistics.median(ours), statistics.median(peers)
        print(f"{name:24}{line['batch']:6}{ours:10.1f}{peers:12.1f}{peers / ours:8.2f}", flush=True)


if __name__ == "__main__":
    main()
