"""The picture of the rooms of mf_jax and the table of their imports, made from the source: python docs/draw_rooms.py

Writes docs/rooms.svg and the table in docs/architecture.md. A room is a folder or a file directly below mf_jax/. In the
picture an arrow is an import, and one that follows from others (A to C, where A imports B and B imports C) is left out;
the table has them all. Nothing is imported: the files are only parsed.
"""

from __future__ import annotations

import ast
import itertools
import pathlib
from collections.abc import Iterator, Mapping
from html import escape

DOCS = pathlib.Path(__file__).resolve().parent
PACKAGE = "mf_jax"
BEGIN, END = "<!-- imports: written by docs/draw_rooms.py -->", "<!-- end of imports -->"

ROW, COLUMN, HEIGHT, MARGIN = 68, 30, 32, 16  # pixels: between layers, between boxes, of a box, around the picture
LETTER = 7.4  # width of a letter of the labels
BEND = 14  # width that an arrow takes where it passes a layer
SWEEPS = 40

Rooms = dict[str, set[str]]  # by room, the rooms that it imports
STYLE = """\
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; text-anchor: middle; fill: #1b2733; }
text.legend { font: 12px system-ui, sans-serif; text-anchor: start; fill: #45525e; }
rect { fill: #dfe9f5; stroke: #5b7fa6; }
rect.plain { fill: #e3f1e2; stroke: #6a9a67; }
path { fill: none; stroke: #8795a3; stroke-width: 1.2; }"""


def rooms(package: pathlib.Path) -> tuple[Rooms, dict[str, str], set[str]]:
    """What imports what in a package, from its source.

    Returns:
      Imports by room; labels by room ("data/", "train.py"); the rooms that know no jax: neither they nor a room that
      they import, over however many steps, imports jax, flax or optax.
    """
    imports: Rooms = {}
    labels: dict[str, str] = {}
    plain: set[str] = set()
    for path in sorted(package.rglob("*.py")):
        first = path.relative_to(package).parts[0]
        room = first.removesuffix(".py")
        if room not in imports:
            imports[room] = set()
            labels[room] = first if first.endswith(".py") else f"{first}/"
            plain.add(room)
        for name in _imported(ast.parse(path.read_text(encoding="utf-8"))):
            top, _, below = name.partition(".")
            if top in ("jax", "flax", "optax"):
                plain.discard(room)
            elif top == package.name and below:
                imports[room].add(below.split(".")[0])
    for room, others in imports.items():
        others &= imports.keys() - {room}  # names of __init__.py, such as mf_jax.load, are no rooms
    below = _below(imports)
    return imports, labels, {room for room in plain if below[room] <= plain}


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layers(imports: Mapping[str, set[str]]) -> dict[str, int]:
    """The longest chain of imports below each room: 0 for those that import none.

    Raises:
      ValueError: rooms that import each other in a circle.
    """
    level: dict[str, int] = {}

    def visit(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError(f"imports in a circle: {' -> '.join([*above[above.index(room) :], room])}")
        if room not in level:
            level[room] = max((visit(other, (*above, room)) + 1 for other in sorted(imports[room])), default=0)
        return level[room]

    for room in sorted(imports):
        visit(room, ())
    return level


def _below(imports: Mapping[str, set[str]]) -> Rooms:
    """All that a room imports, and what those import, and so on."""
    below: Rooms = {}
    for room in sorted(imports, key=layers(imports).get):
        below[room] = imports[room].union(*(below[other] for other in imports[room]))
    return below


def reduced(imports: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others, sorted."""
    below = _below(imports)
    return sorted(
        (room, other)
        for room, others in imports.items()
        for other in others
        if not any(other in below[between] for between in others - {other})
    )


def draw(imports: Mapping[str, set[str]], labels: Mapping[str, str], plain: set[str]) -> str:
    """The picture as SVG: layers from the rooms that import most down to those that import nothing."""
    level = layers(imports)
    top = max(level.values())
    rows: list[list[str]] = [[] for _ in range(top + 1)]
    for room in sorted(level):
        rows[top - level[room]].append(room)
    # An arrow over several layers bends in a point of each that it passes, which has a place there as rooms have.
    chains = []
    for room, other in reduced(imports):
        passed = [f"{room}>{other}@{row}" for row in range(top - level[room] + 1, top - level[other])]
        for row, point in enumerate(passed, start=top - level[room] + 1):
            rows[row].append(point)
        chains.append([room, *passed, other])
    links = [pair for chain in chains for pair in itertools.pairwise(chain)]
    widths = {point: BEND for chain in chains for point in chain[1:-1]}
    widths |= {room: round(len(labels[room]) * LETTER) + 22 for room in level}
    x = _places(_ordered(rows, links), links, widths)
    y = {point: MARGIN + HEIGHT // 2 + ROW * row for row, points in enumerate(rows) for point in points}

    right = round(max(x[room] + widths[room] / 2 for room in level)) + MARGIN
    bottom = y[rows[-1][0]] + HEIGHT // 2 + MARGIN + 52
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {bottom}" width="{right}" height="{bottom}">',
        f"<title>The rooms of {PACKAGE} and which imports which</title>",
        f"<style>\n{STYLE}\n</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0.5 L7,4 L0,7.5 z" style="fill:#8795a3;stroke:none"/></marker></defs>',
        f'<rect width="{right}" height="{bottom}" style="fill:#ffffff;stroke:none"/>',
    ]
    for chain in chains:
        lines.append(f'<path d="{_curve(chain, x, y)}" marker-end="url(#tip)"/>')
    for room in sorted(level):
        kind = ' class="plain"' if room in plain else ""
        left, upper = x[room] - widths[room] / 2, y[room] - HEIGHT / 2
        told = f"{labels[room]} imports {', '.join(labels[o] for o in sorted(imports[room])) or 'no other room'}"
        lines += [
            f"<g><title>{escape(told)}</title>",
            f'<rect{kind} x="{left:.1f}" y="{upper:.1f}" width="{widths[room]}" height="{HEIGHT}" rx="5"/>',
            f'<text x="{x[room]:.1f}" y="{y[room] + 4.5:.1f}">{escape(labels[room])}</text></g>',
        ]
    legend = bottom - MARGIN - 18
    lines += [
        f'<rect class="plain" x="{MARGIN}" y="{legend - 12}" width="18" height="13" rx="3"/>',
        f'<text class="legend" x="{MARGIN + 25}" y="{legend - 1}">knows no jax, nor does any room that it '
        "imports</text>",
        f'<text class="legend" x="{MARGIN}" y="{legend + 17}">Arrows are imports; those that follow from others '
        "are left out.</text>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _ordered(rows: list[list[str]], links: list[tuple[str, str]]) -> list[list[str]]:
    """The rows, each in the order of the sweep with the fewest crossings: by the mean place of its neighbours."""
    rows = [list(points) for points in rows]
    best, fewest = [list(points) for points in rows], _crossings(rows, links)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for i in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            fixed = {point: place for place, point in enumerate(rows[i - 1 if down else i + 1])}
            means = {}
            for place, point in enumerate(rows[i]):
                near = [fixed[b if a == point else a] for a, b in links if point in (a, b) and {a, b} & fixed.keys()]
                means[point] = sum(near) / len(near) if near else place
            rows[i].sort(key=means.get)
        if (crossings := _crossings(rows, links)) < fewest:
            best, fewest = [list(points) for points in rows], crossings
    return best


def _crossings(rows: list[list[str]], links: list[tuple[str, str]]) -> int:
    place = {point: (i, j) for i, points in enumerate(rows) for j, point in enumerate(points)}
    ends = [(place[a][0], place[a][1], place[b][1]) for a, b in links]
    return sum(i == k and (a - c) * (b - d) < 0 for (i, a, b), (k, c, d) in itertools.combinations(ends, 2))


def _places(rows: list[list[str]], links: list[tuple[str, str]], widths: Mapping[str, int]) -> dict[str, float]:
    """Centres along each row: near the mean of their neighbours, in order and apart."""
    x: dict[str, float] = {}
    for points in rows:
        edge = 0.0
        for point in points:
            x[point] = edge + widths[point] / 2
            edge += widths[point] + COLUMN
    near: dict[str, list[tuple[str, int]]] = {point: [] for point in x}
    for a, b in links:
        weight = (1, 2, 8)[(">" in a) + (">" in b)]  # long arrows run straight
        near[a].append((b, weight))
        near[b].append((a, weight))
    for _ in range(200):
        for points in rows:
            for j, point in enumerate(points):
                total = sum(weight for _, weight in near[point])
                wish = sum(x[other] * weight for other, weight in near[point]) / total if total else x[point]
                low = x[points[j - 1]] + _apart(points[j - 1], point, widths) if j else -1e9
                high = x[points[j + 1]] - _apart(point, points[j + 1], widths) if j + 1 < len(points) else 1e9
                x[point] = min(max(wish, low), max(high, low))
    left = min(x[point] - widths[point] / 2 for point in x) - MARGIN
    return {point: round(place - left, 1) for point, place in x.items()}


def _apart(a: str, b: str, widths: Mapping[str, int]) -> float:
    bends = (">" in a) + (">" in b)
    return (widths[a] + widths[b]) / 2 + (COLUMN, 10, 0)[bends]


def _curve(chain: list[str], x: Mapping[str, float], y: Mapping[str, int]) -> str:
    """From the lower edge of the first box to the upper edge of the last, upright at every point between."""
    points = [(x[chain[0]], y[chain[0]] + HEIGHT / 2)]
    for bend in chain[1:-1]:
        points += [(x[bend], y[bend] - HEIGHT / 2), (x[bend], y[bend] + HEIGHT / 2)]
    points.append((x[chain[-1]], y[chain[-1]] - HEIGHT / 2))
    parts = [f"M{points[0][0]:.1f},{points[0][1]:.1f}"]
    for (a, b), (c, d) in itertools.pairwise(points):
        middle = (b + d) / 2
        parts.append(f"C{a:.1f},{middle:.1f} {c:.1f},{middle:.1f} {c:.1f},{d:.1f}")
    return " ".join(parts)


def table(imports: Mapping[str, set[str]], labels: Mapping[str, str]) -> str:
    """Every import, in Markdown, the rooms that import nothing first."""
    level = layers(imports)
    lines = ["| room | imports |", "|---|---|"]
    for room in sorted(imports, key=lambda room: (level[room], room)):
        others = sorted(imports[room], key=lambda other: (level[other], other))
        lines.append(f"| `{labels[room]}` | {' '.join(f'`{labels[other]}`' for other in others) or 'nothing'} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, rows: str) -> str:
    """A page with another table between its two markers."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{rows}\n{END}{after}"


def main() -> None:
    imports, labels, plain = rooms(DOCS.parent / PACKAGE)
    (DOCS / "rooms.svg").write_text(draw(imports, labels, plain), encoding="utf-8")
    page = DOCS / "architecture.md"
    page.write_text(with_table(page.read_text(encoding="utf-8"), table(imports, labels)), encoding="utf-8")


if __name__ == "__main__":
    main()
