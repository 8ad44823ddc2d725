"""The command line: `thinktalk COMMAND ...`. A command's code is imported when it is called."""

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 with one sentence when the user erred."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except ValueError as error:
        print(f"thinktalk {options.command}: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="thinktalk", description="It hears, sees, thinks and talks: Qwen2.5-Omni in PyTorch."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_chat(commands)
    return top


def add_chat(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    chat = commands.add_parser(
        "chat", help="ask with words, sound, pictures, video; or interactively"
    )
    chat.add_argument("parts", nargs="*", help="words, and media by path or URL, in order")
    chat.add_argument("--model", default="spark", help="spark, a folder, or a hub id")
    chat.add_argument("--speak", metavar="WAV", help="save the spoken answer here")
    chat.add_argument("--voice", help="who speaks (default: the checkpoint's first choice)")
    chat.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    chat.set_defaults(run=run_chat)


def run_chat(options: argparse.Namespace) -> int:
    import thinktalk

    model = thinktalk.load(options.model, device=options.device)
    answer = thinktalk.generate(model, options.parts, voice=options.voice)
    print(answer.text)
    if options.speak:
        answer.save(options.speak)
    return 0


if __name__ == "__main__":
    sys.exit(main())
