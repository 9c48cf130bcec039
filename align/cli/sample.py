"""``align sample``: parse, call, print."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from align.cli.choices import REWARD, SPELT, choice_of, files, prompt_or_file, reward_of
from align.cli.command_context import loading, quiet, show_progress

if TYPE_CHECKING:
    from align.core.inference.sampler import Completion


@click.command()
@click.argument("model", shell_complete=files, help="A model directory or hub id; an adapter is one too.")
@click.argument(
    "prompt", metavar="PROMPT|FILE", shell_complete=files, help="A prompt, or a file whose rows have a `prompt`."
)
@click.option("--max-completion-length", type=int, default=256, show_default=True, help="Longest answer, in tokens.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Divides the logits; 0: the likeliest.")
@click.option("--greedy", is_flag=True, help="The same as --temperature 0.")
@click.option("--top-k", type=int, default=0, show_default=True, help="Keep the k likeliest tokens; 0: all.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Keep the likeliest that reach this.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Keep those this share as likely as the top.")
@click.option(
    "--repetition-penalty", type=float, default=1.0, show_default=True, help="Over 1: fewer tokens that occur already."
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Ends an answer; repeatable.")
@click.option("--stop-token", multiple=True, metavar="TOKEN", help="An id or a token that ends one; repeatable.")
@click.option("-n", "n", type=click.IntRange(min=1), default=1, show_default=True, help="Answers to each prompt.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="All draws follow from it.")
@click.option("--best-of", type=click.IntRange(min=1), metavar="N", help="Of N answers the one with the best reward.")
@click.option("--reward", multiple=True, metavar="REWARD", help=f"{REWARD}; repeatable, summed by their weight.")
@click.option("--generator", default="local", show_default=True, metavar="GENERATOR", help=f"{SPELT}.")
@click.option("--chat/--raw", default=None, help="Ask text as a user's message, or have it continued.")
@click.option("--context", type=click.IntRange(min=2), help="Most tokens of prompt and answer; default: the model's.")
@click.option("--jsonl", type=click.Path(path_type=Path, dir_okay=False), help="Write the answers as JSON lines.")
@click.option("--force", is_flag=True, help="Write over the file that --jsonl names.")
@click.option("--trust-remote-code", is_flag=True, help="Run model code that comes with the weights.")
@quiet
def sample(
    model: str,
    prompt: str,
    n: int,
    seed: int,
    best_of: int | None,
    reward: tuple[str, ...],
    generator: str,
    chat: bool | None,
    context: int | None,
    jsonl: Path | None,
    force: bool,
    trust_remote_code: bool,
    quiet: bool,
    greedy: bool,
    stop: tuple[str, ...],
    stop_token: tuple[str, ...],
    **drawn: Any,
) -> None:
    """Print answers of MODEL to a PROMPT, or to every row of a FILE that has a `prompt`.

    One answer is printed as it comes; several are JSON lines. A prompt on the command line is a user's message where
    the model has a chat template (--raw: it is continued); strings in a FILE are continued (--chat: messages).

    \b
    Example:
      align sample runs/first/sft/export "Is 7 prime?"
      align sample runs/first/sft/export prompts.jsonl -n 4 --reward math --jsonl answers.jsonl
    """
    if best_of and (n != 1 or not reward):
        raise click.UsageError("--best-of takes the place of -n, and needs a --reward")
    if jsonl is not None and jsonl.is_file() and not force:
        raise click.UsageError(f"{jsonl} exists: give --jsonl another path, or --force to write over it")

    show_progress(not quiet)
    with loading():
        from align.api.sampling import SampleRequest
        from align.core.plugin_system.registry import check, dotted
        from align.core.util.atomic_files import growing_file
        from align.schemas.run import Sampling

    drawn |= {"stop": list(stop)} | ({"temperature": 0.0} if greedy else {})
    request = SampleRequest(
        model,
        prompt_or_file(prompt),
        check(Sampling, drawn, lambda path: "--" + dotted(path).replace("_", "-")),
        n=n,
        best_of=best_of,
        rewards=[reward_of(word) for word in reward],
        chat=chat,
        context=context,
        generator=choice_of(generator, "generator"),
        seed=seed,
        trust_remote_code=trust_remote_code,
        stop_tokens=stop_token,
    )
    with ExitStack() as opened:
        session = opened.enter_context(request.opened())
        if jsonl is None and len(session.records) == 1 and n == 1:
            completion = session.stream(lambda text: click.echo(text, nl=False))
            click.echo()
            _print_facts(completion)
            return
        out = opened.enter_context(growing_file(jsonl)) if jsonl else sys.stdout
        if out.isatty():
            show_progress(False)  # the answers show the progress, and a bar would break their lines
        count, cut_off, paid = 0, 0, list[float]()
        for completion in session.completions():
            out.write(completion.line() + "\n")
            out.flush()
            count += 1
            cut_off += completion.sample.finish == "length"
            if completion.scored is not None and completion.scored.reward is not None:
                paid.append(completion.scored.reward)
    if not quiet:
        rewards = paid if reward else None
        click.echo(_summary(count, cut_off, request.sampling.max_completion_length, rewards, jsonl), err=True)


def _summary(count: int, cut_off: int, max_completion_length: int, paid: list[float] | None, jsonl: Path | None) -> str:
    """Return one line on all answers. paid: the rewards of those that were scored; None where there is no reward."""
    facts = [f"{count:,} answer{'s' * (count != 1)}{f' in {jsonl}' if jsonl else ''}"]
    if cut_off:
        facts.append(f"{cut_off:,} cut off (--max-completion-length {max_completion_length}, or the context is full)")
    if paid is not None:
        facts.append(f"mean reward {sum(paid) / len(paid):z.4f}" if paid else "none scored")
        if 0 < len(paid) < count:
            facts.append(f"{count - len(paid):,} not scored")
    return "; ".join(facts)


def _print_facts(answer: Completion) -> None:
    """Print on stderr what is known of an answer in addition to its text."""
    if answer.sample.finish == "length":
        click.echo(f"(cut off after {len(answer.sample.tokens)} tokens)", err=True)
    if answer.scored is None:
        return
    if answer.scored.reward is None:
        click.echo(f"(no reward scored any of {answer.best_of} answers; this is the first)", err=True)
    else:
        parts = ", ".join(f"{name} {value}" for name, value in answer.scored.parts.items())
        click.echo(f"(reward {answer.scored.reward:.4g}, best of {answer.best_of}: {parts})", err=True)
