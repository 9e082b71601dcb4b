"""Captions of rendered scenes: one short sentence that is true of the pixels."""

import numpy as np

from mf_jax.data.procedural import raycast
from mf_jax.data.procedural.scene import Room, Scene

MAX_BYTES = 96
MIN_SHARE = 0.005

_NUMBERS = ("", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PLURALS = {"box": "boxes", "sphere": "spheres", "cylinder": "cylinders", "wall": "walls"}


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _count(color: str, noun: str, number: int) -> str:
    if number == 1:
        return _with_article(f"{color} {noun}")
    return f"{_NUMBERS[number]} {color} {_PLURALS[noun]}"


def _list(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def caption(scene: Scene, label_HW: np.ndarray) -> str:
    """The caption: names the place and the solids that cover at least MIN_SHARE of the image, largest first.

    Args:
        label_HW: labels of `raycast.trace` of the image.

    Returns:
        At most MAX_BYTES of ASCII; the smallest things are left out where it would be longer.
    """
    share = np.bincount(label_HW.ravel() - raycast.SKY) / label_HW.size

    def seen(label):
        return bool(label - raycast.SKY < share.size and share[label - raycast.SKY] >= MIN_SHARE)

    order = [i for i in range(len(scene.solids)) if seen(raycast.FIRST_SOLID + i)]
    order.sort(key=lambda i: -share[raycast.FIRST_SOLID + i - raycast.SKY])
    numbers: dict[tuple[str, str], int] = {}
    for i in order:
        name = scene.solids[i].color_name, scene.solids[i].noun
        numbers[name] = numbers.get(name, 0) + 1
    things = [_count(*name, number) for name, number in numbers.items()]

    place = scene.place
    if isinstance(place, Room):
        subject, after = "a room", ""
        parts = [place.walls.name] if seen(raycast.WALL) else []
        parts += [_with_article(place.floor.name)] if seen(raycast.FLOOR) else []
    else:
        subject, parts = _with_article(place.ground.name), []
        after = f" under {_with_article(place.sky_name)} sky" if seen(raycast.SKY) else ""
    for keep in range(len(things), -1, -1):
        shown = parts + things[:keep]
        text = subject + (f" with {_list(shown)}" if shown else "") + after
        if len(text) <= MAX_BYTES:
            break
    return text
