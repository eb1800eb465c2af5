# What reads parameters before anything else.
import sys
import warnings
from pathlib import Path

from snakemake.exceptions import WorkflowError

from ptq2themoon.vocabulary.errors import UserError, lines_of
from ptq2themoon.vocabulary.yaml_files import read_yaml

# Snakemake's own, of the size of inputs that are not there yet: nothing is wrong.
warnings.filterwarnings("ignore", "coroutine 'InputFiles.* was never awaited", RuntimeWarning)


def known(make):
    """What `make` returns; what is wrong for the user ends the run, in lines of its own.

    Snakemake would add the place in its rules, and a traceback, to an error of its own.
    """
    try:
        return make()
    except UserError as error:
        print(*lines_of(error), sep="\n", file=sys.stderr)
        raise SystemExit(1) from None


def checked(make):
    """The same while jobs are planned, where only Snakemake's own error is let through."""
    try:
        return make()
    except UserError as error:
        raise WorkflowError(str(error)) from None
