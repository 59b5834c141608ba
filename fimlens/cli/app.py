"""The command `fimlens`: one file of this room for each subcommand."""

from typing import Annotated

import typer
from typer.core import TyperCommand

from fimlens import __version__
from fimlens.cli.ablate import ablate
from fimlens.cli.arguments import console
from fimlens.cli.compare import compare
from fimlens.cli.cost import cost
from fimlens.cli.derive import derive
from fimlens.cli.finetune import finetune
from fimlens.cli.lens import lens
from fimlens.cli.memory import memory
from fimlens.cli.pretrain import pretrain
from fimlens.cli.prove import prove
from fimlens.cli.recommend import recommend

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Command(TyperCommand):
    """A command whose functions get the context that typer names, and not the one of the library below it."""

    context_class = typer.Context


# In the order of the help page.
for command in (lens, recommend, derive, memory, ablate, pretrain, finetune, prove, compare, cost):
    app.command(cls=Command)(command)


@app.callback(invoke_without_command=True)
def main(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """A lens on optimizers: which matrix of a given structure is nearest to the Fisher?"""
    if show_version:
        console.print(__version__)
        raise typer.Exit


if __name__ == "__main__":
    app()
