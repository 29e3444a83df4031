"""`--help` of a run: common options first, then the method's own, and options needed only by papers last."""

import shutil
import textwrap
from collections.abc import Mapping, Sequence

from train.early import chosen_method
from train.methods.presets import METHOD_PRESETS, PART_FOLDERS
from train.option_sources import Option, method_options, run_options, whole_methods

COMMON = (
    "data.train",
    "data.test",
    "data.validation",
    "data.preset",
    "data.image_size",
    "model.name",
    "model.pretrained",
    "optimizer.lr",
    "epochs",
    "batch_size",
    "seed",
    "device",
    "mixed_precision",
    "run_dir",
    "resume",
    "trackers",
    "dry_run",
)
PAPERS = (
    "data.meta",
    "optimizer.nesterov",
    "schedule.warmup_overshoots",
    "schedule.warmup_start",
    "schedule.late",
    "schedule.final_lr",
    "schedule.ends_at_zero",
    "model.width",
)
_HEAD = """usage: {program} [--recipe FILE] [--OPTION VALUE …]

Train a classifier on a long-tailed shard set.

examples:
  {program} --recipe digits-lt/bs-cmo --epochs 5
  {program} --data.train data/mine/train --data.test data/mine/test \\
      --model.name resnet50 --model.pretrained true --method.name vanilla --method.loss bs --epochs 30

Option names may use - or _. Options can also be put into a YAML file for --recipe (`longtail recipes` lists the
included ones); the command line takes precedence. --help shows the options of the method chosen by --method.name or
the recipe.
"""


def text(program: str, arguments: Sequence[str]) -> str:
    """The complete help, for the method chosen on a normalised command line."""
    chosen = chosen_method(arguments)
    name = chosen.pop("name", "cmo")
    options = run_options()
    common = [Option("recipe", "Path", None, "a YAML file with any of the options below, or DATASET/METHOD")]
    common += [
        Option("method.name", "str", "'cmo'", "training method; `longtail methods` lists them with their papers")
    ]
    common += [options[key] for key in COMMON if key in options]
    papers = [options[key] for key in PAPERS if key in options]
    rest = [option for key, option in options.items() if key not in (*COMMON, *PAPERS)]
    of_method = list(_of_method(name, chosen).values())
    groups = {
        "common options": common,
        f"options of the method {name}": of_method,
        "further options": rest,
        "options needed by single papers": papers,
    }
    return "\n".join([_HEAD.format(program=program), *(_group(title, group) for title, group in groups.items())])


def _of_method(name: str, chosen: Mapping[str, str]) -> dict[str, Option]:
    if name in whole_methods():
        return method_options(whole=name)
    preset = METHOD_PRESETS.get(name)
    if preset is None:
        return {}
    parts = {kind: chosen.get(kind, getattr(preset, kind)) for kind in PART_FOLDERS}
    found = method_options(parts)
    for kind, part in parts.items():
        found[f"method.{kind}"] = _with_default(found[f"method.{kind}"], part)
    for option, value in preset.defaults.items():
        if f"method.{option}" in found:
            found[f"method.{option}"] = _with_default(found[f"method.{option}"], value)
    return found


def _with_default(option: Option, value: object) -> Option:
    return Option(option.name, option.type, repr(value), option.text)


def _group(title: str, options: Sequence[Option]) -> str:
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    lines = [f"{title}:"]
    for option in options:
        kind = option.type.replace("Literal[", "[").replace("'", "")
        default = "required" if option.default is None else f"default: {option.default}"
        note = "" if option.name in ("recipe", "method.name") and option.default is None else f" ({default})"
        lines.append(f"  --{option.name} {kind}{note}")
        lines += textwrap.wrap(option.text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"
