"""Runs the cases, in a process of its own: one line before and one after each, as JSON."""

from __future__ import annotations

import json
import sys
import time
import warnings
from random import Random

import mutations
import seeds

from clip_embed import ClipEmbedder, ImageError, ImagePolicy, ImageSpec
from clip_embed._images.pixels import prepare_pixels
from clip_embed.testing import FakeModel

POLICY = ImagePolicy(max_pixels=2_000_000, max_bytes=2_000_000, max_seconds=3)
SPECS = [ImageSpec(32, (32, 32)), ImageSpec((24, 32)), ImageSpec((32, 32), pad=True)]
GROUP = 16  # cases that go through one stream


def case(number: int, seed: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    """Return the name of the good image that a case was made of, and the case."""
    rng = Random(f"{seed}:{number}")  # noqa: S311 - reproducible, not secret
    name = rng.choice(list(files))
    return name, mutations.mutate(files[name], list(files.values()), rng)


def verdict(encoded: bytes, spec: ImageSpec, *, exact: bool) -> str:
    """Return "vector", or why there is none; whatever else is raised comes through."""
    try:
        pixels = prepare_pixels(encoded, encoded, spec, POLICY, exact=exact)
    except ImageError as error:
        return f"{error}{' (retryable)' if error.retryable else ''}"
    if pixels.shape[2] != 3 or pixels.dtype != "uint8":
        raise AssertionError(pixels.shape, pixels.dtype)
    return "vector"


def peak() -> int:
    """Return the largest resident size so far, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def say(**values: object) -> None:
    """Report to the process that watches."""
    print(json.dumps(values), flush=True)


def run_stream(group: dict[int, tuple[bytes, str]]) -> None:
    """Send cases through an embedder; what it lists as failures must be what failed alone."""
    items = [(number, encoded) for number, (encoded, _) in group.items()]
    vectors: set[object] = set()
    failures: set[object] = set()
    with ClipEmbedder(FakeModel(), policy=POLICY, cache=None, workers=1, batch_size=4).stream_images(
        items
    ) as stream:
        for batch in stream:
            vectors.update(batch.keys)
            failures.update(failure.key for failure in batch.failures)
    expected = {number for number, (_, exact) in group.items() if exact == "vector"}
    if vectors != expected or failures != set(group) - expected:
        odd = sorted((vectors ^ expected) | (failures ^ (set(group) - expected)))  # type: ignore[type-var]
        say(finding="the stream and the single image disagree", cases=odd)


def main(first: int, last: int, seed: int) -> None:
    """Run the cases from `first` to before `last`."""
    warnings.simplefilter("ignore")
    bombs: list[object] = []
    warnings.showwarning = lambda message, *_: bombs.append(message)
    from PIL import Image

    warnings.simplefilter("always", Image.DecompressionBombWarning)
    files = seeds.make_seeds()
    for file in files.values():
        if (found := verdict(file, SPECS[0], exact=True)) != "vector" and "floating-point" not in found:
            raise AssertionError(found)
        verdict(file, SPECS[0], exact=False)
    say(baseline=peak())
    group: dict[int, tuple[bytes, str]] = {}
    for number in range(first, last):
        name, encoded = case(number, seed, files)
        say(start=number, name=name)
        begun = time.monotonic()
        spec = SPECS[number % len(SPECS)]
        exact, fast = verdict(encoded, spec, exact=True), verdict(encoded, spec, exact=False)
        say(
            done=number,
            verdict=exact,
            fast=fast,
            seconds=time.monotonic() - begun,
            peak=peak(),
            warned=len(bombs),
        )
        bombs.clear()
        group[number] = (encoded, exact)
        if len(group) == GROUP or number == last - 1:
            run_stream(group)
            group.clear()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
