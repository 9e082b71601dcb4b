"""The local frame of visible surface points: normal, pattern axes and pattern coordinates.

Legend: N points, 3 world axes x right, y forward, z up.
"""

from typing import NamedTuple

import numpy as np

from mf_jax.data.procedural.raycast import to_local
from mf_jax.data.procedural.scene import Outdoors, Room, Solid

# Rows: faces across x, y and z. The pattern's v axis is vertical on upright faces.
_U_AXIS = np.array([[0, 1, 0], [1, 0, 0], [1, 0, 0]], np.float32)
_V_AXIS = np.array([[0, 0, 1], [0, 0, 1], [0, 1, 0]], np.float32)
_X_31, _Y_31, _Z_31 = np.eye(3, dtype=np.float32)[:, :, None]


class Surface(NamedTuple):
    """Local frames of points: unit normals out of the solid (into the room), unit axes and coordinates of the pattern.

    The vectors may be (3, 1) where they are the same at all points.
    """

    normal_3N: np.ndarray
    u_axis_3N: np.ndarray
    v_axis_3N: np.ndarray
    u_N: np.ndarray
    v_N: np.ndarray


def dot(a_3N: np.ndarray, b_3N: np.ndarray) -> np.ndarray:
    """Scalar products (N,) of vectors (3, N); either may be one vector (3,)."""
    return a_3N[0] * b_3N[0] + a_3N[1] * b_3N[1] + a_3N[2] * b_3N[2]


def _box(local_3N: np.ndarray, half_3: np.ndarray) -> Surface:
    """Faces of the box |p| <= half, for points on it."""
    axis_N = np.abs(local_3N / half_3[:, None]).argmax(0)
    x_N, y_N, z_N = local_3N
    normal_3N = np.sign(local_3N) * (axis_N == np.arange(3)[:, None])
    u_N, v_N = np.where(axis_N == 0, y_N, x_N), np.where(axis_N == 2, y_N, z_N)
    return Surface(normal_3N, _U_AXIS[axis_N].T, _V_AXIS[axis_N].T, u_N, v_N)


def _sphere(local_3N: np.ndarray, radius: np.float32) -> Surface:
    """The sphere |p| = radius; the pattern is measured along the equator and along the meridian."""
    x_N, y_N, z_N = local_3N
    across_N = np.maximum(np.hypot(x_N, y_N), np.float32(1e-6))
    cos_N, sin_N, rise_N = x_N / across_N, y_N / across_N, z_N / radius
    around_3N = np.stack([-sin_N, cos_N, np.zeros_like(x_N)])
    upward_3N = np.stack([-rise_N * cos_N, -rise_N * sin_N, across_N / radius])
    u_N, v_N = np.arctan2(y_N, x_N) * radius, np.arctan2(z_N, across_N) * radius
    return Surface(local_3N / radius, around_3N, upward_3N, u_N, v_N)


def _cylinder(local_3N: np.ndarray, radius: np.float32, half_height: np.float32) -> Surface:
    """An upright cylinder; the pattern runs around the side and, on the caps, around the centre."""
    x_N, y_N, z_N = local_3N
    across_N = np.maximum(np.hypot(x_N, y_N), np.float32(1e-6))
    cap_N = np.abs(z_N) * radius > across_N * half_height
    outward_3N = np.stack([x_N / across_N, y_N / across_N, np.zeros_like(x_N)])
    around_3N = np.stack([-outward_3N[1], outward_3N[0], outward_3N[2]])
    normal_3N = np.where(cap_N, np.sign(z_N) * _Z_31, outward_3N)
    upward_3N = np.where(cap_N, outward_3N, _Z_31)
    u_N, v_N = np.arctan2(y_N, x_N) * radius, np.where(cap_N, across_N, z_N)
    return Surface(normal_3N, around_3N, upward_3N, u_N, v_N)


def solid_surface(solid: Solid, point_3N: np.ndarray) -> Surface:
    """Surface of a solid at float32 world points on it."""
    half_3 = np.array(solid.half, np.float32)
    local_3N = to_local(solid, point_3N - np.array(solid.center, np.float32)[:, None])
    if solid.kind == "box":
        local = _box(local_3N, half_3)
    elif solid.kind == "sphere":
        local = _sphere(local_3N, half_3[0])
    else:
        local = _cylinder(local_3N, half_3[0], half_3[2])
    cos, sin = np.cos(solid.yaw), np.sin(solid.yaw)
    turn_33 = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)
    normal_3N, u_axis_3N, v_axis_3N = (turn_33 @ axis_3N for axis_3N in local[:3])
    return Surface(normal_3N, u_axis_3N, v_axis_3N, local.u_N, local.v_N)


def place_surface(place: Room | Outdoors, point_3N: np.ndarray) -> Surface:
    """Inner faces of a room, or the ground, at float32 world points on it."""
    if isinstance(place, Room):
        half_3 = np.array(place.size, np.float32) / 2
        surface = _box(point_3N - half_3[:, None], half_3)
        return surface._replace(normal_3N=-surface.normal_3N)
    return Surface(np.broadcast_to(_Z_31, point_3N.shape), _X_31, _Y_31, point_3N[0], point_3N[1])
