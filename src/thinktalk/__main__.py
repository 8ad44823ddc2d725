"""The command line: `thinktalk COMMAND ...`. A command's code is imported when it is called."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import thinktalk

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
DTYPES = ("float32", "bfloat16", "float16")
SUITES = ("playroom",)
# eval.run.groups
GROUPS = tuple(
    "typed spoken unseen said seen heard watched when aloud look speech pace vocoder live".split()
)
REMOTE = ("off", "public", "any")  # serve.fetch.Remote


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
    add_chat(commands)
    add_serve(commands)
    add_talk(commands)
    add_train(commands)
    add_eval(commands)
    add_bench(commands)
    return top


# ---- chat


def add_chat(commands: "Commands") -> None:
    chat = commands.add_parser(
        "chat",
        help="ask with words, sound, pictures, video; or converse in the terminal",
        description="Answers words and media; without any, it holds a conversation in the "
        "terminal (/help there lists its commands). The answer is written to stdout while it is "
        "made, everything else to stderr.",
    )
    chat.add_argument("parts", nargs="*", help="words, and media by path or URL, in order")
    chat.add_argument(
        "--speak",
        metavar="FILE",
        type=Path,
        help="save the spoken answer here (.wav, .mp3, .flac, ...); in a conversation every reply "
        "gets a number: FILE-1.wav, FILE-2.wav, ... (default there: in a temporary folder)",
    )
    chat.add_argument(
        "--play", action="store_true", help="play the answer with paplay, aplay, afplay or ffplay"
    )
    chat.add_argument(
        "--text-only", action="store_true", help="no speech, and not the system prompt for speech"
    )
    chat.add_argument("--voice", metavar="NAME", help="who speaks (default: Chelsie, or the first)")
    chat.add_argument("--system", metavar="TEXT", help="system prompt (default: the official one)")
    chat.add_argument(
        "--exact",
        action="store_true",
        help="compute as the reference does, not in the windows of a live conversation; slower",
    )
    chat.add_argument(
        "--max-text-tokens", metavar="N", type=int, default=1024, help="(default: 1024)"
    )
    chat.add_argument(
        "--max-codec-ids", metavar="N", type=int, default=4096, help="50 a second (default: 4096)"
    )
    chat.add_argument("--seed", metavar="N", type=int, default=0, help="of the voice (default: 0)")
    add_model(chat)
    chat.set_defaults(run=run_chat)


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


def add_serve(commands: "Commands") -> None:
    serve = commands.add_parser(
        "serve",
        help="a page to talk to, and OpenAI's chat, audio and Realtime dialects",
        description="Serves a page to talk to at / and OpenAI's chat, audio and Realtime dialects "
        "under /v1 (docs/protocol.md). Every option can be set by environment, too: --api-key by "
        "THINKTALK_API_KEY, and so on; several values are separated by commas.",
    )
    option = serve.add_argument
    add_model(serve)
    option("--host", default="127.0.0.1", help="(default: 127.0.0.1, only this machine)")
    option("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    option("--api-key", metavar="KEY", action="append", help="clients must know it; repeatable")
    option("--max-sessions", metavar="N", type=int, default=8, help="at a time (default: 8)")
    foreign = "pages from there may use the server, such as https://example.org; repeatable"
    option("--allow-origin", metavar="URL", action="append", help=foreign)
    option(
        "--remote-media",
        choices=REMOTE,
        default="public",
        help="media by URL: off, from the public internet, or from any address (default: public)",
    )
    option(
        "--limit",
        metavar="NAME=NUMBER",
        action="append",
        help="changes a limit, such as video_s=60 (names: docs/protocol.md); repeatable",
    )
    for name in vars(serve.parse_args([])):
        if value := os.environ.get(f"THINKTALK_{name.upper()}"):
            lists = name in ("api_key", "allow_origin", "limit")
            serve.set_defaults(**{name: value.split(",") if lists else value})
    serve.set_defaults(run=run_serve)


def run_serve(options: argparse.Namespace) -> None:
    from thinktalk.serve import app, limits

    settings = app.ServeOptions(
        max_sessions=options.max_sessions,
        keys=tuple(options.api_key or ()),
        origins=tuple(options.allow_origin or ()),
        remote=options.remote_media,
        limits=limits.Limits().changed(options.limit or ()),
    )
    engine = thinktalk.live(load(options), max_sessions=options.max_sessions)
    app.run(engine, settings, host=options.host, port=options.port)


def add_talk(commands: "Commands") -> None:
    talk = commands.add_parser(
        "talk",
        help="play a recording into a running server, as a microphone would",
        description="Plays a recording into a running server in real time, prints what both sides "
        "say and how long the answer takes, and saves the answer. With --sessions N it does so N "
        "times at once and prints the latencies of all.",
    )
    option = talk.add_argument
    option("recording", metavar="FILE", help="a recording with a question")
    option("--url", default="http://127.0.0.1:8000", help="(default: http://127.0.0.1:8000)")
    option("--api-key", metavar="KEY", default=os.environ.get("THINKTALK_API_KEY", ""))
    option("--out", metavar="FILE", type=Path, help="save the answer (.wav, .mp3, ...)")
    option("--voice", metavar="NAME", help="who answers (default: the server's)")
    option("--push-to-talk", action="store_true", help="end the turn with the recording")
    option("--sessions", metavar="N", type=int, default=1, help="at once (default: 1)")
    option("--turns", metavar="N", type=int, default=1, help="in each session (default: 1)")
    talk.set_defaults(run=run_talk)


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
    print(f"{options.out / 'model'} is ready" if done else "not done: the same command continues")


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
    elif options.out is not None:
        recipe.train_spark(data=data, run=folder, out=options.out, device=options.device)
    else:
        raise ValueError("where shall the checkpoint go? Give --out, or --only STAGE")


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


def add_eval(commands: "Commands") -> None:
    evaluate = commands.add_parser(
        "eval",
        help="measure a model on held-out cases",
        description="Measures a model on held-out cases and prints a table. playroom: questions "
        "typed and spoken, about pictures, sounds and films, what holds sound and sight together, "
        "how well an independent recogniser understands the replies, and the live engine.",
    )
    evaluate.add_argument("suite", metavar="SUITE", choices=SUITES, help=", ".join(SUITES))
    evaluate.add_argument(
        "--cases", metavar="N", type=int, default=200, help="per group of rows (default: 200)"
    )
    evaluate.add_argument(
        "--only",
        metavar="GROUP",
        action="append",
        choices=GROUPS,
        help=f"only these rows; repeatable ({', '.join(GROUPS)})",
    )
    evaluate.add_argument(
        "--out", metavar="DIR", type=Path, help="folder for results.md and results.json"
    )
    add_model(evaluate)
    evaluate.set_defaults(run=run_eval)


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


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        default="spark",
        help="spark, a folder in the official layout, or a hub id (default: spark)",
    )
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    command.add_argument(
        "--dtype", choices=DTYPES, help="of Thinker and Talker (default: as stored; small on a "
        "CPU: float32)",
    )  # fmt: skip


def load(options: argparse.Namespace) -> "LoadedModel":
    import torch

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    return thinktalk.load(options.model, device=options.device, dtype=dtype)


if __name__ == "__main__":
    sys.exit(main())
