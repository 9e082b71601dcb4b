"""Rendering of a scene: surface patterns, one light with hard shadows, sky and haze over the traced geometry.

Legend: N pixels (or a subset of them), 3 world axes or colour channels; H, W height and width in pixels.
"""

from typing import NamedTuple

import numpy as np

from mf_jax.data.procedural import raycast
from mf_jax.data.procedural.scene import Outdoors, Room, Scene, Texture
from mf_jax.data.procedural.surface import Surface, dot, place_surface, solid_surface
from mf_jax.data.procedural.textures import fractal_noise, noise_table, pattern


class Rendering(NamedTuple):
    """A rendered view of a scene.

    Attributes:
        image: (H, W, 3) uint8. depth: (H, W) float32 metres, 0 where missing.
        label: (H, W) int16, see `raycast.trace`. intrinsics: (4,) float32, see `raycast.intrinsics_of`.
    """

    image: np.ndarray
    depth: np.ndarray
    label: np.ndarray
    intrinsics: np.ndarray


class _Hits(NamedTuple):
    """Pixels that see a surface. The steps are the change of a ray direction from one pixel to the next."""

    direction_3N: np.ndarray
    depth_N: np.ndarray
    label_N: np.ndarray
    point_3N: np.ndarray
    step_u_3: np.ndarray
    step_v_3: np.ndarray


def _column(vector) -> np.ndarray:
    return np.array(vector, np.float32)[:, None]


def _footprints(hits: _Hits, pick_N: np.ndarray, surface: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (N,) that one pixel covers along the pattern axes: derivatives of the hit point by the pixel.

    The hit point moves in its plane by depth * (step - direction * (normal . step) / (normal . direction)).
    """
    direction_3N, normal_3N = hits.direction_3N[:, pick_N], surface.normal_3N
    slope_N = np.minimum(dot(normal_3N, direction_3N), np.float32(-1e-3))
    depth_N = hits.depth_N[pick_N]
    sink_u_N, sink_v_N = dot(normal_3N, hits.step_u_3) / slope_N, dot(normal_3N, hits.step_v_3) / slope_N

    def length(axis_3N):
        along_N = dot(axis_3N, direction_3N)
        moved_u_N = np.abs(dot(axis_3N, hits.step_u_3) - along_N * sink_u_N)
        return depth_N * (moved_u_N + np.abs(dot(axis_3N, hits.step_v_3) - along_N * sink_v_N))

    return length(surface.u_axis_3N), length(surface.v_axis_3N)


def _paint(texture: Texture, table: np.ndarray, hits: _Hits, pick_N: np.ndarray, surface: Surface) -> np.ndarray:
    """Unlit colours (3, N) of the picked pixels."""
    color_31, accent_31 = _column(texture.color), _column(texture.accent)
    if texture.kind == "plain":
        return color_31
    cell = np.float32(1 / texture.size)
    du_N, dv_N = _footprints(hits, pick_N, surface)
    share_N = pattern(texture.kind, table, surface.u_N * cell, surface.v_N * cell, du_N * cell, dv_N * cell)
    return color_31 + (accent_31 - color_31) * share_N


def _hang_pictures(room: Room, point_3N: np.ndarray, color_3N: np.ndarray) -> None:
    """Paints the room's pictures over points on its walls, in place."""
    for picture in room.pictures:
        along_N, up_N = point_3N[1 - picture.axis], point_3N[2]
        inside_N = np.abs(point_3N[picture.axis] - picture.side * room.size[picture.axis]) < 1e-3
        inside_N &= (along_N > picture.span[0]) & (along_N < picture.span[1])
        inside_N &= (up_N > picture.height[0]) & (up_N < picture.height[1])
        color_3N[:, inside_N] = _column(picture.color)


def _corner_shade(room: Room, point_3N: np.ndarray) -> np.ndarray:
    """Darkening (N,) of room surfaces near their edges; the division undoes a face's own factor."""
    gap_3N = np.minimum(point_3N, _column(room.size) - point_3N)
    return np.prod(1 - 0.3 * np.exp(-4 * gap_3N), axis=0) / np.float32(0.7)


def _illuminate(scene: Scene, hits: _Hits, normal_3N: np.ndarray) -> np.ndarray:
    """Light (3, N) on the hits: ambient, stronger from above, and Lambert's law with hard shadows."""
    light, point_3N = scene.light, hits.point_3N
    vector_31 = _column(light.vector)
    to_light_3N = vector_31 - point_3N if light.point else np.broadcast_to(vector_31, point_3N.shape)
    square_N = dot(to_light_3N, to_light_3N)
    facing_N = np.maximum(dot(normal_3N, to_light_3N), 0) / np.sqrt(square_N)
    if light.point:
        facing_N /= 1 + square_N / np.float32(light.reach**2)
    lit_N = np.flatnonzero(facing_N > 0)
    start_3N = point_3N[:, lit_N] + normal_3N[:, lit_N] * (1e-3 * hits.depth_N[lit_N])
    dark_N = raycast.occluded(scene, start_3N, to_light_3N[:, lit_N])
    facing_N[lit_N[dark_N]] *= np.float32(1 - light.shadow)
    return _column(light.ambient) * (0.85 + 0.15 * normal_3N[2]) + _column(light.direct) * facing_N


def _shade(scene: Scene, table: np.ndarray, hits: _Hits) -> np.ndarray:
    """Colours (3, N) of surfaces."""
    place = scene.place
    color_3N, normal_3N = np.empty_like(hits.direction_3N), np.empty_like(hits.direction_3N)

    def paint(pick_N, surface_of, shape, texture):
        if pick_N.size:
            surface = surface_of(shape, hits.point_3N[:, pick_N])
            normal_3N[:, pick_N] = surface.normal_3N
            color_3N[:, pick_N] = _paint(texture, table, hits, pick_N, surface)

    for i, solid in enumerate(scene.solids):
        pick_N = np.flatnonzero(hits.label_N == raycast.FIRST_SOLID + i)
        paint(pick_N, solid_surface, solid, solid.texture)
    if isinstance(place, Room):
        for label, texture in enumerate((place.floor, place.walls, place.ceiling), raycast.FLOOR):
            paint(np.flatnonzero(hits.label_N == label), place_surface, place, texture)
        pick_N = np.flatnonzero(hits.label_N < raycast.FIRST_SOLID)
        point_3N, inner_3N = hits.point_3N[:, pick_N], color_3N[:, pick_N]
        _hang_pictures(place, point_3N, inner_3N)
        color_3N[:, pick_N] = inner_3N * _corner_shade(place, point_3N)
        return color_3N * _illuminate(scene, hits, normal_3N)
    paint(np.flatnonzero(hits.label_N < raycast.FIRST_SOLID), place_surface, place, place.ground)
    color_3N *= _illuminate(scene, hits, normal_3N)
    haze_N = 1 - np.exp(-place.haze / place.far * hits.depth_N)
    return color_3N + (_column(place.horizon) - color_3N) * haze_N


def _sky(place: Outdoors, table: np.ndarray, direction_3N: np.ndarray) -> np.ndarray:
    """Colours (3, N) of rays that go up: horizon to zenith, with clouds on a distant plane."""
    x_N, y_N, z_N = direction_3N / np.sqrt(dot(direction_3N, direction_3N))
    horizon_31, zenith_31 = _column(place.horizon), _column(place.zenith)
    color_3N = horizon_31 + (zenith_31 - horizon_31) * np.sqrt(z_N)
    if place.clouds > 0:
        lift_N = 1.2 / (z_N + 0.12)
        cloud_N = fractal_noise(table, x_N * lift_N, y_N * lift_N, np.float32(0.0))
        cloud_N = np.clip(2.5 * (cloud_N - 1 + place.clouds), 0, 1) * np.clip(6 * z_N, 0, 1)
        color_3N += (np.float32(0.93) - color_3N) * (0.8 * cloud_N)
    return color_3N


def render(scene: Scene, resolution: tuple[int, int]) -> Rendering:
    """Renders a scene at (H, W) pixels, with one ray through each pixel centre."""
    height, width = resolution
    table = noise_table(scene.noise_seed)
    intrinsics = raycast.intrinsics_of(scene.camera, resolution)
    direction_3N = raycast.camera_rays(scene.camera, resolution)
    depth_N, label_N = raycast.trace(scene, direction_3N)
    right_3, down_3, _ = scene.camera.rotation().T.astype(np.float32)

    seen_N = label_N != raycast.SKY
    hit_N = slice(None) if seen_N.all() else np.flatnonzero(seen_N)
    hit_direction_3N, hit_depth_N = direction_3N[:, hit_N], depth_N[hit_N]
    point_3N = _column(scene.camera.position) + hit_direction_3N * hit_depth_N
    step_u_3, step_v_3 = right_3 / intrinsics[0], down_3 / intrinsics[1]
    hits = _Hits(hit_direction_3N, hit_depth_N, label_N[hit_N], point_3N, step_u_3, step_v_3)
    color_3N = np.empty_like(direction_3N)
    color_3N[:, hit_N] = _shade(scene, table, hits)
    if not seen_N.all():
        assert isinstance(scene.place, Outdoors), "a room is closed"
        color_3N[:, ~seen_N] = _sky(scene.place, table, direction_3N[:, ~seen_N])

    image_N3 = (np.clip(color_3N, 0, 1) * 255 + 0.5).astype(np.uint8).T
    metres_N = np.where(label_N >= raycast.FLOOR, depth_N * np.float32(scene.scale), np.float32(0.0))
    return Rendering(
        np.ascontiguousarray(image_N3).reshape(height, width, 3),
        metres_N.reshape(height, width),
        label_N.reshape(height, width),
        intrinsics,
    )
