"""The command line: `gradlib demo | fit | predict | explain | info | kernels | bench`.

Exit status: 0 done, 1 an error (one line on stderr) or a check that failed, 2 a command that was not understood.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from . import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "bench":
        arguments.arguments = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return arguments.run(arguments) or 0
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("gradlib: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"gradlib {arguments.command}: {error}", file=sys.stderr)
        return 1


def _command(module: str, function: str) -> Callable[[argparse.Namespace], int | None]:
    """A function of gradlib.commands, imported when it is called."""

    def run(arguments: argparse.Namespace) -> int | None:
        return getattr(import_module(f"gradlib.commands.{module}"), function)(arguments)

    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gradlib", description="Partial derivatives and batched Jacobians of text classifiers."
    )
    parser.add_argument("--version", action="version", version=f"gradlib {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_add_demo, _add_fit, _add_predict, _add_explain, _add_info, _add_kernels, _add_bench):
        add(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("demo", help="train on real tweets, compare with scikit-learn, print and draw Jacobians")
    p.add_argument("--out", default="gradlib-demo", metavar="DIR", help="folder for the pictures (%(default)s)")
    p.add_argument("--limit", type=_at_least(100), metavar="N", help="use N tweets only, for a quick look")
    p.add_argument("--seed", type=_at_least(0), default=0, help="of the split and the training (%(default)s)")
    p.set_defaults(run=_command("demo", "demo"))


def _add_fit(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("fit", help="train a classifier on a CSV file")
    p.add_argument("file", metavar="FILE.csv", help="with a header line")
    p.add_argument("--text", required=True, metavar="COL", help="column of the texts")
    p.add_argument("--label", required=True, metavar="COL", help="column of the labels")
    p.add_argument("--out", required=True, metavar="DIR", help="folder for the model")
    _add_csv(p)
    p.add_argument("--skip-empty", action="store_true", help="leave out rows with an empty text or label")
    p.add_argument("--force", action="store_true", help="replace a model that is in DIR")
    p.add_argument("--seed", type=_at_least(0), default=0, help="of the training (%(default)s)")
    p.add_argument("--epochs", type=_at_least(1), default=100, metavar="N", help="at most (%(default)s)")
    p.add_argument("--min-df", type=_at_least(1), default=2, metavar="N", help="texts a word must be in (%(default)s)")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.set_defaults(run=_command("models", "fit"))


def _add_predict(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("predict", help="classify texts with a saved model")
    p.add_argument("model", metavar="DIR", help="folder of the model")
    p.add_argument("texts", nargs="*", metavar="TEXT")
    p.add_argument("--file", metavar="FILE.csv", help="classify a column of a CSV file")
    p.add_argument("--text", metavar="COL", help="column of the texts in FILE.csv")
    _add_csv(p)
    p.add_argument("--json", action="store_true", help="labels with all probabilities, as JSON")
    p.set_defaults(run=_command("models", "predict"))


def _add_explain(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("explain", help="partial derivative of each class by each word of a text")
    p.add_argument("model", metavar="DIR", help="folder of the model")
    p.add_argument("text", metavar="TEXT")
    p.add_argument("--target", choices=("prob", "logit"), default="prob", help="what to differentiate (%(default)s)")
    p.add_argument("--json", action="store_true")
    p.set_defaults(run=_command("models", "explain"))


def _add_info(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("info", help="versions, devices, what is missing and how to get it")
    p.set_defaults(run=_command("info", "info"))


def _add_kernels(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("kernels", help="compile every CUDA kernel without a GPU and check its machine code")
    p.add_argument("--arch", action="append", metavar="SM", help="sm_90 for example; may be repeated (default: all)")
    p.add_argument("--only", default="", metavar="REGEX", help="kernels whose names match")
    p.add_argument("--json", action="store_true", help="every figure of every row")
    p.add_argument("--record", action="store_true", help="keep the figures as those that later ones must not exceed")
    p.set_defaults(run=_command("kernels", "kernels"))


def _add_bench(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "bench", help="run the benchmarks of a checkout, with --gpu those of the kernels", add_help=False
    )
    p.set_defaults(run=_command("bench", "bench"))


def _add_csv(p: argparse.ArgumentParser) -> None:
    p.add_argument("--encoding", default="utf-8-sig", help="of the CSV file (%(default)s)")
    p.add_argument("--delimiter", default=",", help="of the CSV file (%(default)s)")


def _at_least(low: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.lstrip("-").isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"expected an int of at least {low}, got {text!r}")
        return int(text)

    return number


if __name__ == "__main__":
    sys.exit(main())
