"""What a pass that is taken out had done: whether the program is another one without it.

Programs are captured without memory, for ranks that are not there, and nothing runs.
"""

import argparse
from collections.abc import Iterator

import torch
from systems import GPT, SETTINGS
from systems_zc import ablations, preparing, without

import zc
from zc.pipelines.manager import run_passes
from zc.pipelines.pipeline import PassPipeline
from zc.program.copying import copy_program
from zc.program.printer import print_program
from zc.program.program import Program
from zc.torch_private import fake_world


def differences(args: argparse.Namespace) -> Iterator[str]:
    """One line of Markdown for each pass that can be taken out of the pipelines ``args.ablate``.

    It says whether the program is the same without the pass, and what the pass notes in the dump.
    """
    seen: set[str] = set()
    for spec in args.ablate:
        pipeline = PassPipeline.resolve(spec)
        removable = [name for name, refusal in ablations(spec) if refusal is None]
        new = [name for name in removable if name not in seen]
        seen.update(removable)
        with fake_world(args.ranks):
            logical = captured(pipeline, args)
            whole = rewritten(logical, pipeline)
            for name in new:
                other = rewritten(logical, without(pipeline, name))
                same = print_program(whole) == print_program(other)
                notes = [n.partition(": ")[2] for n in whole.notes if n.startswith(f"{name}: ")]
                what = "the same program" if same else "another program"
                yield f"- {spec} without `{name}` is {'; '.join([what, *notes])}"


def captured(pipeline: PassPipeline, args: argparse.Namespace) -> Program:
    """The logical program of the step that ``pipeline`` is to rewrite, as rank 0 has it."""
    with torch.device("meta"):
        model = GPT(args.config)
    preparing(pipeline)(model)
    with zc.without_memory():
        zc.materialize(model, "cpu")
        tokens = torch.zeros(args.rows, args.length, dtype=torch.int64)
    optimizer = torch.optim.AdamW(model.parameters(), **SETTINGS)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = model(tokens, targets)
        loss.backward()
        zc.step(optimizer)
        return loss.detach()

    return zc.capture(step, tokens, tokens.clone())


def rewritten(logical: Program, pipeline: PassPipeline) -> Program:
    """A copy of ``logical`` behind the passes of ``pipeline``."""
    program = copy_program(logical)
    run_passes(program, pipeline)
    return program
