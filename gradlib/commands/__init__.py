"""The commands of `gradlib`, one function each: argparse.Namespace -> exit status or None for 0."""
