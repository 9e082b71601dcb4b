"""Random scenes: a furnished room, or solids standing on open ground.

One scene unit is about a metre of a real place; `Scene.scale` then sets the size of the world, log-uniformly,
so that the mean depth of a view lies between about 1 m and 50 m whatever is in it.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

import numpy as np

from mf_jax.data.procedural import raycast
from mf_jax.data.procedural.scene import (
    PALETTE,
    Camera,
    Light,
    Outdoors,
    Picture,
    Room,
    Scene,
    Solid,
    SolidKind,
    Texture,
    Vector,
)

MEAN_DEPTH_METRES = (1.0, 50.0)

_PROBE_RESOLUTION = (24, 24)
_OBJECT_COLORS = tuple(PALETTE)
_WALL_COLORS = tuple(name for name in PALETTE if name != "black")
_SOLID_PATTERNS = ("plain", "plain", "stripes", "checker", "noise", "tiles")
_WALL_PATTERNS = ("bricks", "plain", "tiles")
_SKIES = (
    # name, horizon, zenith, clouds
    ("clear", (0.74, 0.85, 0.95), (0.18, 0.42, 0.82), 0.0),
    ("cloudy", (0.78, 0.83, 0.90), (0.32, 0.50, 0.78), 0.55),
    ("grey", (0.80, 0.81, 0.83), (0.55, 0.58, 0.63), 0.0),
    ("sunset", (0.95, 0.71, 0.52), (0.36, 0.30, 0.58), 0.35),
)
_GROUNDS = (
    # name, pattern, colours, cell size relative to the camera's height
    ("grass field", "noise", (0.20, 0.42, 0.12), (0.44, 0.60, 0.24), (0.3, 1.2)),
    ("sandy desert", "noise", (0.72, 0.58, 0.38), (0.90, 0.79, 0.58), (0.4, 1.6)),
    ("snowy field", "noise", (0.80, 0.83, 0.88), (0.96, 0.97, 0.99), (0.4, 1.6)),
    ("gravel yard", "noise", (0.30, 0.29, 0.28), (0.62, 0.60, 0.57), (0.15, 0.5)),
    ("tiled square", "tiles", (0.66, 0.63, 0.60), (0.36, 0.34, 0.33), (0.3, 1.4)),
    ("brick yard", "bricks", (0.62, 0.30, 0.22), (0.78, 0.70, 0.62), (0.3, 1.0)),
    ("checkered square", "checker", (0.84, 0.83, 0.80), (0.28, 0.28, 0.32), (0.3, 1.4)),
    ("striped lawn", "stripes", (0.24, 0.50, 0.16), (0.40, 0.66, 0.28), (0.3, 1.2)),
    ("wooden deck", "planks", (0.66, 0.46, 0.28), (0.34, 0.21, 0.11), (0.15, 0.4)),
)
_FLOORS = (
    ("wooden floor", "planks", (0.66, 0.46, 0.28), (0.34, 0.21, 0.11), (0.12, 0.3)),
    ("tiled floor", "tiles", (0.76, 0.74, 0.70), (0.42, 0.41, 0.40), (0.3, 0.9)),
    ("checkered floor", "checker", (0.86, 0.85, 0.82), (0.20, 0.20, 0.23), (0.3, 0.9)),
    ("brick floor", "bricks", (0.60, 0.30, 0.22), (0.74, 0.66, 0.58), (0.3, 0.7)),
    ("striped carpet", "stripes", (0.62, 0.20, 0.20), (0.84, 0.72, 0.52), (0.15, 0.5)),
    ("grey carpet", "noise", (0.36, 0.36, 0.38), (0.62, 0.62, 0.64), (0.2, 0.6)),
    ("green carpet", "noise", (0.10, 0.34, 0.16), (0.28, 0.58, 0.32), (0.2, 0.6)),
    ("blue carpet", "noise", (0.12, 0.20, 0.50), (0.30, 0.42, 0.78), (0.2, 0.6)),
)


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def _log_uniform(rng, low, high):
    return float(low * (high / low) ** rng.random())


def _vector(values: Iterable[float]) -> Vector:
    x, y, z = values
    return x, y, z


def _vary(rng, color: Vector, amount: float = 0.06) -> Vector:
    """A nearby colour that keeps its name."""
    shift = rng.uniform(-0.4 * amount, 0.4 * amount, 3).tolist()
    gain = 1 + rng.uniform(-2 * amount, amount)
    return _vector(min(max(c * gain + d, 0.0), 1.0) for c, d in zip(color, shift, strict=True))


def _shade(color: Vector, share: float) -> Vector:
    """Darker (share < 0) or paler (share > 0) version of a colour."""
    end = 1.0 if share > 0 else 0.0
    return _vector(c + (end - c) * abs(share) for c in color)


def _colored(rng, color_name: str, kinds, sizes) -> Texture:
    """A texture whose two colours are shades of the named one."""
    color = _vary(rng, PALETTE[color_name])
    share = rng.uniform(0.25, 0.45)
    if color_name != "black" and rng.random() < 0.6:
        share = -share
    elif color_name in ("red", "orange", "brown"):
        share *= 0.6
    return Texture(_pick(rng, kinds), color, _shade(color, share), _log_uniform(rng, *sizes))


def _surface(rng, row, unit: float) -> Texture:
    name, kind, color, accent, (low, high) = row
    return Texture(kind, _vary(rng, color), _vary(rng, accent), unit * _log_uniform(rng, low, high), name)


def _camera(rng, position: Vector, yaw: float, pitch_range_degrees: tuple[float, float]) -> Camera:
    pitch = np.clip(rng.normal(-11, 9), *pitch_range_degrees)
    roll = rng.normal(0, 2)
    half_view = np.radians(rng.uniform(50, 90) / 2)
    return Camera(position, yaw, float(np.radians(pitch)), float(np.radians(roll)), float(np.tan(half_view)))


def _solid(
    rng, kind: Literal["box", "sphere", "cylinder", "wall"], size: float, ground_xy: tuple[float, float], base: float
) -> Solid:
    """A solid of about `size`, with its lowest point at height `base`."""
    if kind == "sphere":
        half = (size / 2, size / 2, size / 2)
    elif kind == "cylinder":
        radius = size / 2 * rng.uniform(0.5, 0.9)
        half = (radius, radius, size / 2 * rng.uniform(0.5, 1.6))
    elif kind == "wall":
        half = (size * rng.uniform(0.8, 2.0), size * rng.uniform(0.05, 0.12), size * rng.uniform(0.35, 0.8))
    else:
        half = _vector(size / 2 * rng.uniform(0.5, 1.1, 3))
    color_name = _pick(rng, _OBJECT_COLORS)
    texture = _colored(
        rng, color_name, _WALL_PATTERNS if kind == "wall" else _SOLID_PATTERNS, (0.15 * size, 0.45 * size)
    )
    center = (*ground_xy, float(base + half[2]))
    yaw = 0.0 if kind == "sphere" else float(rng.uniform(0, np.pi))
    shape: SolidKind = "box" if kind == "wall" else kind
    return Solid(shape, center, _vector(map(float, half)), yaw, texture, color_name, kind)


def _spread(solid: Solid) -> float:
    """Radius of the upright cylinder around a solid."""
    return solid.half[0] if solid.kind != "box" else math.hypot(*solid.half[:2])


def _furnish(rng, camera: Camera, count: int, sizes, kinds, fits) -> tuple[Solid, ...]:
    """Places up to `count` solids on the floor that the camera sees, clear of each other and of the camera.

    Args:
        sizes: smallest and largest size.
        fits: tells from (x, y, radius, height) whether a solid may stand there.
    """
    rotation = camera.rotation()
    placed: list[Solid] = []
    eye_x, eye_y, eye_z = camera.position
    for _ in range(8 * count):
        across, below = rng.uniform(-0.95, 0.95), rng.uniform(-0.4, 0.95)
        ray = (rotation @ (across * camera.tan_half_width, below * camera.tan_half_width, 1.0)).tolist()
        if ray[2] > -0.02:
            continue
        x, y = eye_x - ray[0] * eye_z / ray[2], eye_y - ray[1] * eye_z / ray[2]
        if not fits(x, y, 0.3 * sizes[0], 0.0):
            continue
        kind = _pick(rng, kinds)
        solid = _solid(rng, kind, _log_uniform(rng, *sizes), (x, y), 0.0)
        radius, away = _spread(solid), math.hypot(x - eye_x, y - eye_y)
        top = 2 * solid.half[2]
        if max(radius, 0.4 * top) > (0.8 if kind == "wall" else 0.45) * away or radius + top < 0.05 * away:
            continue
        if not fits(x, y, radius, top):
            continue
        if any(math.hypot(x - s.center[0], y - s.center[1]) < radius + _spread(s) for s in placed):
            continue
        placed.append(solid)
        if kind == "box" and rng.random() < 0.25:
            size = 2 * min(solid.half[:2]) * rng.uniform(0.4, 0.8)
            on_top = _solid(rng, _pick(rng, ("box", "sphere", "cylinder")), float(size), (x, y), top)
            if fits(x, y, radius, top + 2 * on_top.half[2]):
                placed.append(on_top)
        if len(placed) >= count:
            break
    return tuple(placed)


def _pictures(rng, size: Vector) -> tuple[Picture, ...]:
    """Windows, doors and paintings: flat, so that an edge in the image is not always an edge in depth."""
    pictures = []
    for _ in range(int(rng.integers(0, 5))):
        axis, side = _pick(rng, ((0, 0), (0, 1), (1, 1), (1, 1)))
        length, width = size[1 - axis], rng.uniform(0.4, 1.6)
        middle = rng.uniform(0.1, 0.9) * length
        low = rng.uniform(0.3, 0.5) * size[2]
        high = low + rng.uniform(0.25, 0.45) * size[2]
        if rng.random() < 0.3:
            low, width = 0.0, 0.9
        color = _vary(rng, PALETTE[_pick(rng, _OBJECT_COLORS)], 0.15)
        pictures.append(Picture(axis, side, (middle - width / 2, middle + width / 2), (low, high), color))
    return tuple(pictures)


def _room_scene(rng, noise_seed: int) -> Scene:
    size = (_log_uniform(rng, 2.6, 9), _log_uniform(rng, 3.5, 15), float(rng.uniform(2.3, 3.6)))
    eye = (
        float(rng.uniform(0.2, 0.8) * size[0]),
        float(max(0.4, rng.uniform(0.06, 0.35) * size[1])),
        float(rng.uniform(0.3, 0.75) * size[2]),
    )
    yaw = float(np.radians(np.clip(rng.normal(0, 20), -50, 50)))
    camera = _camera(rng, eye, yaw, (-45, 12))

    def fits(x, y, radius, top):
        return radius < x < size[0] - radius and radius < y < size[1] - radius and top < 0.95 * size[2]

    solids = _furnish(rng, camera, int(rng.integers(1, 7)), (0.3, 1.8), ("box", "box", "sphere", "cylinder"), fits)
    wall_color = _pick(rng, _WALL_COLORS)
    walls = _colored(rng, wall_color, ("plain", "plain", "stripes", "bricks", "tiles", "noise"), (0.2, 0.7))
    walls = dataclasses.replace(walls, name=f"{wall_color} walls", accent=_mix(walls.accent, walls.color, 0.5))
    ceiling = Texture("plain", _vary(rng, (0.88, 0.88, 0.86)), (0.6, 0.6, 0.6), 1.0, "ceiling")
    floor = _surface(rng, _pick(rng, _FLOORS), 1.0)
    place = Room(size, floor, walls, ceiling, _pictures(rng, size))
    lamp = np.array(size) * (rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85), rng.uniform(0.85, 0.95))
    ambient = rng.uniform(0.4, 0.65)
    tint = np.array(_pick(rng, ((1.0, 1.0, 1.0), (1.0, 0.93, 0.82), (0.9, 0.96, 1.0))))
    direct = tint * rng.uniform(0.9, 1.4)
    reach, shadow = _log_uniform(rng, 3, 8), rng.uniform(0.5, 0.9)
    light = Light(tuple(lamp), True, reach, tuple(direct), tuple(tint * ambient), shadow)
    return Scene(camera, place, solids, light, 1.0, noise_seed)


def _mix(a: Vector, b: Vector, share: float) -> Vector:
    return _vector(p + (q - p) * share for p, q in zip(a, b, strict=True))


def _outdoor_scene(rng, noise_seed: int) -> Scene:
    eye_height = _log_uniform(rng, 1.0, 3.0)
    camera = _camera(rng, (0.0, 0.0, eye_height), 0.0, (-40, 6))
    far = eye_height * rng.uniform(10, 24)

    def fits(x, y, radius, top):
        return math.hypot(x, y) + radius < 0.65 * far

    kinds = ("box", "box", "sphere", "sphere", "cylinder", "cylinder", "wall")
    sizes = (0.25 * eye_height, 3.0 * eye_height)
    solids = _furnish(rng, camera, int(rng.integers(2, 8)), sizes, kinds, fits)
    sky_name, horizon, zenith, clouds = _pick(rng, _SKIES)
    ground = _surface(rng, _pick(rng, _GROUNDS), eye_height)
    haze = float(rng.uniform(0.3, 1.1)) if rng.random() < 0.6 else 0.1
    place = Outdoors(ground, float(far), haze, _vary(rng, horizon), _vary(rng, zenith), clouds, sky_name)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(20, 70))
    sun = (np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation))
    soft = sky_name == "grey"
    ambient = rng.uniform(0.55, 0.7) if soft else rng.uniform(0.4, 0.55)
    direct = np.array((1.0, 0.86, 0.74) if sky_name == "sunset" else (1.0, 0.98, 0.94)) * (1.2 - ambient)
    shadow = rng.uniform(0.3, 0.5) if soft else rng.uniform(0.7, 1.0)
    light = Light(sun, False, 1.0, tuple(direct), (ambient,) * 3, float(shadow))
    return Scene(camera, place, solids, light, 1.0, noise_seed)


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draws a scene; the same generator state always gives the same one."""
    mean_depth = _log_uniform(rng, *MEAN_DEPTH_METRES)
    noise_seed = int(rng.integers(2**31))
    scene = (_room_scene if rng.random() < 0.5 else _outdoor_scene)(rng, noise_seed)
    depth_N, label_N = raycast.trace(scene, raycast.camera_rays(scene.camera, _PROBE_RESOLUTION))
    return dataclasses.replace(scene, scale=mean_depth / float(depth_N[label_N >= raycast.FLOOR].mean()))
