"""The command `pfgm-fast`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pfgm_fast import SolverError, cli_bench, cli_sample
from pfgm_fast._info import info
from pfgm_fast._version import __version__

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with the arguments given, or those of the process; returns its exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pfgm-fast", description="Exact Poisson and diffusion fields of data sets.")
    parser.add_argument("--version", action="version", version=f"pfgm-fast {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    about = "show which backends run here, or why not, the devices and versions, and how the extension was built"
    command = commands.add_parser("info", help=about, description=_sentence(about))
    command.set_defaults(command=_info)

    about = "draw samples from the exact field of real data, write figures, measure speed, memory and accuracy"
    command = commands.add_parser(
        "demo",
        help=about,
        description=_sentence(about),
        epilog='Takes about a minute on two cores. Needs matplotlib and scikit-learn: pip install "pfgm-fast[demo]"',
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("demo-output"),
        metavar="DIR",
        help="folder of the figures (default: %(default)s)",
    )
    command.add_argument("--seed", type=_seed, default=0, help="of every random number, an integer >= 0 (default: 0)")
    command.add_argument("--quick", action="store_true", help="fewer charges, samples and repeats: a first look")
    command.set_defaults(command=_demo)

    about = "draw samples from the exact field of a data set into a file; run again after Ctrl-C, it goes on"
    command = commands.add_parser("sample", help=about, description=_sentence(about))
    cli_sample.add_arguments(command)
    command.set_defaults(command=_sample)

    about = "measure one evaluation of the field here, on your data or your size of data, beside what others write"
    command = commands.add_parser(
        "bench",
        help=about,
        description=_sentence(about),
        epilog="Takes a minute or two for each number of threads, much of it for what the alternatives compile.",
    )
    cli_bench.add_arguments(command)
    command.set_defaults(command=_bench)

    about = "find the fastest tiles of the GPU kernels for data of a size, and keep them for all later processes"
    command = commands.add_parser("tune", help=about, description=_sentence(about))
    command.add_argument("--data", type=_size, required=True, metavar="M", help="how many data")
    command.add_argument("--dimension", type=_size, required=True, metavar="N", help="numbers in a datum")
    command.add_argument(
        "--batch", type=_size, default=128, metavar="B", help="queries at a time (default: %(default)s)"
    )
    command.add_argument("--pixels", action="store_true", help="8-bit data (default: float32)")
    command.add_argument("--again", action="store_true", help="search anew for what is already in the cache")
    command.set_defaults(command=_tune)
    return parser


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**63 - 1, got {text!r}")
    return int(text)


def _info(options: argparse.Namespace) -> int:
    print(info())
    return 0


def _demo(options: argparse.Namespace) -> int:
    from pfgm_fast import demo

    why = demo.missing()
    if why is not None:
        return _fail(why)
    try:
        files = demo.run(options.out, _say, seed=options.seed, scale=demo.QUICK if options.quick else demo.FULL)
    except OSError as error:  # a folder that cannot be made, a full disk
        return _fail(str(error))
    print("\nwritten:", *files, sep="\n  ")
    return 0


def _sample(options: argparse.Namespace) -> int:
    try:
        path = cli_sample.run(options)
    except (OSError, TypeError, ValueError, SolverError) as error:
        return _fail(str(error), "sample")
    print(f"written: {path}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    try:
        cli_bench.run(options, _say)
    except (OSError, TypeError, ValueError) as error:
        return _fail(str(error), "bench")
    if options.out:
        print(f"\nwritten: {options.out}")
    return 0


def _tune(options: argparse.Namespace) -> int:
    import torch

    from pfgm_fast import EmpiricalField, operator

    device = torch.device("cuda")
    why = operator.BACKENDS["triton"].refuses(device)
    if why is not None or not torch.cuda.is_available():
        return _fail(f"no GPU to tune for: {why or 'PyTorch sees none'}", "tune")
    from pfgm_fast.kernels import tiles, tune

    shape = options.data, options.dimension
    data = (
        torch.randint(256, shape, device=device, dtype=torch.uint8)
        if options.pixels
        else torch.randn(shape, device=device)
    )
    field = EmpiricalField(data, 128.0, backend="triton")
    x = torch.randn(options.batch, options.dimension, device=device)
    found = tune.tune([lambda: field(x, 1.0)], device, again=options.again)
    for (kernel, shape_class), tile in found.items():
        print(f"{kernel} {shape_class}: {tile}")
    print(f"kept in {tiles.cache_file()}" if found else "the kernels for data of this size have nothing to tune")
    return 0


def _size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def _say(text: str) -> None:
    print(text, flush=True)  # in order with the progress bars


def _fail(why: str, command: str = "demo") -> int:
    print(f"pfgm-fast {command}: error: {why}", file=sys.stderr)
    return 1
