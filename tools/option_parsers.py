"""The options of the commands that need torch for their work, but not to say what they take.

`longtail` reads them here first, so that a wrong option or `--help` is answered at once.
"""

from argparse import SUPPRESS

from shards.commandline import OldPresetName, Parser, finite_number, home_path, whole_number
from shards.object_store import set_location

EVALUATE = """Evaluate checkpoints of runs and released ones.

With several checkpoints of one method, for example of several seeds, mean ± standard deviation too.
"""
PREDICT = """Classes of image files.

Files that cannot be read are skipped and listed; the exit status is then 4.
"""
EXPORT = "Take a trained network elsewhere: timm's layout and a model card, ONNX, torch.export."
REPORT = "One page to read in a browser, for one run or several."

# What an exported file does with images itself, see tools/export.py.
INSIDE = ("nothing", "normalise", "resize")


def evaluate_parser() -> Parser:
    """`tools.evaluate`."""
    parser = Parser(prog="python -m tools.evaluate", description=EVALUATE)
    add = parser.add_argument
    file = "a checkpoint or the folder of a run, or a file as released"
    add("--checkpoint", type=home_path, nargs="+", required=True, metavar="FILE|RUN", help=file)
    add("--data", required=True, metavar="DIR|URL", help="shard set to evaluate on")
    counts = "training shard set, or its class counts (default: the run's)"
    add("--train-counts", type=set_location, metavar="DIR|URL|JSON", help=counts)
    add("--validation", type=set_location, metavar="DIR|URL", help="shard set to fit the temperature of ECE scaled on")
    _add_shared(parser)
    crops_help = "one crop of each image, the mean of five, or both: --crops 1 5 (default: one)"
    add("--crops", type=int, nargs="+", default=[1], choices=(1, 5), help=crops_help)
    add("--preset", help="evaluation view and normalisation by name (default: the run's; the usual one for a release)")
    add("--recipe", dest="preset", action=OldPresetName, help=SUPPRESS)
    at_least_none = whole_number(0)
    many, few = "many: at least N training samples (default: 101)", "few: at most N (default: 19; some trainers: 20)"
    add("--many-min", type=at_least_none, default=101, metavar="N", help=many)
    add("--few-max", type=at_least_none, default=19, metavar="N", help=few)
    norm = "divide class vectors by their norm to this power (Kang et al.)"
    add("--tau-norm", type=finite_number, metavar="TAU", help=norm)
    prior = "subtract TAU · log prior from the logits (Menon et al.)"
    add("--logit-adjustment", type=finite_number, metavar="TAU", help=prior)
    add("--batch-size", type=whole_number(1), default=256, help="images at once (default: 256)")
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add("--executor", default="auto", choices=("auto", "dali", "resident", "reference"), help="who decodes")
    add("--out", type=home_path, metavar="DIR", help="where to write (default: runs/evaluation/RUN-on-DATA)")
    return parser


def predict_parser() -> Parser:
    """`tools.predict`."""
    parser = Parser(prog="python -m tools.predict", description=PREDICT)
    add = parser.add_argument
    add(
        "images",
        type=home_path,
        nargs="+",
        metavar="IMAGE|FOLDER|SET",
        help="files, patterns, folders to search for images, shard sets",
    )
    file = "a checkpoint or the folder of a run, or a file as released"
    add("--checkpoint", type=home_path, required=True, metavar="FILE|RUN", help=file)
    names = "shard set with the names of the classes (default: the run's)"
    add("--class-names", type=set_location, metavar="DIR|URL", help=names)
    _add_shared(parser)
    add("--train-counts", type=set_location, metavar="DIR|URL|JSON", help="for --test-prior train (default: the run's)")
    add("--preset", help="evaluation view and normalisation by name (default: the run's; the usual one for a release)")
    add("--recipe", dest="preset", action=OldPresetName, help=SUPPRESS)
    add("--top", type=whole_number(1), default=5, help="classes per image in the file (default: 5)")
    add("--batch-size", type=whole_number(1), default=64, help="images at once (default: 64)")
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add("--out", type=home_path, metavar="FILE", help="write .csv, .json or .jsonl; its folder is made")
    add("--jsonl", action="store_true", help="print one JSON object per image, with all of --top")
    add("--overwrite", action="store_true", help="replace the file of --out")
    return parser


def export_parser() -> Parser:
    """`tools.export`."""
    parser = Parser(prog="python -m tools.export", description=EXPORT)
    add = parser.add_argument
    add("checkpoint", type=home_path, metavar="FILE|RUN", help="a checkpoint or the folder of a run, or as released")
    add("--out", type=home_path, required=True, metavar="DIR", help="folder to write")
    add("--formats", nargs="*", default=[], choices=("onnx", "torch-export"), help="beside timm's layout")
    inside_help = "what model.onnx and model.pt2 do themselves: take network input, or normalise, or resize too"
    add("--inside", choices=INSIDE, default="nothing", help=inside_help)
    add("--class-names", type=home_path, metavar="DIR", help="shard set with the names and sizes of the classes")
    add("--preset", help="evaluation view and normalisation by name (default: the run's; the usual one for a release)")
    _add_weights(parser)
    add("--title", help="of the model card (default: the folder's name)")
    add("--license", help="of the model card, as the Hub names it: apache-2.0, cc-by-nc-4.0 …")
    add("--push", metavar="USER/NAME", help="upload the folder to the Hugging Face Hub")
    add("--private", action="store_true", help="make the pushed repository private")
    return parser


def report_parser() -> Parser:
    """`tools.report`."""
    parser = Parser(prog="python -m tools.report", description=REPORT)
    out_help = "the file (default: report.html in the run's folder, or here for several)"
    parser.add_argument("run_dirs", nargs="+", type=home_path, metavar="RUN_DIR")
    parser.add_argument("--out", type=home_path, metavar="FILE", help=out_help)
    return parser


def _add_shared(parser: Parser) -> None:
    """What evaluation and prediction share."""
    parser.add_argument(
        "--test-prior",
        default="uniform",
        metavar="uniform|train|FILE",
        help="class shares where the network is used: uniform, as in training, or a JSON list (default: %(default)s)",
    )
    _add_weights(parser)


def _add_weights(parser: Parser) -> None:
    parser.add_argument(
        "--weights", type=home_path, metavar="FILE", help="pretrained weights of a tuned checkpoint, if they have moved"
    )
