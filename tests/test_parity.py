"""The whole system equals the reference: recorded answers, and live ones where it is installed.

`pytest tests/test_parity.py -rP` prints the errors that docs/results.md lists.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omni_cases import (
    CASES,
    MAX_CODEC_IDS,
    MAX_TEXT_TOKENS,
    SYSTEM,
    Part,
    Run,
    Turns,
    checksum,
    max_error,
    random_turns,
    rms_error,
)
from ours_omni import answer, watching
from safetensors import safe_open
from tiny import GEOMETRIES
from torch import Tensor

import thinktalk
from thinktalk.generate import load_tokenizer
from thinktalk.model.code2wav import frame_noise
from thinktalk.weights import LoadedModel, find

PATH = Path(__file__).parent / "golden" / "omni.safetensors"
TOLERANCE = 1e-4  # of the largest value of the reference
QUANTITIES = ("hidden", "text_logits", "talker_hidden", "codec_logits", "wave")
LIVE_PROMPTS = 4

Loader = Callable[..., LoadedModel]

with safe_open(PATH, "pt") as file:
    FACTS = {geometry: json.loads(text) for geometry, text in file.metadata().items()}
    GOLDEN = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


@pytest.fixture(scope="module")
def load(tiny_checkpoint: Callable[[str], Path]) -> Loader:
    models: dict[tuple[str, torch.dtype], LoadedModel] = {}

    def loaded(geometry: str, dtype: torch.dtype = torch.float32) -> LoadedModel:
        if (geometry, dtype) not in models:
            models[geometry, dtype] = thinktalk.load(tiny_checkpoint(geometry), dtype=dtype)
        return models[geometry, dtype]

    return loaded


def recorded(geometry: str, case: str) -> dict[str, Tensor]:
    prefix = f"{geometry}.{case}."
    return {k.removeprefix(prefix): v for k, v in GOLDEN.items() if k.startswith(prefix)}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_checkpoint_is_the_recorded_one(load: Loader, geometry: str) -> None:
    """If this fails, tiny.py makes other weights now: record again (record_golden_omni.py)."""
    assert checksum(load(geometry).omni.state_dict()) == FACTS[geometry]["checksum"]


@pytest.mark.parametrize("case", [*CASES, "stopped"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_float32(load: Loader, geometry: str, case: str) -> None:
    golden = recorded(geometry, case)
    turns, stops = CASES["text"], FACTS[geometry]["stops"]
    if case != "stopped":
        turns, stops = CASES[case], {}
    run = answer(load(geometry), turns, **stops)
    assert run.prompt_ids == golden["prompt_ids"].tolist()
    assert run.text_ids == golden["text_ids"].tolist()
    assert run.codec_ids == golden["codec_ids"].tolist()
    at_limit = len(run.text_ids) == MAX_TEXT_TOKENS and len(run.codec_ids) == MAX_CODEC_IDS
    assert at_limit == (case != "stopped") and run.text_ids and run.codec_ids
    assert_near(run.slices(), golden, geometry, "float32", case)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_bfloat16(load: Loader, geometry: str, case: str) -> None:
    """Saying the recorded ids, against float32: at most twice as far as the reference itself."""
    golden, theirs = recorded(geometry, case), FACTS[geometry]["bfloat16"][case]
    said = golden["text_ids"].tolist(), golden["codec_ids"].tolist()
    run = answer(load(geometry, torch.bfloat16), CASES[case], forced=said)
    ours = run.slices()
    errors = {name: rms_error(ours[name], golden[name]) for name in QUANTITIES}
    ratios = {name: errors[name] / theirs[name] for name in QUANTITIES[:-1]}
    report(geometry, "bfloat16", case, "rms error", **errors)
    report(geometry, "bfloat16", case, "share of the reference's", **ratios)
    assert max(ratios.values()) < 2, (errors, theirs)
    assert errors["wave"] < TOLERANCE  # Token2Wav stays in float32


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_positions_of_the_reply(load: Loader, geometry: str) -> None:
    """The Thinker goes on behind the last prompt position, the Talker behind the largest one."""
    omni = load(geometry).omni
    with watching(omni.thinker, "positions") as thought, watching(omni.talker, "positions") as said:
        run = answer(load(geometry), CASES["early"])
    prompt, *steps = [positions[:, 0] for positions in thought]
    last = int(prompt[0, -1])
    assert last + MAX_TEXT_TOKENS < int(prompt.max()), "the case has lost its point"
    assert prompt.shape[1] == len(run.prompt_ids)
    assert [step.tolist() for step in steps] == [
        [[last + 1 + k]] * 3 for k in range(MAX_TEXT_TOKENS - 1)
    ]
    start, *steps = [positions[:, 0] for positions in said]
    assert torch.equal(start[:, :-2], prompt)
    assert start[:, -2:].tolist() == [[last + 1, last + 2]] * 3
    assert [step.tolist() for step in steps] == [
        [[int(start.max()) + 1 + k]] * 3 for k in range(MAX_CODEC_IDS - 1)
    ]


def report(*what: object, **numbers: float) -> None:
    """A line for `pytest -rP`."""
    print(*what, {name: float(f"{number:.2g}") for name, number in numbers.items()})


def assert_near(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], *what: object) -> None:
    """Every quantity within the tolerance, and a line about it."""
    errors = {name: max_error(ours[name], theirs[name]) for name in QUANTITIES}
    report(*what, "max error", **errors)
    assert max(errors.values()) < TOLERANCE, errors


def everything(run: Run) -> dict[str, Tensor]:
    return {name: getattr(run, name) for name in QUANTITIES}


# ---- the recorded numbers depend on everything that they should


def test_every_medium_matters() -> None:
    """Otherwise equal numbers would prove little: all answers of one checkpoint differ."""
    for geometry in GEOMETRIES:
        for name in ("text_logits", "codec_logits", "wave"):
            values = [recorded(geometry, case)[name] for case in CASES]
            for i, one in enumerate(values):
                assert all(rms_error(other, one) > 0.02 for other in values[:i])


# ---- the windowed computation, which is ours


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_distance_of_windowed_from_exact(load: Loader, geometry: str) -> None:
    """Not equal and not far: what the default gives up for being able to stream.

    From the same noise (another noise is another, equally good sound) and split into its two
    parts: the look-ahead of one block, and the quicker solver.
    """
    model, turns = load(geometry), CASES["turns"]
    exact = answer(model, turns)
    first, again = (answer(model, turns, exact=False, forced=exact.said) for _ in range(2))
    assert all(torch.equal(everything(first)[k], everything(again)[k]) for k in QUANTITIES)
    errors = {k: rms_error(everything(first)[k], everything(exact)[k]) for k in QUANTITIES}
    token2wav, voice = model.omni.token2wav, model.voices["Chelsie"]
    dit = token2wav.code2wav_dit_model
    [quick], [rk4] = (
        token2wav.synthesize_exact(
            torch.tensor([exact.codec_ids]),
            cond=voice.cond,
            ref_mel=voice.ref_mel,
            noise=frame_noise(0, 0, 2 * len(exact.codec_ids), dit=dit)[None],
            schedule=dit.schedule(solver),
        )
        for solver in ("euler", "rk4")
    )
    errors |= {"window": rms_error(first.wave, quick), "solver": rms_error(quick, rk4)}
    report(geometry, "windowed against exact, rms error", **errors)
    assert 0 < errors["window"] < 0.05 and 0 < errors["solver"] < 0.5


# ---- the reference, live


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Callable[[str], Path]) -> Callable:
    from reference_omni import CORRECT, Reference, transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    if major != 5 or minor not in CORRECT:
        pytest.skip(f"transformers {transformers.__version__} computes something else (model.md)")
    made: dict[str, Reference] = {}

    def reference_of(geometry: str) -> Reference:
        if geometry not in made:
            folder = find("spark") if geometry == "spark" else tiny_checkpoint(geometry)
            made[geometry] = Reference(folder)
        return made[geometry]

    return reference_of


@pytest.mark.reference
@pytest.mark.parametrize("seed", range(LIVE_PROMPTS))
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_random_prompts(load: Loader, reference: Callable, geometry: str, seed: int) -> None:
    turns: Turns = random_turns(LIVE_PROMPTS * GEOMETRIES.index(geometry) + seed)
    voice = ("Chelsie", "Ethan")[seed % 2]
    theirs = reference(geometry).answer(turns, voice=voice, seed=seed)
    ours = answer(load(geometry), turns, voice=voice, seed=seed)
    assert ours.prompt_ids == theirs.prompt_ids
    assert (ours.text_ids, ours.codec_ids) == theirs.said
    assert_near(everything(ours), everything(theirs), geometry, "live", turns)


@pytest.mark.reference
@pytest.mark.parametrize(
    ("question", "said"),
    [
        ([("text", "what is the capital of france?")], "the capital of france is paris."),
        ([("image", 96, 120), ("text", "what do you see?")], ""),
        ([("audio", 2.5)], ""),
    ],
    ids=["text", "picture", "sound"],
)
def test_spark_says_the_same_in_the_reference(
    reference: Callable, question: list[Part], said: str
) -> None:
    """The shipped checkpoint, whole replies: the same text and the same codec ids."""
    turns: Turns = [SYSTEM, ("user", question)]
    longest: dict[str, Any] = {"max_text_tokens": 40, "max_codec_ids": 400}
    model = thinktalk.load("spark", dtype=torch.float32)
    theirs, ours = reference("spark").answer(turns, **longest), answer(model, turns, **longest)
    assert ours.prompt_ids == theirs.prompt_ids
    assert (ours.text_ids, ours.codec_ids) == theirs.said
    assert len(ours.text_ids) < 40 and len(ours.codec_ids) < 400, "the reply was cut"
    assert load_tokenizer(model.folder).decode(ours.text_ids).startswith(said)
    assert_near(everything(ours), everything(theirs), "spark", "live", turns)
