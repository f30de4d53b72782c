"""One HTML page that needs nothing but itself: no network, and no script or style but its own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lad_pl.analysis.plot_style import inline_svg
from lad_pl.analysis.report.gallery import Gallery
from lad_pl.analysis.report.headline import make_headline
from lad_pl.analysis.report.reported_run import BASELINE, ReportedRun
from lad_pl.analysis.report.sections import Section
from lad_pl.analysis.table import Table


def render_page(run: ReportedRun, results: Table, sections: Sequence[Section], gallery: Gallery | None) -> str:
    """The page.

    Captions and file names come from others: the template escapes whatever it prints, the prompts travel as JSON in
    which no ``<`` is left and become text nodes, and the content security policy names the hashes of our own script
    and style and allows no other.
    """
    style, script = (
        files("lad_pl.analysis.report").joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js")
    )
    environment = Environment(
        loader=PackageLoader("lad_pl.analysis.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    return environment.get_template("page.html.j2").render(
        run=run,
        baseline=BASELINE,
        headline=make_headline(run),
        results=results,
        sections=sections,
        svg={plot.name: inline_svg(plot) for section in sections for plot in section.plots},
        gallery=gallery,
        gallery_note=_gallery_note(run, gallery) if gallery else "",
        gallery_json=_json_for_html(gallery.content) if gallery else "",
        facts=_facts(run),
        settings=json.dumps(run.report["settings"], indent=2, ensure_ascii=False),
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )


def _gallery_note(run: ReportedRun, gallery: Gallery) -> str:
    orders = f"each under its {run.prompts.num_permutations} orders"
    if gallery.shown == gallery.total:
        return f"All {gallery.total} samples, {orders}."
    return (
        f"{gallery.shown} of {gallery.total} samples, {orders}: in turn one that {run.headline} breaks, fixes, leaves "
        "wrong and leaves correct, as far as there are any, so this is no fair sample of the run. The other "
        f"{gallery.total - gallery.shown} are left out; --gallery sets how many are shown."
    )


def _facts(run: ReportedRun) -> dict[str, str]:
    report, settings = run.report, run.report["settings"]
    readout = settings.get("readout", {})
    facts = {
        "model": report.get("model"),
        "weights": settings.get("weights"),
        "run folder": run.run.path,
        "stage": run.run.stage,
        "tested": f"{report['num_samples']} samples under {report['num_permutations']} orders",
        "images in a prompt": run.num_candidates,
        "calibrated on": f"{report['num_calibration_samples']} samples under {run.num_candidates} cyclic shifts",
        "held back": f"{report.get('num_held_back', 0)} samples that ask a calibration sample's question",
        "captured layers": ", ".join(map(str, report.get("layers", []))),
        "readout": ", ".join(f"{name} {value}" for name, value in readout.items()),
        "images": report.get("images"),
        "precision": settings.get("dtype"),
        "attention": settings.get("attn_implementation"),
        "versions": ", ".join(f"{name} {value}" for name, value in _versions(run).items()),
        "measured": _when(run),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _versions(run: ReportedRun) -> Mapping[str, str]:
    """The versions of the libraries that the run was made with, where run.json records them."""
    try:
        recorded = json.loads((run.run.path / "run.json").read_text(encoding="utf-8"))
        return dict(recorded[run.run.folder.predictions(run.run.stage).name]["versions"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _when(run: ReportedRun) -> str:
    written = run.run.folder.metrics(run.run.stage).stat().st_mtime
    return datetime.fromtimestamp(written, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _json_for_html(content: Any) -> str:
    """JSON that can stand in a ``script`` element: nothing in it can end the element or open another."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _hash(text: str) -> str:
    """The hash by which a content security policy allows a script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
