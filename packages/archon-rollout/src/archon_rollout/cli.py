"""``archon generate``: complete prompts with the model in a checkpoint folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from archon_core.cli.console import print_json, print_remark
from archon_core.contracts.rollout import GenerationConfig
from archon_core.errors import ConfigError

if TYPE_CHECKING:
    from archon_rollout.text_generation import TextCompletion

STANDARD_INPUT = Path("-")


def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder in Hugging Face format, or hub id.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]...", help="Prompts. Without any, and without --file: standard input."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Text file with one prompt per line; - for standard input.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Completions per prompt.")] = 1,
    max_new_tokens: Annotated[
        int, typer.Option(help="Largest number of tokens per completion, within the model's positions.")
    ] = 256,
    min_new_tokens: Annotated[
        int, typer.Option(help="Suppress stop tokens, and ignore stop texts, before this many tokens.")
    ] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text that ends a completion, and is left out of the output. May be repeated."),
    ] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Do not end at end-of-text tokens.")] = False,
    temperature: Annotated[float, typer.Option(help="Divide the logits by this.")] = 1.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="Subtract this from a token's logit for each time that the completion has it.")
    ] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the most probable tokens that reach this; 1 keeps all.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep this many most probable tokens; 0 keeps all.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the most probable token.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same completions.")] = 1,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat", help="Format prompts as user messages. Default: if the model has a chat template."
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Compute type, such as float64.")] = None,
    max_batch_size: Annotated[int, typer.Option(help="Largest number of sequences to decode at once.")] = 256,
    run_as: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Model plugin to run it with, such as hf. Default: the one for its model type.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with token ids and log-probabilities.")] = False,
) -> None:
    """Complete prompts with the model in a checkpoint folder.

    MODEL is a folder in Hugging Face format, or a hub id. Without PROMPT and --file, reads prompts from standard input,
    one per line.
    """
    texts = read_prompts(prompts or [], file)
    options = GenerationConfig(
        n_samples=n,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        stop=stop or None,
        ignore_eos=ignore_eos,
        temperature=temperature,
        frequency_penalty=frequency_penalty,
        top_p=top_p,
        top_k=top_k,
        greedy=greedy,
    )
    # Imported late: torch takes seconds, and the errors above should not wait for it.
    from archon_rollout.text_generation import TextGenerator

    generator = TextGenerator.load(model, max_batch_size=max_batch_size, dtype=dtype, run_as=run_as)
    ends = "no end-of-text token" if ignore_eos else generator.ends.described() or "no known token"
    print_remark(ends, label="completions end at: ", style="dim")
    start = time.perf_counter()
    results = generator.complete(texts, options, seed=seed, chat=chat)
    seconds = time.perf_counter() - start
    if as_json:
        print_json([describe(prompt, completions) for prompt, completions in zip(texts, results, strict=True)])
    else:
        print_completions(texts, results)
    n_tokens = sum(len(c.completion.token_ids) for completions in results for c in completions)
    print_remark(f"{n_tokens} tokens in {seconds:.1f} s ({n_tokens / seconds:.0f} tokens/s)", style="dim")


def read_prompts(arguments: Sequence[str], file: Path | None) -> list[str]:
    """The prompts of the command line, or the non-blank lines of ``file`` or standard input.

    Raises:
        ConfigError: there are no prompts, there are two sources, or the file cannot be read.
    """
    if arguments and file is not None:
        raise ConfigError(
            f"found {len(arguments)} prompts on the command line and --file {file}; allowed is one source of prompts; "
            "remove one"
        )
    if arguments:
        return list(arguments)
    if file in (None, STANDARD_INPUT):
        # On a terminal, reading would wait without a prompt.
        if file is None and sys.stdin.isatty():
            raise ConfigError(
                'found no prompt; write it after the model: archon generate MODEL "2 + 3 =", or use --file'
            )
        text, source = sys.stdin.read(), "standard input"
    else:
        try:
            text, source = file.read_text(encoding="utf-8"), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--file: cannot read {file}: {error}; give a UTF-8 text file with one prompt per line"
            ) from error
    prompts = [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ConfigError(f"found no prompt in {source}; write at least one line of text")
    return prompts


def describe(prompt: str, completions: Sequence[TextCompletion]) -> dict[str, object]:
    """The ``--json`` object of one prompt."""
    return {
        "prompt": prompt,
        "completions": [
            {
                "text": completion.text,
                "stop_reason": completion.completion.stop_reason,
                "token_ids": list(completion.completion.token_ids),
                "logprobs": list(completion.completion.logprobs),
            }
            for completion in completions
        ],
    }


def print_completions(prompts: Sequence[str], results: Sequence[Sequence[TextCompletion]]) -> None:
    """Print each completion after its dimmed prompt, with blank lines between them."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    shown = 0
    for prompt, completions in zip(prompts, results, strict=True):
        for number, completion in enumerate(completions, start=1):
            if shown:
                console.print()
            shown += 1
            if len(completions) > 1:
                console.print(Text(f"[{number} of {len(completions)}]", style="dim cyan"))
            console.print(Text.assemble((prompt, "dim"), completion.text), soft_wrap=True)
