"""The colour demo's data: solids that this project draws itself, eight classes, any number of images.

Each image shows one solid on a floor, 32x32 RGB: its size, turn, place, colours and pattern are drawn at random, and
light from the upper left gives it shading, a highlight and a soft shadow. Image `i` of a seed is the same whatever else
is drawn.

    python benchmarks/demo/draw_solids.py --train solids-train.zip --heldout solids-heldout.zip

Rays are traced through signed distance fields (Hart 1996, "Sphere tracing"); shadows soften with the smallest distance
that a ray to the light passes at, relative to the way it has gone.
"""

from __future__ import annotations

import argparse
import colorsys
import multiprocessing
from collections.abc import Callable, Iterator

import numpy as np

from edm_fast.data.convert import write_dataset

SIZE = 32
SAMPLES = 3  # rays along each side of a pixel
STEPS = 40
RADIUS = 1.75  # of a ball around the origin of a solid that holds all of it
LIGHT = np.array([-0.55, 0.75, 0.45], np.float32) / np.float32(np.linalg.norm([-0.55, 0.75, 0.45]))


def _length(*parts: np.ndarray) -> np.ndarray:
    return np.sqrt(sum(part * part for part in parts))


def _inside(*sides: np.ndarray) -> np.ndarray:
    """Distance to the intersection of half spaces at right angles, from the distances to each."""
    return np.minimum(np.maximum.reduce(sides), 0) + _length(*(np.maximum(side, 0) for side in sides))


# Distances to each solid, about 2 high, from points (x, y, z); y points up.


def sphere(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return _length(x, y, z) - 1


def cube(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return _inside(abs(x) - 0.77, abs(y) - 0.77, abs(z) - 0.77) - 0.05


def cylinder(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return _inside(_length(x, z) - 0.68, abs(y) - 0.97) - 0.04


def cone(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    slope = 0.894 * _length(x, z) + 0.447 * (y - 1.15)
    return np.maximum(slope, -1 - y)


def ring(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return _length(_length(x, z) - 0.9, y) - 0.36


def pyramid(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    slope = 0.872 * np.maximum(abs(x), abs(z)) + 0.490 * (y - 1.0)
    return np.maximum(slope, -0.85 - y)


def octahedron(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return (abs(x) + abs(y) * 0.85 + abs(z) - 1.05) / 1.65


def cup(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    around = _length(x, z)
    wall = _inside(around - 0.78, abs(y) - 0.86) - 0.03
    hollow = _inside(around - 0.62, abs(y - 0.3) - 0.95)
    handle = _length(_length(x - 0.85, y) - 0.45, z) - 0.13
    return np.maximum(np.minimum(wall, handle), -hollow)


Distance = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
#: each class: its distance, and how far its lowest point is below its origin
SOLIDS: tuple[tuple[Distance, float], ...] = (
    (sphere, 1.0),
    (cube, 0.82),
    (cylinder, 1.01),
    (cone, 1.0),
    (ring, 0.36),
    (pyramid, 0.85),
    (octahedron, 1.235),
    (cup, 0.89),
)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour in linear light."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32) ** 2.2


def _march(distance: Distance, start: np.ndarray, way: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far rays (n, 3) go until they hit, infinity if they do not, and how near they pass, relative to their way."""
    far = np.full(len(start), np.inf, np.float32)
    near = np.full(len(start), 1.0, np.float32)
    along = (start * way).sum(1)
    depth = along * along - (start * start).sum(1) + RADIUS * RADIUS
    active = np.flatnonzero((depth > 0) & (np.sqrt(np.maximum(depth, 0)) > along))
    gone = np.maximum(-along - np.sqrt(np.maximum(depth, 0)), 0.02)
    end = -along + np.sqrt(np.maximum(depth, 0))
    for _ in range(STEPS):
        if not len(active):
            break
        point = start[active] + gone[active, None] * way[active]
        step = distance(*point.T)
        near[active] = np.minimum(near[active], step / np.maximum(gone[active], 0.3))
        hit = step < 2e-3
        far[active[hit]] = gone[active[hit]]
        gone[active] += step
        active = active[~hit & (gone[active] < end[active])]
    return far, near


def _normals(distance: Distance, point: np.ndarray) -> np.ndarray:
    x, y, z = point.T
    step = np.float32(2e-3)
    slopes = (
        distance(x + step, y, z) - distance(x - step, y, z),
        distance(x, y + step, z) - distance(x, y - step, z),
        distance(x, y, z + step) - distance(x, y, z - step),
    )
    slope = np.stack(slopes, 1)
    return slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)


def _pattern(kind: int, point: np.ndarray, scale: float) -> np.ndarray:
    """Whether points of the solid take its second colour: never, in stripes, or in checks."""
    x, y, z = (np.floor(axis * scale + 0.5) for axis in point.T)
    if kind == 0:
        return np.zeros(len(point), bool)
    return (y if kind == 1 else x + y + z) % 2 == 1


def draw(seed: int, index: int) -> tuple[np.ndarray, int]:
    """Image `index` of `seed`: (32, 32, 3) uint8, and its class."""
    rng = np.random.default_rng([seed, index])
    label = index % len(SOLIDS)
    distance, foot = SOLIDS[label]
    size = rng.uniform(0.82, 1.12)
    turn = rng.uniform(0, 2 * np.pi)
    shift = rng.uniform(-0.25, 0.25, 2)
    hue, other = rng.uniform(), rng.uniform(0.3, 0.7)
    first = _colour(hue, rng.uniform(0.65, 0.95), rng.uniform(0.75, 1))
    second = _colour(hue + other, rng.uniform(0.1, 0.6), rng.uniform(0.85, 1))
    floor = _colour(rng.uniform(), rng.uniform(0.05, 0.35), rng.uniform(0.75, 0.95))
    kind, scale = int(rng.choice(3, p=[0.6, 0.25, 0.15])), rng.uniform(1.2, 1.9)
    height = np.deg2rad(rng.uniform(24, 36))

    # the camera stands 8 away and looks at the middle of the picture, a little above the floor
    eye = np.array([0, np.sin(height), np.cos(height)], np.float32)
    up = np.array([0, np.cos(height), -np.sin(height)], np.float32)
    right = np.array([1, 0, 0], np.float32)
    count = SIZE * SAMPLES
    line = ((np.arange(count, dtype=np.float32) + 0.5) / count * 2 - 1) * np.float32(0.24)
    v, h = (axis.reshape(-1, 1) for axis in np.meshgrid(-line, line, indexing="ij"))
    way = h * right + v * up - eye
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    start = np.broadcast_to(8 * eye + np.array([0, 0.72, 0], np.float32), way.shape)

    # into the coordinates of the solid: shift, turn about the upright axis, scale
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], np.float32)
    origin = np.array([shift[0], foot * size, shift[1]], np.float32)
    local = ((start - origin) @ rotation.T / np.float32(size)).astype(np.float32)
    turned = (way @ rotation.T).astype(np.float32)
    light = (rotation @ LIGHT).astype(np.float32)

    far, _ = _march(distance, local, turned)
    ground = (-foot - local[:, 1]) / turned[:, 1]  # all rays look down
    hit = np.isfinite(far)
    point = local + np.where(hit, far, ground)[:, None] * turned
    normal = np.broadcast_to(np.array([0, 1, 0], np.float32), point.shape).copy()
    normal[hit] = _normals(distance, point[hit])
    base = np.broadcast_to(floor, point.shape).copy()
    base[hit] = np.where(_pattern(kind, point[hit], scale)[:, None], second, first)

    lit = np.maximum(normal @ light, 0)
    shaded, near = _march(distance, point + np.float32(0.03) * normal, np.broadcast_to(light, point.shape))
    soft = np.where(np.isfinite(shaded), 0, np.clip(near * 7, 0, 1))
    lit *= soft
    touch = 1 - 0.45 * np.exp(-np.maximum(distance(*point.T), 0) * 5) * ~hit  # less light where solid and floor meet
    sky = 0.30 + 0.12 * normal[:, 1]
    colour = base * (0.95 * lit + sky * touch)[:, None]
    half = light - turned
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    shine = np.maximum((normal * half).sum(1), 0) ** 40 * (lit > 0) * hit
    colour += np.float32(0.45) * (shine * soft)[:, None]

    pixels = colour.reshape(SIZE, SAMPLES, SIZE, SAMPLES, 3).mean((1, 3))
    return np.round(np.clip(pixels, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8), label


def _draw(job: tuple[int, int]) -> tuple[np.ndarray, int]:
    return draw(*job)


def images(seed: int, count: int) -> Iterator[tuple[np.ndarray, int]]:
    with multiprocessing.Pool() as pool:
        yield from pool.imap(_draw, ((seed, index) for index in range(count)), chunksize=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", metavar="ZIP", help="write the training images here")
    parser.add_argument("--heldout", metavar="ZIP", help="write the held-out images here")
    parser.add_argument("--count", type=int, default=20000, help="number of training images  [default: 20000]")
    parser.add_argument("--heldout-count", type=int, default=2000, help="number of held-out images  [default: 2000]")
    args = parser.parse_args()
    if args.count < 1 or args.heldout_count < 1:
        parser.error("numbers of images must be positive")
    for path, seed, count in ((args.train, 0, args.count), (args.heldout, 1, args.heldout_count)):
        if path:
            print(f"{path}: {write_dataset(path, images(seed, count))} images of {len(SOLIDS)} solids")


if __name__ == "__main__":
    main()
