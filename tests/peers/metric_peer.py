#!/usr/bin/env python3
"""Time COCO AP beside pycocotools and the Frechet distance beside pytorch-fid's route, in turns on the same files.

    metric_peer.py --ours target/release/examples/metric_times [--rounds 3] [--only coco|fid] [--json FILE]

Needs Python 3.11, numpy, scipy and pycocotools. Files are generated, seeded, and deleted. See docs/benchmarks.md.
"""
import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def detection_files(folder, images, detections, categories=80, objects=7):
    """Annotations and results: a third of the detections lie near an object of their category, the rest anywhere."""
    draw = np.random.default_rng(0)
    side = np.array([640.0, 480.0])

    def boxes(count):
        size = np.exp(draw.uniform(np.log(8), np.log(400), (count, 2))).clip(max=side - 1)
        return np.concatenate([draw.uniform(0, 1, (count, 2)) * (side - size), size], 1).round(2)

    count = images * objects
    box, category = boxes(count), draw.integers(1, categories + 1, count)
    crowd = draw.uniform(size=count) < 0.01
    truth = {
        "info": {}, "images": [{"id": i + 1, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in range(images)],
        "categories": [{"id": c + 1, "name": f"c{c}"} for c in range(categories)],
        "annotations": [{"id": i + 1, "image_id": i // objects + 1, "category_id": int(category[i]),
                         "bbox": box[i].tolist(), "area": float(box[i, 2] * box[i, 3] * 0.7), "iscrowd": int(crowd[i])}
                        for i in range(count)],
    }
    near = draw.uniform(size=detections) < 1 / 3
    image = draw.integers(0, images, detections)
    which = image * objects + draw.integers(0, objects, detections)
    moved = box[which] + draw.normal(0, 0.08, (detections, 4)) * np.tile(box[which][:, 2:], 2)
    moved[:, 2:] = moved[:, 2:].clip(min=1)
    place = np.where(near[:, None], moved, boxes(detections)).round(2)
    kind = np.where(near, category[which], draw.integers(1, categories + 1, detections))
    score = draw.uniform(size=detections).round(5)
    found = [{"image_id": int(image[i]) + 1, "category_id": int(kind[i]), "bbox": place[i].tolist(),
              "score": float(score[i])} for i in range(detections)]
    paths = folder / "truth.json", folder / "results.json"
    for path, content in zip(paths, (truth, found)):
        path.write_text(json.dumps(content))
    return paths


def pycocotools(truth, results):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        annotated = COCO(str(truth))
        found = annotated.loadRes(str(results))
        start, processor = time.perf_counter(), time.process_time()
        run = COCOeval(annotated, found, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
        return {"seconds": time.perf_counter() - start, "processor_s": time.process_time() - processor,
                "stats": [float(value) for value in run.stats]}


def feature_files(folder, samples, width):
    """Two sets of correlated, skewed features of full rank, as a pooled ReLU network gives them."""
    paths = []
    draw = np.random.default_rng(1)
    # Scales fall over three orders of magnitude and every feature is a mixture of 64 common factors and its own.
    scale = np.geomspace(1, 1e-3, width, dtype=np.float32)
    for name in "ab":
        mixture = draw.normal(0, 0.3, (64, width)).astype(np.float32)
        path = folder / f"{name}.f32"
        with open(path, "wb") as out:
            for start in range(0, samples, 5000):
                rows = min(5000, samples - start)
                common = draw.standard_normal((rows, 64), dtype=np.float32)
                own = draw.standard_normal((rows, width), dtype=np.float32)
                out.write((np.maximum(common @ mixture + own, 0) * scale).astype("<f4").tobytes())
        paths.append(path)
    return paths


def pytorch_fid(a, b, width):
    """What pytorch-fid's `calculate_frechet_distance` computes, on numpy and scipy."""
    from scipy import linalg
    # pytorch-fid keeps features in f64 from the start.
    a, b = (np.fromfile(path, "<f4").reshape(-1, width).astype(np.float64) for path in (a, b))
    start, processor = time.perf_counter(), time.process_time()
    mean = [np.mean(x, axis=0) for x in (a, b)]
    sigma = [np.cov(x, rowvar=False) for x in (a, b)]
    gathered = time.perf_counter() - start
    root = linalg.sqrtm(sigma[0] @ sigma[1]).real
    difference = mean[0] - mean[1]
    distance = difference @ difference + np.trace(sigma[0]) + np.trace(sigma[1]) - 2 * np.trace(root)
    return {"seconds": time.perf_counter() - start, "processor_s": time.process_time() - processor,
            "statistics_s": gathered, "distance": float(distance)}


def in_process(name, *arguments):
    """A reference in a process of its own: fresh memory, and no thread pool left from the other."""
    ask = json.dumps([name, *map(str, arguments)])
    done = subprocess.run([sys.executable, __file__, "--serve", ask], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def ours(program, *arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def busy():
    """Processor seconds of the whole machine outside this process and its children, and all of them."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    own = sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")
    return sum(fields) - fields[3] - fields[4] - own, sum(fields)


def contest(name, rounds, us, them, agree):
    mine, theirs, others = [], [], []
    for _ in range(rounds):
        before = busy()
        mine.append(us())
        theirs.append(them())
        after = busy()
        others.append((after[0] - before[0]) / (after[1] - before[1]))
        agree(mine[-1], theirs[-1])
    seconds = [[run["seconds"] for run in runs] for runs in (mine, theirs)]
    ratio = statistics.median(b / a for a, b in zip(*seconds))
    ours_s, theirs_s = map(statistics.median, seconds)
    # Threads that wait do not count: what remains comparable on a busy machine.
    ours_p, theirs_p = (statistics.median(run["processor_s"] or float("nan") for run in runs) for runs in (mine, theirs))
    print(f"{name}: ours {ours_s:.2f} s ({ours_p:.2f} of processors), theirs {theirs_s:.2f} s ({theirs_p:.2f}), "
          f"{ratio:.1f} times as fast; other programs had {100 * max(others):.0f} % of the machine")
    return {"name": name, "ours": mine, "theirs": theirs, "ratio": ratio, "other_programs": others}


def same_stats(a, b):
    # pycocotools prints -1 where nothing is defined.
    error = max(abs((-1 if x is None else x) - y) for x, y in zip(a["stats"], b["stats"]))
    assert error < 1e-9, f"the twelve numbers differ by {error}"


def same_distance(a, b):
    # The root of a product loses half the digits of small eigenvalues.
    error = abs(a["distance"] - b["distance"]) / b["distance"]
    assert error < 1e-4, f"distances {a['distance']} and {b['distance']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", help="the example program metric_times")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["coco", "fid"])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=500_000)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--json", type=Path, help="write all times there")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        name, *arguments = json.loads(args.serve)
        run = {"coco": pycocotools, "fid": lambda a, b, width: pytorch_fid(a, b, int(width))}[name]
        print(json.dumps(run(*arguments)))
        return
    if not args.ours:
        parser.error("--ours is needed: cargo build --release --workspace --examples")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.only != "fid":
            files = detection_files(folder, args.images, args.detections)
            name = f"COCO AP, {args.images} images, {args.detections} detections"
            results.append(contest(name, args.rounds, lambda: ours(args.ours, "coco", *files),
                                   lambda: in_process("coco", *files), same_stats))
        if args.only != "coco":
            files = feature_files(folder, args.samples, args.width)
            name = f"Frechet distance, 2 x {args.samples} x {args.width}"
            results.append(contest(name, args.rounds, lambda: ours(args.ours, "fid", *files, args.width),
                                   lambda: in_process("fid", *files, args.width), same_distance))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
