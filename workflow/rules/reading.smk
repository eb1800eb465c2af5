# What reads parameters before anything else.
from pathlib import Path

from snakemake.exceptions import WorkflowError

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.yaml_files import read_yaml


def checked(make):
    """What `make` returns; what is wrong for the user becomes Snakemake's own error."""
    try:
        return make()
    except UserError as error:
        raise WorkflowError(str(error)) from None
