#!/usr/bin/env python3
"""Time solvers on one layer in PyTorch beside `examples/solver_times`, in turns, and compare what they lose.

    solver_peer.py --ours target/release/examples/solver_times [--threads 2] [--rounds 3]

The algorithms are those of the papers, written here from their equations with the libraries' own operations, in f32 as the
releases have them (f64 where f32 does not factorize). The layers are the same closed forms on both sides.
"""
import argparse
import json
import statistics
import subprocess
import time

import torch


def layer(rows, cols):
    i = torch.arange(cols, dtype=torch.float64)
    scale = 1 + (torch.arange(cols) * 37 % 101).double() / 25
    gram = 0.95 ** (i[:, None] - i[None, :]).abs() * scale[:, None] * scale[None, :]
    at = torch.arange(1, rows * cols + 1, dtype=torch.int64)
    weight = (at * 2654435761 % 4294967296).double() / 2147483648 - 1
    return weight.float().double().reshape(rows, cols), gram


def inverse_factor(h):
    """Upper U with H^-1 = U^T U."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def sparsegpt(weight, gram, zeros, block=128):
    rows, cols = weight.shape
    w, h = weight.float().clone(), gram.float().clone()
    h.diagonal().add_(0.01 * h.diagonal().mean())
    upper = inverse_factor(h)
    rate = zeros / w.numel()
    for start in range(0, cols, block):
        end = min(cols, start + block)
        part, u = w[:, start:end].clone(), upper[start:end, start:end]
        score = part**2 / u.diagonal()[None, :] ** 2
        threshold = score.flatten().sort().values[int(score.numel() * rate)]
        gone, errors = score <= threshold, torch.zeros_like(part)
        for k in range(end - start):
            q = part[:, k].clone()
            q[gone[:, k]] = 0
            error = (part[:, k] - q) / u[k, k]
            part[:, k:] -= error[:, None] * u[k, k:][None, :]
            part[:, k] = q
            errors[:, k] = error
        w[:, start:end] = part
        w[:, end:] -= errors @ upper[start:end, end:]
    return w.double()


def largest(values, kept):
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.abs().flatten().topk(kept).indices] = True
    return mask.reshape(values.shape)


def alps(weight, gram, zeros, steps=300):
    kept = weight.numel() - zeros
    h = gram.float().clone()
    h.diagonal().add_(0.01 * h.diagonal().mean())
    length = h.diagonal().sqrt()
    h = h / length[:, None] / length[None, :]
    dense = (weight.float() * length[None, :]).T.contiguous()
    values, vectors = torch.linalg.eigh(h)
    target = h @ dense
    rho, mask = 0.1, largest(dense, kept)
    chosen, dual, seen, moved = dense * mask, torch.zeros_like(dense), mask, False
    for step in range(1, steps + 1):
        right = vectors.T @ (target - dual + rho * chosen)
        fitted = vectors @ (right / (values + rho)[:, None])
        total = fitted + dual / rho
        mask = largest(total, kept)
        chosen = total * mask
        dual += rho * (fitted - chosen)
        if step % 3 == 0:
            share = (mask != seen).sum().item() / kept
            seen = mask
            if share == 0 and moved:
                break
            moved = True
            rho *= 1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1
    residual = (h @ (dense - chosen)) * mask
    direction, before = residual.clone(), (residual**2).sum()
    first = before
    for _ in range(10):
        bent = h @ direction
        length_of = before / (direction * bent).sum()
        chosen += length_of * direction
        residual -= length_of * bent * mask
        after = (residual**2).sum()
        if after <= 1e-8 * first:
            break
        direction = residual + after / before * direction
        before = after
    return (chosen.T / length[None, :]).double()


def obc(weight, gram, zeros, batch=32):
    """Batches of rows; orders and costs first, then each row's weights at its own number of steps."""
    rows, cols = weight.shape
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram)).float()
    orders, costs = torch.empty(rows, cols, dtype=torch.long), torch.empty(rows, cols)
    for start in range(0, rows, batch):
        w = weight[start:start + batch].float().clone()
        size = len(w)
        each = torch.arange(size)
        h = inverse.repeat(size, 1, 1)
        gone = torch.zeros(size, cols, dtype=torch.bool)
        for step in range(cols):
            pivots = h.diagonal(dim1=1, dim2=2)
            score = w**2 / pivots
            score[gone] = float("inf")
            cost, p = score.min(1)
            row, pivot = h[each, p], pivots[each, p].clone()
            w -= row * (w[each, p] / pivot)[:, None]
            gone[each, p] = True
            w[gone] = 0
            row = row / pivot.sqrt()[:, None]
            h.baddbmm_(row[:, :, None], row[:, None, :], alpha=-1)
            h.diagonal(dim1=1, dim2=2)[gone] = 1
            orders[start:start + size, step], costs[start:start + size, step] = p, cost / 2
    threshold = costs.flatten().kthvalue(zeros).values
    taken = (costs <= threshold).sum(1)
    result = weight.clone()
    for row in range(rows):
        out = orders[row, :taken[row]]
        stays = torch.ones(cols, dtype=torch.bool)
        stays[out] = False
        keep = stays.nonzero()[:, 0]
        result[row] = 0
        result[row, keep] = torch.linalg.solve(gram[keep][:, keep], gram[keep] @ weight[row])
    return result


SOLVERS = {"sparsegpt": (sparsegpt, 512, 4608), "alps": (alps, 512, 4608), "obc": (obc, 256, 2304)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--size", help="ROWSxCOLS in place of the usual sizes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.solvers.split(","):
        solve, rows, cols = SOLVERS[name]
        if args.size:
            rows, cols = map(int, args.size.split("x"))
        weight, gram = layer(rows, cols)
        zeros = int(0.8 * rows * cols)
        ours, theirs = [], []
        for _ in range(args.rounds):
            command = [args.ours, name, "--rows", str(rows), "--cols", str(cols)]
            line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ours.append(line["seconds"])
            start = time.perf_counter()
            found = solve(weight, gram, zeros)
            theirs.append(time.perf_counter() - start)
        lost = weight - found
        error = ((lost @ gram) * lost).sum().item()
        mine, peer = statistics.median(ours), statistics.median(theirs)
        print(
            f"{name} {rows}x{cols}: ours {mine:.2f} s, PyTorch {peer:.2f} s, ratio {peer / mine:.2f}; "
            f"loss ours {line['squared_error']:.6g}, PyTorch {error:.6g}, "
            f"zeros {zeros} and {(found == 0).sum().item()}",
            flush=True,
        )


if __name__ == "__main__":
    main()
