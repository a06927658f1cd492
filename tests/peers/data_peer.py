"""Times Pillow and torchvision on the way from a picture's file to a network's input: what bench_data times.

    python tests/peers/data_peer.py DIR [--processes N] [--passes N] [--json]

DIR is in ImageNet's layout. Needs torch and torchvision. Each process has one thread, as a DataLoader's worker has.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import time


def prepare():
    import torch
    import torchvision.transforms as T

    torch.set_num_threads(1)
    global transform
    transform = T.Compose(
        [
            T.Resize(256),
            T.CenterCrop(224),
            T.ToTensor(),
            T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


def load(path):
    from PIL import Image

    with Image.open(path) as picture:
        return float(transform(picture.convert("RGB"))[0, 0, 0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    files = sorted(map(str, args.folder.glob("val/*/*")))
    with multiprocessing.Pool(args.processes, prepare) as pool:
        pool.map(load, files[: 8 * args.processes])
        seconds = []
        for _ in range(args.passes):
            start = time.perf_counter()
            pool.map(load, files, chunksize=16)
            seconds.append(time.perf_counter() - start)
    rate = len(files) / min(seconds)

    import PIL
    import torchvision

    versions = f"Pillow {PIL.__version__}, torchvision {torchvision.__version__}"
    print(f"{len(files)} images: {rate:.0f} a second in {args.processes} processes ({versions})")
    if args.json:
        print(json.dumps({"images": len(files), "processes": args.processes, "images_per_second": rate}))


if __name__ == "__main__":
    main()
