#!/usr/bin/env python3
"""`ptsbench fid` beside pytorch-fid: the same generated images, the same random weights, statistics and distance compared.

    fid_peer.py --ptsbench target/release/ptsbench [--images 24]

Needs Python 3.11, PyTorch, torchvision, pytorch-fid and Pillow; no download. About two minutes on two cores.
"""
import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_fid import fid_score, inception

BATCH = 12


def random_weights(file):
    """A file like the published one; norms have statistics of their own, so that none can be left out unseen."""
    torch.manual_seed(0)
    # pytorch-fid builds its network, then asks for the published file: it is caught there.
    built = []
    make = inception._inception_v3

    def catch(*arguments, **options):
        built.append(make(*arguments, **options))
        return built[0]

    def published(*_arguments, **_options):
        return built[0].state_dict()

    inception._inception_v3 = catch
    inception.load_state_dict_from_url = published
    inception.fid_inception_v3()
    inception._inception_v3 = make
    for module in built[0].modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.7, 1.3)
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    states = built[0].state_dict()
    torch.save(states, file)
    inception.load_state_dict_from_url = lambda *_arguments, **_options: states


def pictures(folder, seed, count, size):
    draw = np.random.default_rng(seed)
    folder.mkdir()
    for at in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
        fine = np.asarray(coarse).astype(int) + draw.integers(-20, 21, (size[1], size[0], 3))
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(folder / f"{at:03}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ptsbench", required=True)
    parser.add_argument("--images", type=int, default=24)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as space:
        space = Path(space)
        random_weights(space / "weights.pth")
        pictures(space / "a", 1, args.images, (200, 150))
        pictures(space / "b", 2, args.images, (320, 240))

        start = time.perf_counter()
        network = inception.InceptionV3([3]).eval()
        theirs = [fid_score.calculate_activation_statistics(sorted((space / side).glob("*.png")), network, BATCH, 2048,
                                                            "cpu", 0) for side in "ab"]
        theirs_s = time.perf_counter() - start
        for side, (mu, sigma) in zip("ab", theirs):
            np.savez(space / f"{side}_theirs.npz", mu=mu, sigma=sigma)

        def ours(*arguments):
            asked = [args.ptsbench, "fid", *map(str, arguments), "--json"]
            return json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)

        start = time.perf_counter()
        of_images = ours(space / "a", space / "b", "--weights", space / "weights.pth", "--batch", BATCH, "--device",
                         "flex", "--save-stats", space / "a_ours.npz")
        ours_s = time.perf_counter() - start
        of_theirs = ours(space / "a_theirs.npz", space / "b_theirs.npz")
        saved = np.load(space / "a_ours.npz")
        for name, reference in zip(("mu", "sigma"), theirs[0]):
            error = np.abs(saved[name] - reference).max() / np.abs(reference).max()
            print(f"{name}: largest difference {error:.1e} of the largest value")
            assert error < 1e-4
        print(f"distance: ours {of_images['distance']:.6f} from the images, {of_theirs['distance']:.6f} from theirs' statistics")
        assert abs(of_images["distance"] / of_theirs["distance"] - 1) < 1e-4
        print(f"{2 * args.images} images: ours {ours_s:.1f} s with the distance, theirs {theirs_s:.1f} s without it")


if __name__ == "__main__":
    main()
