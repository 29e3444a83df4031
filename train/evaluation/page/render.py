"""From run folders to one HTML file."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from shards.files import write_atomically
from train.evaluation.metrics import MEANINGS
from train.evaluation.page import headline
from train.evaluation.page.reproduce import command_line
from train.evaluation.page.run_data import RunData, read_run

PAGE = "report.html"
_ASSETS = Path(__file__).parent / "assets"


def write_page(run_dirs: Sequence[Path], path: Path) -> None:
    """Write the page of these runs.

    Raises:
        FileNotFoundError: one of the folders holds no run.
    """
    text = render([read_run(run_dir) for run_dir in run_dirs])
    write_atomically(path, text.encode(errors="backslashreplace"))  # names may hold half letters


def render(runs: Sequence[RunData]) -> str:
    """The HTML. Names from data are always text: Jinja escapes them here, and the page's script never parses them.

    Class thumbnails are stored once if runs share their classes.
    """
    loader = jinja2.FileSystemLoader(_ASSETS)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = [run.shown for run in runs]
    for number, one in enumerate(shown):
        if any(one.get("classes", {}).get("name") == other.get("classes", {}).get("name") for other in shown[:number]):
            one["classPictures"] = {}
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared"
    found = headline.rows(runs)
    keys = {name: key for name, key in headline.COLUMNS.items() if any(_has(run, key) for run in runs)}
    return environment.get_template("page.html.j2").render(
        title=title,
        reported=" or ".join(sorted({run.reported for run in runs})),
        runs=runs,
        rows=found,
        columns=list(headline.COLUMNS),
        meanings={name: MEANINGS[key] for name, key in keys.items()},
        warnings=headline.differences(runs),
        details=[_details(run) for run in runs],
        data=Markup(_json(shown)),
        style=Markup((_ASSETS / "page.css").read_text(encoding="utf-8")),
        scripts=[_script(name) for name in ("vega.min.js", "vega-lite.min.js", "page.js")],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _script(name: str) -> Markup:
    """A script of ours or a library's, without the source map address, which a browser may request."""
    lines = (_ASSETS / name).read_text(encoding="utf-8").splitlines()
    return Markup("\n".join(line for line in lines if not line.startswith("//# sourceMappingURL")))


def _has(run: RunData, key: str) -> bool:
    return run.measured.get("last", {}).get(key) is not None


def _json(value: Any) -> str:
    """JSON that no browser interprets as markup, whatever names it contains."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _details(run: RunData) -> dict[str, Any]:
    """Data, cost, machine, versions and command of a run, as far as known."""
    r = run.result
    facts: list[tuple[str, str]] = []
    for role, data in r.get("data", {}).items():
        words = f"{data['samples']:,} images of {data['classes']:,} classes, imbalance {data['imbalance_ratio']:g}"
        facts.append((f"{role} set", f"{data['name']} ({data['split']}): {words}; checksum {data['checksum']}"))
    if r:
        replaced = {name: len(reasons) for name, reasons in r.get("replaced_samples", {}).items()}
        words = ", ".join(f"{count} of {name}" for name, count in replaced.items()) or "none"
        facts.append(("bad images replaced in training", words))
        facts.append(("group rule", str(r.get("group_rule"))))
        facts.append(("hardware", str(r.get("hardware"))))
        facts.append(("training time", f"{r['seconds']:,.0f} s" if "seconds" in r else "unknown"))
    cost = r.get("cost", {})
    if cost:
        facts.append(("speed", f"{cost['images_per_second']:g} trained images per second"))
        facts.append(("peak memory", f"{cost['peak_memory_gb']:g} GB"))
    facts += [(f"{name} version", text) for name, text in r.get("versions", {}).items()]
    facts.append(("code", str(r.get("commit") or "no commit noted")))
    options = r.get("options")
    return {"facts": facts, "command": command_line(options) if options else None}
