"""The options of commands that need torch to run, but not to parse their command lines.

`longtail` parses them here first: wrong options and `--help` are answered at once.
"""

from argparse import SUPPRESS

from shards.commandline import OldPresetName, Parser, finite_number, home_path, whole_number
from shards.object_store import set_location

EVALUATE = """Evaluate checkpoints of runs and released ones.

For several checkpoints of one method, for example with different seeds, it also reports mean ± standard deviation.
"""
PREDICT = """Classify image files.

Unreadable files are skipped and listed; the exit status is then 4.
"""
EXPORT = "Export a trained network: timm's layout and a model card, ONNX, torch.export."
REPORT = "Write one HTML page for one run or several."

# The image processing inside an exported file, see tools/export.py.
INSIDE = ("nothing", "normalise", "resize")


def evaluate_parser() -> Parser:
    """`tools.evaluate`."""
    parser = Parser(prog="python -m tools.evaluate", description=EVALUATE)
    add = parser.add_argument
    file = "a checkpoint, a run folder, or a checkpoint released by a paper's authors"
    add("--checkpoint", type=home_path, nargs="+", required=True, metavar="FILE|RUN", help=file)
    add("--data", required=True, metavar="DIR|URL", help="shard set to evaluate on")
    counts = "training shard set, or its class counts (default: the run's)"
    add("--train-counts", type=set_location, metavar="DIR|URL|JSON", help=counts)
    add(
        "--validation", type=set_location, metavar="DIR|URL", help="shard set for fitting the temperature of ECE scaled"
    )
    _add_shared(parser)
    crops_help = "one crop of each image, the mean of five, or both: --crops 1 5 (default: one)"
    add("--crops", type=int, nargs="+", default=[1], choices=(1, 5), help=crops_help)
    add(
        "--preset",
        help="name of the evaluation view and normalisation (default: the run's; for a release, the usual one)",
    )
    add("--recipe", dest="preset", action=OldPresetName, help=SUPPRESS)
    at_least_none = whole_number(0)
    many, few = "many: at least N training samples (default: 101)", "few: at most N (default: 19; some papers: 20)"
    add("--many-min", type=at_least_none, default=101, metavar="N", help=many)
    add("--few-max", type=at_least_none, default=19, metavar="N", help=few)
    norm = "divide class vectors by their norm to this power (Kang et al.)"
    add("--tau-norm", type=finite_number, metavar="TAU", help=norm)
    prior = "subtract TAU · log prior from the logits (Menon et al.)"
    add("--logit-adjustment", type=finite_number, metavar="TAU", help=prior)
    add("--batch-size", type=whole_number(1), default=256, help="images per batch (default: 256)")
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if available)")
    add("--executor", default="auto", choices=("auto", "dali", "resident", "reference"), help="how images are decoded")
    add("--out", type=home_path, metavar="DIR", help="output folder (default: runs/evaluation/RUN-on-DATA)")
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
        help="image files, patterns, folders to search for images, or shard sets",
    )
    file = "a checkpoint, a run folder, or a checkpoint released by a paper's authors"
    add("--checkpoint", type=home_path, required=True, metavar="FILE|RUN", help=file)
    names = "shard set with the class names (default: the run's)"
    add("--class-names", type=set_location, metavar="DIR|URL", help=names)
    _add_shared(parser)
    add("--train-counts", type=set_location, metavar="DIR|URL|JSON", help="for --test-prior train (default: the run's)")
    add(
        "--preset",
        help="name of the evaluation view and normalisation (default: the run's; for a release, the usual one)",
    )
    add("--recipe", dest="preset", action=OldPresetName, help=SUPPRESS)
    add("--top", type=whole_number(1), default=5, help="number of classes per image in the file (default: 5)")
    add("--batch-size", type=whole_number(1), default=64, help="images per batch (default: 64)")
    add("--device", default="auto", help="cpu, cuda or cuda:N (default: a GPU if available)")
    add("--out", type=home_path, metavar="FILE", help="write a .csv, .json or .jsonl file; its folder is created")
    add("--jsonl", action="store_true", help="print one JSON object per image, with all --top classes")
    add("--overwrite", action="store_true", help="replace an existing --out file")
    return parser


def export_parser() -> Parser:
    """`tools.export`."""
    parser = Parser(prog="python -m tools.export", description=EXPORT)
    add = parser.add_argument
    add("checkpoint", type=home_path, metavar="FILE|RUN", help="a checkpoint, a run folder, or a released checkpoint")
    add("--out", type=home_path, required=True, metavar="DIR", help="output folder")
    add("--formats", nargs="*", default=[], choices=("onnx", "torch-export"), help="formats to add to timm's layout")
    inside_help = "processing inside model.onnx and model.pt2: nothing, normalisation, or resizing as well"
    add("--inside", choices=INSIDE, default="nothing", help=inside_help)
    add("--class-names", type=home_path, metavar="DIR", help="shard set with the class names and sizes")
    add(
        "--preset",
        help="name of the evaluation view and normalisation (default: the run's; for a release, the usual one)",
    )
    _add_weights(parser)
    add("--title", help="title of the model card (default: the folder's name)")
    add("--license", help="licence for the model card, by its name on the Hub: apache-2.0, cc-by-nc-4.0 …")
    add("--push", metavar="USER/NAME", help="upload the folder to the Hugging Face Hub")
    add("--private", action="store_true", help="make the pushed repository private")
    return parser


def report_parser() -> Parser:
    """`tools.report`."""
    parser = Parser(prog="python -m tools.report", description=REPORT)
    out_help = "output file (default: report.html in the run folder, or in the current folder for several runs)"
    parser.add_argument("run_dirs", nargs="+", type=home_path, metavar="RUN_DIR")
    parser.add_argument("--out", type=home_path, metavar="FILE", help=out_help)
    return parser


def _add_shared(parser: Parser) -> None:
    """The options that evaluation and prediction share."""
    parser.add_argument(
        "--test-prior",
        default="uniform",
        metavar="uniform|train|FILE",
        help="class distribution in deployment: uniform, that of training, or a JSON list (default: %(default)s)",
    )
    _add_weights(parser)


def _add_weights(parser: Parser) -> None:
    parser.add_argument(
        "--weights", type=home_path, metavar="FILE", help="new location of a tuned checkpoint's pretrained weights"
    )
