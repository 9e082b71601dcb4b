"""Ray casting of a scene: the exact z-depth and the surface that each pixel sees.

Legend: N pixels (or rays), 3 world axes x right, y forward, z up; H, W height and width in pixels.

A camera ray direction has 1 as its component along the optical axis, so the ray parameter of a hit *is* its
z-depth. Every solid is convex: a ray is inside it on one interval of its parameter, and intersecting such
intervals is all the geometry there is.
"""

import numpy as np

from mf_jax.data.procedural.scene import Camera, Outdoors, Room, Scene, Solid

SKY, FAR_GROUND, FLOOR, WALL, CEILING, FIRST_SOLID = -2, -1, 0, 1, 2, 3

_TINY = np.float32(1e-12)


def intrinsics_of(camera: Camera, resolution: tuple[int, int]) -> np.ndarray:
    """(4,) float32 fx, fy, cx, cy in pixels; the centre of the top left pixel is (0.0, 0.0)."""
    height, width = resolution
    focal = width / (2.0 * camera.tan_half_width)
    return np.array([focal, focal, (width - 1) / 2, (height - 1) / 2], np.float32)


def camera_rays(camera: Camera, resolution: tuple[int, int]) -> np.ndarray:
    """World directions (3, H*W) float32 of the rays through the pixel centres; 1 along the optical axis."""
    height, width = resolution
    fx, fy, cx, cy = intrinsics_of(camera, resolution).astype(np.float64)
    right, down, forward = camera.rotation().T
    row_H3 = (np.arange(height)[:, None] - cy) / fy * down + forward
    column_W3 = (np.arange(width)[:, None] - cx) / fx * right
    direction_3HW = row_H3.T[:, :, None] + column_W3.T[:, None, :]
    return direction_3HW.reshape(3, -1).astype(np.float32)


def to_local(solid: Solid, vector_3N: np.ndarray) -> np.ndarray:
    """Turns world vectors (3, N) by minus the yaw of the solid."""
    if solid.yaw == 0.0:
        return vector_3N
    cos, sin = np.float32(np.cos(solid.yaw)), np.float32(np.sin(solid.yaw))
    x_N, y_N, z_N = vector_3N
    return np.stack([cos * x_N + sin * y_N, cos * y_N - sin * x_N, z_N])


def _nonzero(direction):
    return np.where(np.abs(direction) < _TINY, _TINY, direction)


def _slab_interval(half, origin_N, direction_N):
    inverse_N = 1.0 / _nonzero(direction_N)
    middle_N = -origin_N * inverse_N
    reach_N = np.abs(half * inverse_N)
    return middle_N - reach_N, middle_N + reach_N


def _round_interval(radius, origin_KN, direction_KN):
    """Interval inside |p| < radius: a sphere for 3 components, an upright endless cylinder for 2."""
    a_N = np.maximum((direction_KN * direction_KN).sum(0), _TINY)
    b_N = (origin_KN * direction_KN).sum(0) / a_N
    c_N = ((origin_KN * origin_KN).sum(0) - radius * radius) / a_N
    square_N = b_N * b_N - c_N
    root_N = np.where(square_N > 0, np.sqrt(np.maximum(square_N, 0)), -np.inf)
    return -b_N - root_N, root_N - b_N


def solid_interval(solid: Solid, origin_3N: np.ndarray, direction_3N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ray parameters (N,) where rays enter and leave the solid; enter >= exit where a ray misses it.

    Args:
        origin_3N: float32 ray origins in world coordinates; one origin (3, 1) serves all rays.
        direction_3N: float32 directions of any length.
    """
    center_31 = np.array(solid.center, np.float32)[:, None]
    half = np.array(solid.half, np.float32)
    if solid.kind == "sphere":
        return _round_interval(half[0], origin_3N - center_31, direction_3N)
    origin_3N = to_local(solid, origin_3N - center_31)
    direction_3N = to_local(solid, direction_3N)
    if solid.kind == "cylinder":
        enter_N, exit_N = _round_interval(half[0], origin_3N[:2], direction_3N[:2])
        low_N, high_N = _slab_interval(half[2], origin_3N[2], direction_3N[2])
        return np.maximum(enter_N, low_N), np.minimum(exit_N, high_N)
    enter_3N, exit_3N = _slab_interval(half[:, None], origin_3N, direction_3N)
    return enter_3N.max(0), exit_3N.min(0)


def _trace_room(room: Room, origin_3: np.ndarray, direction_3N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size_3 = np.array(room.size, np.float32)
    direction_3N = _nonzero(direction_3N)
    target_3N = np.where(direction_3N > 0, size_3[:, None], 0.0).astype(np.float32)
    exit_3N = (target_3N - origin_3[:, None]) / direction_3N
    axis_N = exit_3N.argmin(0)
    label_N = np.where(axis_N < 2, WALL, np.where(direction_3N[2] > 0, CEILING, FLOOR))
    return exit_3N.min(0), label_N


def _trace_ground(place: Outdoors, origin_3: np.ndarray, direction_3N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    down_N = -direction_3N[2]
    beyond = np.float32(100 * place.far)
    depth_N = np.where(down_N > 0, np.minimum(origin_3[2] / np.maximum(down_N, _TINY), beyond), np.float32(np.inf))
    label_N = np.where(down_N > 0, np.where(depth_N > place.far, FAR_GROUND, FLOOR), SKY)
    return depth_N, label_N


def trace(scene: Scene, direction_3N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First surface along rays from the camera.

    Returns:
        depth_N: float32 z-depth in scene units (not metres); inf on the sky.
        label_N: int16; SKY, FAR_GROUND (both without depth), FLOOR (or near ground), WALL, CEILING,
            FIRST_SOLID + i for the solid i.
    """
    origin_3 = np.array(scene.camera.position, np.float32)
    if isinstance(scene.place, Room):
        depth_N, label_N = _trace_room(scene.place, origin_3, direction_3N)
    else:
        depth_N, label_N = _trace_ground(scene.place, origin_3, direction_3N)
    label_N = label_N.astype(np.int16)
    for i, solid in enumerate(scene.solids):
        enter_N, exit_N = solid_interval(solid, origin_3[:, None], direction_3N)
        closer_N = (enter_N < exit_N) & (enter_N > 0) & (enter_N < depth_N)
        np.copyto(depth_N, enter_N, where=closer_N)
        label_N[closer_N] = FIRST_SOLID + i
    return depth_N, label_N


def occluded(scene: Scene, point_3N: np.ndarray, to_light_3N: np.ndarray) -> np.ndarray:
    """(N,) bool: whether a solid lies between each point and the light, at point + to_light for a lamp."""
    limit = 1.0 if scene.light.point else np.inf
    dark_N = np.zeros(point_3N.shape[1], bool)
    for solid in scene.solids:
        enter_N, exit_N = solid_interval(solid, point_3N, to_light_3N)
        dark_N |= (enter_N < exit_N) & (exit_N > 0) & (enter_N < limit)
    return dark_N
