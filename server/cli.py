"""The command `puna`: what it takes, and who does it. What a subcommand needs is imported when it runs."""

import argparse
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.messages import EngineSpec
from quant.errors import PunaError

HOST, PORT = "127.0.0.1", 7862  # P-U-N-A on a phone's keys
CRIA = Path(__file__).parents[1] / "models" / "cria" / "cria.gguf"  # the demo model that comes with the program
GRACE = 30.0
DISK_BUDGET = 10 * 2**30
KV_FORMATS = ("f16", "bf16", "f32", "q8", "q4")
_THREADS_HELP = "CPU threads to compute with (default: one for each physical core, of the fast ones if they differ)"


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may be closed
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character shows a question mark
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code. What a user or a file caused is one line on standard error."""
    options = _parsed(_parser(), arguments)
    try:
        options.do(options)
    except PunaError as error:
        print(f"puna: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `puna inspect FILE | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a log file that cannot be written, a disk that is full
        print(f"puna: {error}", file=sys.stderr)
        return 1
    return 0


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The options. argparse takes words for a list, or an optional one, in one place only; ours may follow options."""
    options, late = parser.parse_known_args(arguments)
    if not late:
        return options
    names = not any(word.startswith("-") for word in late)
    if names and "models" in options:
        options.models = [*options.models, *map(Path, late)]
    elif names and "prompt" in options and options.prompt is None and len(late) == 1:
        options.prompt = late[0]
    else:
        parser.error(f"unrecognized arguments: {' '.join(late)}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="puna", description="A local LLM inference server with the OpenAI API.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="answer the OpenAI API over HTTP"))
    _add_run(commands.add_parser("run", help="answer one prompt and leave"))
    _add_inspect(commands.add_parser("inspect", help="say what is in a model file"))
    _add_bench(commands.add_parser("bench", help="measure this machine, and a model on it"))
    _add_kernels(commands.add_parser("kernels", help="say which kernels compute on this machine's GPU"))
    _add_service(commands.add_parser("service", help="run the server in the background, from login on"))
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ctx", type=_positive, metavar="N", help="tokens that a conversation may have")
    _add_kv_format(parser)
    parser.add_argument("--kv-memory", type=_size, metavar="SIZE", help="memory of the KV cache in bytes, or 512M, 4G")
    parser.add_argument("--kv-disk", type=Path, metavar="DIR", help="keep what the KV cache has no room for there")
    parser.add_argument("--kv-disk-budget", type=_size, metavar="SIZE", help="of that folder, at most (default 10G)")
    parser.add_argument("--threads", type=_threads, metavar="N", help=_THREADS_HELP)
    parser.add_argument(
        "--device", choices=["auto", "cpu", "builtin"], default="auto", help="builtin: MLX's own kernels"
    )
    _add_prefill(parser)


def _add_prefill(parser: argparse.ArgumentParser) -> None:
    what = "where prompts are computed (default auto: by the rates of this chip; see docs/placement.md)"
    parser.add_argument("--prefill", choices=["auto", "gpu", "cpu"], default="auto", help=what)


def _add_kv_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kv-format", choices=KV_FORMATS, default="f16", help="numbers of the KV cache (default f16)")


def _add_batch_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-batch", type=_positive, default=16, metavar="N", help="sequences computed together")


def _add_serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL", help="GGUF file or MLX folder; default: cria")
    parser.add_argument("--host", default=HOST, help=f"address to listen on (default {HOST})")
    parser.add_argument("--port", type=_port, default=PORT, help=f"default {PORT}; 0 takes a free one")
    _add_model_options(parser)
    _add_batch_option(parser)
    parser.add_argument("--queue", type=_positive, default=256, metavar="N", help="requests that may be here at once")
    parser.add_argument(
        "--queue-time", type=_patience, metavar="S", help="seconds that a request waits for its turn, at most"
    )
    parser.add_argument("--grace", type=_seconds, default=GRACE, metavar="S", help="seconds to finish when stopped")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="further name of this server")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="URL", help="pages that may use it")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="log here, and not to standard error")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_serve_options(parser)
    parser.set_defaults(do=_serve)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="GGUF file or MLX folder")
    parser.add_argument("prompt", nargs="?", help="default: standard input")
    _add_model_options(parser)
    parser.add_argument("--max-tokens", type=_positive, metavar="N", help="default: the rest of the context")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (default 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="default: another each time")
    parser.add_argument("--raw", action="store_true", help="continue the text; no chat template")
    parser.set_defaults(do=_run)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="GGUF file or MLX folder")
    _add_model_options(parser)
    _add_batch_option(parser)
    parser.set_defaults(do=_inspect)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="GGUF file or MLX folder")
    parser.add_argument("--threads", type=_threads, metavar="N", help=_THREADS_HELP)
    parser.add_argument(
        "--device", choices=["auto", "cpu", "builtin"], default="auto", help="builtin: MLX's own kernels"
    )
    _add_kv_format(parser)
    parser.add_argument("--context", type=_positive, metavar="N", help="tokens of the long measurements (default 8192)")
    parser.add_argument("--repeat", type=_positive, metavar="N", help="samples of each measurement (default 3)")
    parser.add_argument("--quick", action="store_true", help="short runs, one sample of each: a look, no measurement")
    parser.add_argument(
        "--json", action="store_true", help="all figures as JSON; rates a second, in bytes and operations"
    )
    parser.set_defaults(do=_bench)


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retune", action="store_true", help="try all of them anew")
    parser.set_defaults(do=_kernels)


def _add_service(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    install = commands.add_parser("install", help="write the service and start it; takes the options of `puna serve`")
    _add_serve_options(install)
    install.set_defaults(do=_service_install)
    for name, what in (
        ("status", "whether it runs"),
        ("logs", "the last lines that it wrote"),
        ("remove", "stop it and take it away"),
    ):
        command = commands.add_parser(name, help=what)
        command.set_defaults(do=_service, action=name)
    for command in commands.choices.values():
        command.add_argument("--root", type=Path, metavar="DIR", help="only write files, and below DIR")


def _serve(options: argparse.Namespace) -> None:
    import asyncio

    from server.app import Surroundings
    from server.loading import open_models
    from server.logs import log_to
    from server.open_files import allow_many_files
    from server.serve import Listening, serve

    log_to(options.log_file)
    allow_many_files()
    surroundings = Surroundings(options.allow_host, options.allow_origin, options.queue_time)
    listening = Listening(options.host, options.port, options.queue, options.grace, surroundings)
    like = _spec(CRIA, options, options.max_batch)
    asyncio.run(serve(listening, lambda: open_models(options.models or [CRIA], like)))


def _spec(model: Path, options: argparse.Namespace, max_batch: int) -> EngineSpec:
    return EngineSpec(
        path=str(model),
        context=options.ctx,
        threads=options.threads,
        device=options.device,
        prefill=options.prefill,
        kv=options.kv_format,
        kv_memory=options.kv_memory,
        kv_disk=None if options.kv_disk is None else str(options.kv_disk.absolute()),
        kv_disk_budget=_disk_budget(options),
        max_batch=max_batch,
    )


def _disk_budget(options: argparse.Namespace) -> int | None:
    if options.kv_disk is None and options.kv_disk_budget is not None:
        raise PunaError("--kv-disk-budget: of which folder? See --kv-disk")
    return None if options.kv_disk is None else options.kv_disk_budget or DISK_BUDGET


def _run(options: argparse.Namespace) -> None:
    import asyncio

    from server.run import Asking, run

    text = _read_prompt() if options.prompt is None else options.prompt
    asking = Asking(text, options.raw, options.max_tokens, options.temperature, options.seed)
    asyncio.run(run(_spec(options.model, options, 1), asking))


def _read_prompt() -> str:
    """All of standard input."""
    try:
        return os.fdopen(0, "rb", closefd=False).read().decode()
    except OSError as fault:
        raise PunaError(f"no prompt was given, and standard input cannot be read: {fault.strerror}") from fault
    except UnicodeDecodeError as fault:
        raise PunaError(f"the prompt on standard input is not UTF-8: {fault.reason} at byte {fault.start}") from fault


def _inspect(options: argparse.Namespace) -> None:
    from server.inspection import inspect

    inspect(_spec(options.file, options, options.max_batch))


def _bench(options: argparse.Namespace) -> None:
    from server.bench import asked_of, bench

    spec = EngineSpec(path=str(options.model), threads=options.threads, device=options.device, kv=options.kv_format)
    bench(asked_of(spec, options.context, options.repeat, quick=options.quick), json=options.json)


def _kernels(options: argparse.Namespace) -> None:
    from server.kernels import kernels

    kernels(retune=options.retune)


def _service_install(options: argparse.Namespace) -> None:
    from server.service import install

    install(_serve_arguments(options), options.grace, options.root)


def _service(options: argparse.Namespace) -> None:
    from server.service import logs, remove, status

    {"status": status, "logs": logs, "remove": remove}[options.action](options.root)


def _serve_arguments(options: argparse.Namespace) -> list[str]:
    """The command line of `puna serve` that these options came from; a service has another working directory."""
    arguments = [str(model.absolute()) for model in options.models]
    arguments += ["--host", options.host, "--port", str(options.port), "--grace", f"{options.grace:g}"]
    arguments += ["--max-batch", str(options.max_batch), "--queue", str(options.queue)]
    arguments += ["--kv-format", options.kv_format]
    arguments += ["--device", options.device, "--prefill", options.prefill]
    given = {
        "--ctx": options.ctx,
        "--threads": options.threads,
        "--kv-memory": options.kv_memory,
        "--kv-disk": None if options.kv_disk is None else options.kv_disk.absolute(),
        "--kv-disk-budget": _disk_budget(options),
        "--queue-time": options.queue_time,
    }
    for flag, value in given.items():
        arguments += [flag, str(value)] if value is not None else []
    for flag, values in (("--allow-host", options.allow_host), ("--allow-origin", options.allow_origin)):
        arguments += [word for value in values for word in (flag, value)]
    return arguments


def _positive(text: str) -> int:
    return _whole(text, 1, 2**40)


def _size(text: str) -> int:
    """Bytes; K, M, G and T are powers of 1024."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)([KMGT]?)(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    size = int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if not 0 < size <= 2**50:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; 512M and 4G are")
    return size


def _threads(text: str) -> int:
    return _whole(text, 1, 1024)


def _port(text: str) -> int:
    return _whole(text, 0, 2**16 - 1)


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from {least} to {most}")
    return int(text)


def _patience(text: str) -> float:
    if not 0 < float(text) <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 86400")
    return float(text)


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 3600")
    return number
