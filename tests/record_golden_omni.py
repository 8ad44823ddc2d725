"""Records what transformers 5.17.0 answers with tiny random checkpoints of both geometries.

Run by hand, where that transformers is installed: python tests/record_golden_omni.py
Writes tests/golden/omni.safetensors, which test_generate.py reads. The checkpoints are made by
tiny.py from a seed; their checksums stand in the file. A second run changes nothing.
"""

import json
import tempfile
from pathlib import Path

import torch
from omni_cases import CASES, Run, checksum, rms_error
from reference_omni import Reference, transformers
from safetensors.torch import save_file
from tiny import GEOMETRIES, build
from torch import Tensor

assert transformers.__version__ == "5.17.0", transformers.__version__
TARGET = Path(__file__).parent / "golden" / "omni.safetensors"
TEXT_IDS_BEFORE_STOP, CODEC_IDS_BEFORE_STOP = 4, 17


def main() -> None:
    torch.set_num_threads(1)
    golden: dict[str, Tensor] = {}
    facts: dict[str, dict] = {}
    for geometry in GEOMETRIES:
        with tempfile.TemporaryDirectory() as folder:
            built = build(Path(folder), geometry)
            tensors, facts[geometry] = record(Path(folder))
        facts[geometry]["checksum"] = checksum(built.omni.state_dict())
        golden |= {f"{geometry}.{name}": tensor for name, tensor in tensors.items()}
    save_file(golden, TARGET, metadata={g: json.dumps(f) for g, f in facts.items()})
    print(f"{len(golden)} tensors, {TARGET.stat().st_size / 1000:.0f} kB")


def record(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Slices of all answers; the ids that end the case "stopped"; the errors of bfloat16."""
    wide, narrow = Reference(folder), Reference(folder, dtype=torch.bfloat16)
    stops, stopped = stop_early(wide)
    tensors: dict[str, Tensor] = store("stopped", stopped)
    errors: dict[str, dict[str, float]] = {}
    for name, turns in CASES.items():
        run = wide.answer(turns)
        tensors |= store(name, run)
        # the same ids, so that only the precision differs
        rounded, exact = narrow.answer(turns, forced=run.said).slices(), run.slices()
        errors[name] = {key: rms_error(rounded[key], exact[key]) for key in exact}
        print(folder, name, len(run.prompt_ids), run.text_ids, run.codec_ids[:6], errors[name])
    return tensors, {"stops": stops, "bfloat16": errors}


def stop_early(reference: Reference) -> tuple[dict[str, int], Run]:
    """Takes ids that a greedy answer contains for those that end reply and speech."""
    turns = CASES["text"]
    text = fresh(reference.answer(turns).text_ids, TEXT_IDS_BEFORE_STOP)
    spoken = reference.answer(turns, text_stop=text).codec_ids
    codec = fresh(spoken, CODEC_IDS_BEFORE_STOP)
    stopped = reference.answer(turns, text_stop=text, codec_stop=codec)
    return {"text_stop": text, "codec_stop": codec}, stopped


def fresh(ids: list[int], start: int) -> int:
    """The first id from index start on that does not stand before."""
    return next(token for i, token in enumerate(ids) if i >= start and token not in ids[:i])


def store(name: str, run: Run) -> dict[str, Tensor]:
    ids = {"prompt_ids": run.prompt_ids, "text_ids": run.text_ids, "codec_ids": run.codec_ids}
    tensors = {key: torch.tensor(value, dtype=torch.int16) for key, value in ids.items()}
    tensors |= {key: value.contiguous() for key, value in run.slices().items()}
    return {f"{name}.{key}": value for key, value in tensors.items()}


if __name__ == "__main__":
    main()
