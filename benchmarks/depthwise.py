"""Depthwise convolution and max-pooling: XLA's against ours, side by side in one run, on the shapes of the classifiers.

    python benchmarks/depthwise.py [--batch 16] [--repeats 10]

Times are the best of the repeats, taken in turns so that both see the same machine.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from promptgen_jax.ops.depthwise import depthwise_conv, max_pool

# (pixels, channels, stride) of the depthwise convolutions of faceapi.Expression and faceapi.AgeGender
CONVOLUTIONS = (
    *((56, 32, 1), (56, 64, 1), (56, 32, 2), (28, 64, 1), (28, 128, 1), (28, 64, 2)),
    *((14, 128, 1), (14, 128, 2), (7, 256, 1)),
)
# (pixels, channels) of the 3x3 max-pools with stride 2 of faceapi.AgeGender
POOLS = ((56, 64), (28, 128), (14, 256))


def best_times(functions, arguments, repeats):
    """Smallest wall time in milliseconds of each function, compiled, called in turns."""
    compiled = [jax.jit(function) for function in functions]
    for function in compiled:
        jax.block_until_ready(function(*arguments))
    best = [float("inf")] * len(compiled)
    for _ in range(repeats):
        for index, function in enumerate(compiled):
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            best[index] = min(best[index], 1e3 * (time.perf_counter() - start))
    return best


def with_gradient(function):
    """The function, and its gradient with respect to the images for a given cotangent."""

    def forward_and_gradient(cotangent, images, *rest):
        outputs, pullback = jax.vjp(lambda images: function(images, *rest), images)
        return outputs, pullback(cotangent)

    return forward_and_gradient


def report(label, native, ours, arguments, repeats):
    """Prints one row: forward, then forward and gradient, each as XLA / ours = ratio."""
    cotangent = jnp.cos(ours(*arguments))
    forward = best_times((native, ours), arguments, repeats)
    both = best_times((with_gradient(native), with_gradient(ours)), (cotangent, *arguments), repeats)
    cells = [f"{slow:9.2f} {fast:8.2f} {slow / fast:6.1f}x" for slow, fast in (forward, both)]
    print(f"{label:24s}" + "   ".join(cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()

    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {processor()}, batch {options.batch}")
    print(f"{'milliseconds':24s}" + "   ".join(f"{'XLA':>9s} {'ours':>8s} {'ratio':>7s}" for _ in range(2)))
    print(f"{'':24s}{'forward':26s}    forward and gradient")
    for pixels, channels, stride in CONVOLUTIONS:
        images = jax.random.normal(jax.random.key(0), (options.batch, pixels, pixels, channels))
        kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, channels))
        report(
            f"conv {pixels}x{pixels}x{channels} stride {stride}",
            lambda x, k, stride=stride: depthwise_conv(x, k, stride=stride, shifted=False),
            lambda x, k, stride=stride: depthwise_conv(x, k, stride=stride, shifted=True),
            (images, kernel),
            options.repeats,
        )
    for pixels, channels in POOLS:
        images = jax.random.normal(jax.random.key(0), (options.batch, pixels, pixels, channels))
        report(
            f"pool {pixels}x{pixels}x{channels}",
            lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
            lambda x: max_pool(x, window=3),
            (images,),
            options.repeats,
        )


def processor():
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


if __name__ == "__main__":
    main()
