"""The command line: `thinktalk COMMAND ...`. A command's code is imported when it is called."""

import argparse
import io
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import thinktalk
from thinktalk.command import add_chat
from thinktalk.eval.command import add_eval
from thinktalk.serve.command import add_serve, add_talk

if TYPE_CHECKING:
    from thinktalk.weights import LoadedModel

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

INTERRUPTED = 128 + 2  # exit status, as a shell reports SIGINT
EXTRAS = {  # module -> extra
    **{"matplotlib": "train", "sklearn": "train", "pocketsphinx": "eval", "jiwer": "eval"},
    "transformers": "bench",
    **dict.fromkeys("fastapi starlette uvicorn pydantic websockets".split(), "serve"),
    **dict.fromkeys("prometheus_client python_multipart".split(), "serve"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 with one sentence when the user erred."""
    top = parser()
    options, more = top.parse_known_args(arguments)
    if more and (options.command != "chat" or any(word.startswith("-") for word in more)):
        top.error(f"unrecognized arguments: {' '.join(more)}")
    if more:  # argparse gives up on parts that stand behind an option
        options.parts += more
    try:
        options.run(options)
    except ValueError as error:
        print(f"thinktalk {options.command}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        remedy = f"pip install 'thinktalk[{EXTRAS[package]}]'"
        print(f"thinktalk {options.command}: it needs {package}; {remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left; nothing more can be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="thinktalk",
        description="It hears, sees, thinks and talks: Qwen2.5-Omni in PyTorch.",
        epilog="thinktalk COMMAND --help tells more.",
    )
    top.add_argument("--version", action="version", version=f"thinktalk {thinktalk.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_chat(commands, run=run_chat)
    add_serve(commands, run=run_serve)
    add_talk(commands, run=run_talk)
    add_train(commands)
    add_eval(commands, run=run_eval)
    add_bench(commands)
    return top


# ---- chat


def run_chat(options: argparse.Namespace) -> None:
    if options.text_only and (options.speak or options.play):
        raise ValueError("--text-only makes no sound; leave it out, or --speak and --play")
    from thinktalk import terminal

    settings = terminal.Settings(
        voice=options.voice,
        system=options.system,
        exact=options.exact,
        seed=options.seed,
        max_text_tokens=options.max_text_tokens,
        max_codec_ids=options.max_codec_ids,
        text_only=options.text_only,
        speak=options.speak,
        play=options.play,
    )
    for stream in (sys.stdin, sys.stdout):  # odd bytes and a narrow terminal are no reason to end
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if parts := terminal.parts_of_words(options.parts):
        terminal.answer_once(load(options), parts, settings)
    else:
        terminal.converse(load(options), settings)


# ---- serve, talk


def run_serve(options: argparse.Namespace) -> None:
    from thinktalk.serve import app, ice, limits

    settings = app.ServeOptions(
        max_sessions=options.max_sessions,
        keys=tuple(options.api_key or ()),
        origins=tuple(options.allow_origin or ()),
        remote=options.remote_media,
        ice_servers=tuple(map(ice.IceServer.parse, options.ice_server or ())),
        limits=limits.Limits().changed(options.limit or ()),
    )
    engine = thinktalk.live(load(options), max_sessions=options.max_sessions)
    app.run(engine, settings, host=options.host, port=options.port)


def run_talk(options: argparse.Namespace) -> None:
    from thinktalk import talk

    talk.run(
        options.recording,
        url=options.url,
        key=options.api_key.split(",")[0],
        out=options.out,
        voice=options.voice,
        detect=not options.push_to_talk,
        sessions=options.sessions,
        turns=options.turns,
    )


# ---- train


def add_train(commands: "Commands") -> None:
    from thinktalk.train import command, speech_command

    speech_command.add_voice(commands, run=run_voice)
    command.add_train(
        commands,
        course=run_train_course,
        new=run_train_new,
        merge=run_train_merge,
        pairs=run_train_pairs,
        spark=run_train_spark,
        data=run_train_data,
        cases=run_train_cases,
        plot=run_train_plot,
    )


def run_train_course(options: argparse.Namespace) -> None:
    from thinktalk.train import tuning

    done = tuning.train_as_told(options)
    if os.environ.get("RANK", "0") == "0":  # one of all that torchrun launched
        out = options.out / "model"
        print(f"{out} is ready" if done else "not done: the same command continues")


def run_train_new(options: argparse.Namespace) -> None:
    from thinktalk.train import untrained

    untrained.write_untrained(options.like, options.out, seed=options.seed)
    print(f"{options.out} is ready")


def run_train_merge(options: argparse.Namespace) -> None:
    from thinktalk.train import tuning

    tuning.merge_adapter(options.model, options.adapter, options.out)


def run_train_pairs(options: argparse.Namespace) -> None:
    from thinktalk.eval.recogniser import ear_for
    from thinktalk.train import candidates

    candidates.draw_as_told(options, load(options), ear_for)


def run_train_spark(options: argparse.Namespace) -> None:
    from thinktalk.train import recipe

    data, folder, name = options.data, options.run_folder, options.only
    if name is not None:
        done = recipe.run_stage(
            name, data=data, run=folder, device=options.device, minutes=options.minutes
        )
        print(f"{name} is {'done' if done else 'not done: the same command continues it'}")
    elif options.out is None:
        raise ValueError("where shall the checkpoint go? Give --out, or --only STAGE")
    elif math.isfinite(options.minutes):
        raise ValueError("--minutes ends a leg of one stage; give --only STAGE with it")
    else:
        recipe.train_spark(data=data, run=folder, out=options.out, device=options.device)


def run_train_data(options: argparse.Namespace) -> None:
    from thinktalk.train import assemble, recipe

    recipe.make_data(options.data)
    assemble.write_companions(options.run_folder / "text")


def run_train_cases(options: argparse.Namespace) -> None:
    from thinktalk.playroom import dataset
    from thinktalk.train.command import wanted_cases

    dataset.make(options.out, **wanted_cases(options))


def run_train_plot(options: argparse.Namespace) -> None:
    from thinktalk.train.plot import plot

    plot(options.run_folder, out=options.out)
    print(options.out)


def run_voice(options: argparse.Namespace) -> None:
    from thinktalk.train import enrol

    enrol.as_told(options)


# ---- eval


def run_eval(options: argparse.Namespace) -> None:
    from thinktalk.eval import run

    model, only = load(options), tuple(options.only or ())
    engine = thinktalk.live(model, max_sessions=2) if not only or "live" in only else None
    run.run(
        model,
        suite=options.suite,
        cases=options.cases,
        only=only,
        engine=engine,
        out=options.out,
    )


# ---- bench


def add_bench(commands: "Commands") -> None:
    from thinktalk.bench import plan

    plan.add_bench(commands, run=run_bench)


def run_bench(options: argparse.Namespace) -> None:
    from thinktalk.bench import plan, run

    run.run(plan.plan_of(options), out=options.out)


# ---- what several commands share


def load(options: argparse.Namespace) -> "LoadedModel":
    import torch

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    return thinktalk.load(options.model, device=options.device, dtype=dtype)


if __name__ == "__main__":
    sys.exit(main())
