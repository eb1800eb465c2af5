# The other tools have an environment of their own; `conda` is that of the shell.
PEERS = Path(".venv-peers/bin/python")


def peers_python(_):
    """The other tools' interpreter."""
    if not PEERS.is_file():
        raise WorkflowError(
            f"{PEERS}: not found; `make peers` installs the tools that the benchmark compares"
        )
    return str(PEERS)
