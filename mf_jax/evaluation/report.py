"""The report of an evaluation: results.json, per_image.csv, and a table for the terminal.

Averages are per image first, then over images, as Marigold and MoGe do. A row is (key, scores) with the scores that
`protocols.score` returned: None marks an image without any valid pixel, which is counted and enters no mean.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mf_jax.storage.atomic_file import write_bytes

MEANS = ("abs_rel", "delta1", "constant_abs_rel", "constant_delta1", "negative_fraction", "nonfinite_fraction")
Rows = Sequence[tuple[str, Mapping[str, Mapping[str, float]] | None]]


def summarise(rows: Rows, checkpoint_step: int | None, settings: Mapping) -> dict:
    """Averages the scores of all images.

    Returns:
      {protocol: {abs_rel, delta1, constant_abs_rel, constant_delta1, negative_fraction, nonfinite_fraction, images},
      ..., checkpoint_step, skipped_all_missing, **settings}. With every image skipped there is no protocol entry.

    Raises:
      ValueError: there is no row, rows were scored under different protocols, or a setting has a reserved name.
    """
    if not rows:
        raise ValueError("nothing was evaluated: there is not a single row to average")
    scored = [scores for _, scores in rows if scores is not None]
    protocols = list(scored[0]) if scored else []
    for key, scores in rows:
        if scores is not None and list(scores) != protocols:
            raise ValueError(f"{key} was scored under {list(scores)}, the others under {protocols}")
    results: dict = {}
    for protocol in protocols:
        means = {name: sum(scores[protocol][name] for scores in scored) / len(scored) for name in MEANS}
        results[protocol] = {**means, "images": len(scored)}
    results |= {"checkpoint_step": checkpoint_step, "skipped_all_missing": len(rows) - len(scored)}
    clash = sorted(results.keys() & settings.keys())
    if clash:
        raise ValueError(f"settings may not be called {', '.join(clash)}: the report uses these names itself")
    return results | dict(settings)


def write_report(directory: str | Path, rows: Rows, checkpoint_step: int | None, settings: Mapping) -> dict:
    """Write per_image.csv, then results.json (each under a temporary name, then renamed); returns the results.

    Args:
      directory: made if absent.
      rows: (key, scores) per image, see the top of this file.
      checkpoint_step: of the evaluated weights; None where there is no checkpoint.
      settings: everything needed to repeat the evaluation (data, resolution, steps, seed, ensemble, ...); JSON types.
    """
    results = summarise(rows, checkpoint_step, settings)
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    write_bytes(Path(directory) / "per_image.csv", _csv(rows).encode())
    write_bytes(Path(directory) / "results.json", text.encode())
    return results


def _csv(rows: Rows) -> str:
    columns: dict[tuple[str, str], None] = {}
    for _, scores in rows:
        for protocol, values in (scores or {}).items():
            columns |= {(protocol, name): None for name in values}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", "skipped"] + [f"{protocol}/{name}" for protocol, name in columns])
    for key, scores in rows:
        cells = ["" if scores is None else repr(scores[protocol][name]) for protocol, name in columns]
        writer.writerow([key, int(scores is None), *cells])
    return out.getvalue()


def table(results: Mapping) -> str:
    """The results as text: AbsRel and delta1 in percent beside the best constant map's, one line per protocol."""
    lines = [f"{'protocol':<14}{'AbsRel':>10}{'constant':>10}{'delta1':>10}{'constant':>10}{'images':>8}"]
    for protocol, values in results.items():
        if isinstance(values, Mapping) and "constant_abs_rel" in values:
            shares = ("abs_rel", "constant_abs_rel", "delta1", "constant_delta1")
            cells = "".join(f"{100 * values[name]:>10.2f}" for name in shares)
            lines.append(f"{protocol:<14}{cells}{values['images']:>8}")
    lines.append("in percent; AbsRel: lower is better, delta1: higher; constant: the best constant map, same protocol")
    if results["skipped_all_missing"]:
        lines.append(f"{results['skipped_all_missing']} images without any valid depth were skipped")
    return "\n".join(lines)
