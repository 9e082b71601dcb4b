"""The parts of a procedural scene as frozen dataclasses, in the scene's own unit of length.

World axes: x right, y forward, z up; the floor or ground is z = 0. A camera looks along its third axis, with
its first axis to the right of the image and its second down. Colours are RGB in [0, 1]. `Scene.scale` turns
the scene's unit of length into metres.
"""

import dataclasses
from typing import Literal

import numpy as np

Vector = tuple[float, float, float]

SolidKind = Literal["box", "sphere", "cylinder"]
PatternKind = Literal["plain", "checker", "stripes", "tiles", "bricks", "planks", "noise"]

PALETTE: dict[str, Vector] = {
    "red": (0.80, 0.14, 0.12),
    "orange": (0.94, 0.50, 0.10),
    "yellow": (0.93, 0.82, 0.16),
    "green": (0.16, 0.58, 0.20),
    "teal": (0.10, 0.58, 0.60),
    "blue": (0.14, 0.30, 0.80),
    "purple": (0.48, 0.20, 0.66),
    "pink": (0.95, 0.56, 0.70),
    "brown": (0.46, 0.29, 0.16),
    "beige": (0.86, 0.79, 0.64),
    "white": (0.92, 0.92, 0.92),
    "grey": (0.50, 0.50, 0.50),
    "black": (0.11, 0.11, 0.11),
}


@dataclasses.dataclass(frozen=True)
class Texture:
    """A two-colour pattern on a surface; `size` is the length of one cell."""

    kind: PatternKind
    color: Vector
    accent: Vector
    size: float
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Solid:
    """A convex solid with a vertical axis; `half` are its half extents before it turns by `yaw` (radians).

    A sphere has three equal half extents, a cylinder two equal horizontal ones.
    """

    kind: SolidKind
    center: Vector
    half: Vector
    yaw: float
    texture: Texture
    color_name: str
    noun: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A flat coloured rectangle on the wall across `axis` (0 or 1) at its low (`side` 0) or high (1) end.

    `span` is its extent along the wall, `height` its extent in height.
    """

    axis: int
    side: int
    span: tuple[float, float]
    height: tuple[float, float]
    color: Vector


@dataclasses.dataclass(frozen=True)
class Room:
    """The inside of the box (0, 0, 0) to `size`; every ray ends on it."""

    size: Vector
    floor: Texture
    walls: Texture
    ceiling: Texture
    pictures: tuple[Picture, ...]


@dataclasses.dataclass(frozen=True)
class Outdoors:
    """The plane z = 0 under a sky.

    Ground with z-depth above `far` has no depth; `haze` is the optical depth of the fog at `far`.
    """

    ground: Texture
    far: float
    haze: float
    horizon: Vector
    zenith: Vector
    clouds: float
    sky_name: str


@dataclasses.dataclass(frozen=True)
class Light:
    """One lamp at `vector` (`point`), or a sun in the direction `vector`, and an ambient term.

    `shadow` is the part of the direct light that an occluder takes away; `reach` is the distance at which the
    light of a lamp has halved.
    """

    vector: Vector
    point: bool
    reach: float
    direct: Vector
    ambient: Vector
    shadow: float


@dataclasses.dataclass(frozen=True)
class Camera:
    """Position and attitude (radians; pitch > 0 looks up, yaw > 0 turns left, roll > 0 tilts clockwise).

    `tan_half_width` is the tangent of half the horizontal field of view.
    """

    position: Vector
    yaw: float
    pitch: float
    roll: float
    tan_half_width: float

    def rotation(self) -> np.ndarray:
        """(3, 3) float64: columns are the camera's right, down and forward axes in world coordinates."""
        cos_yaw, sin_yaw = np.cos(self.yaw), np.sin(self.yaw)
        cos_pitch, sin_pitch = np.cos(self.pitch), np.sin(self.pitch)
        forward = np.array([-sin_yaw * cos_pitch, cos_yaw * cos_pitch, sin_pitch])
        right = np.array([cos_yaw, sin_yaw, 0.0])
        down = np.array([-sin_yaw * sin_pitch, cos_yaw * sin_pitch, -cos_pitch])
        cos_roll, sin_roll = np.cos(self.roll), np.sin(self.roll)
        tilted_right, tilted_down = cos_roll * right + sin_roll * down, cos_roll * down - sin_roll * right
        return np.stack([tilted_right, tilted_down, forward], axis=1)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything needed to render: `scale` is metres per unit, `noise_seed` fixes the noise in textures."""

    camera: Camera
    place: Room | Outdoors
    solids: tuple[Solid, ...]
    light: Light
    scale: float
    noise_seed: int
