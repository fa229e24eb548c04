"""gradlab completion: print what a shell needs to complete commands, options and their choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tyro.conf import Positional

from gradlab.commands.parsing import parse


@dataclass(frozen=True)
class CompletionOptions:
    """Print the completion of gradlab for a shell.

    Put `source <(gradlab completion bash)` into ~/.bashrc, or
    `source <(gradlab completion zsh)` into ~/.zshrc.
    """

    shell: Positional[Literal["bash", "zsh"]]
    """Whose."""


Known = Mapping[str, Mapping[str, Sequence[str]]]
"""Command -> option or, as '', what stands without one -> its choices; none: a file, or free."""


def completion(arguments: Sequence[str], kinds: Mapping[str, type[Any]]) -> int:
    """Print what a shell needs to complete commands and options."""
    options = parse(CompletionOptions, "completion", arguments)
    known = {"train": train_choices()}
    known |= {name: choices_of(kind) for name, kind in kinds.items()}
    known["matrix"] = {**known["matrix"], "": plan_names()}
    print("\n".join(script(options.shell, known)))
    return 0


def choices_of(kind: type[Any]) -> dict[str, Sequence[str]]:
    """The options of a command with the values that they take."""
    found: dict[str, Sequence[str]] = {}
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, name, is_free = hints[field.name], field.name, False
        while hasattr(hint, "__metadata__"):  # Annotated
            for mark in hint.__metadata__:
                name = getattr(mark, "name", None) or name
                is_free |= mark in Positional[int].__metadata__  # type: ignore[attr-defined]
            hint = get_args(hint)[0]
        if hint is bool and field.default is True:
            name = f"no-{name}"
        literal = [one for one in (hint, *get_args(hint)) if get_origin(one) is Literal]
        choices = [str(value) for one in literal for value in get_args(one)]
        found["" if is_free else f"--{name.replace('_', '-')}"] = choices
    return found | {"--help": []}


def train_choices() -> dict[str, Sequence[str]]:
    """Those of `gradlab train`, with names that are known beside a free text."""
    import trainers
    from gradlab.commands.training_options import Beside
    from trainers.advantages import estimators
    from trainers.config import REWARDS, TrainConfig
    from trainers.presets import PRESETS
    from trainers.tasks.sources.catalogue import SOURCES
    from trainers.workflows import WORKFLOWS

    embedded = (Path(trainers.__path__[0]) / "models" / "weights").iterdir()
    return {
        **choices_of(Beside),
        **choices_of(TrainConfig),
        "--preset": list(PRESETS),
        "--model": sorted(["tiny", "smollm2-135m", *(path.name for path in embedded)]),
        "--task": list(SOURCES),
        "--workflow": list(WORKFLOWS),
        "--reward": list(REWARDS),
        "--advantage": list(estimators("zero")),
        "--device": ["auto", "cpu", "cuda"],
        "--routing": ["isolated", "shared", "agents"],
        "--split": ["paper", "seed"],
    }


def plan_names() -> list[str]:
    """Plans that ship; files of one's own are completed by the shell."""
    from trainers.matrix.plan import shipped

    return list(shipped())


def script(shell: str, known: Known) -> Iterator[str]:
    """A function of bash, and how it is asked; zsh runs it through its bashcompinit."""
    if shell == "zsh":
        yield "(( $+functions[compdef] )) || { autoload -U compinit && compinit; }"
        yield "autoload -U +X bashcompinit && bashcompinit"
    yield "_gradlab() {"
    yield "    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}"
    yield "    local command=${COMP_WORDS[1]} options= choices= before= choice="
    yield "    COMPREPLY=()"
    yield "    # bash parts --option=value at the sign"
    yield "    if [[ $current == = ]]; then current="
    yield "    elif [[ $previous == = ]]; then previous=${COMP_WORDS[COMP_CWORD-2]}"
    yield "    # zsh leaves it whole"
    yield "    elif [[ $current == --*=* ]]; then"
    yield "        previous=${current%%=*} before=${current%%=*}= current=${current#*=}"
    yield "    fi"
    yield "    if ((COMP_CWORD == 1)); then"
    yield f'        choices="{" ".join([*known, "--help", "--version"])}"'
    yield "    else case $command in"
    for command, options in known.items():
        yield f'        {command}) options="{" ".join(name for name in options if name)}"'
        yield "            case $previous in"
        for option, choices in options.items():
            if option and choices:
                yield f'                {option}) choices="{" ".join(choices)}" ;;'
        if options.get(""):
            yield f'                {command}) choices="{" ".join(options[""])}" ;;'
        yield "            esac ;;"
    yield "    esac; fi"
    yield "    if [[ $current == -* && $previous != = && -z $before ]]; then"
    yield '        choices="$options $([[ $COMP_CWORD == 1 ]] && echo $choices)"'
    yield "    fi"
    yield "    # without choices the shell completes names of files"
    # compgen of zsh looks for the whole word, option and = included
    yield "    for choice in $choices; do"
    yield '        [[ $choice == "$current"* ]] && COMPREPLY+=("$before$choice")'
    yield "    done"
    yield "    if [[ -z $choices && -n $before ]]; then"
    yield '        for choice in "$current"*; do'
    yield '            [[ -e $choice ]] && COMPREPLY+=("$before$choice")'
    yield "        done"
    yield "    fi"
    yield "    return 0"
    yield "}"
    yield "complete -o default -F _gradlab gradlab"
