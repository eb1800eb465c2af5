"""The hub that timm takes weights from: quiet, quick to see that there is no network, and recorded."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import nn

from ptq2themoon.quiet import quiet
from ptq2themoon.safety.sidecars import sha256
from ptq2themoon.vocabulary.model_source import HUB, LOCAL

PATIENCE = 5  # seconds for one connection
FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")


@contextmanager
def hub_access(needed: bool) -> Iterator[bool]:
    """Within: the hub's library is silent; what is yielded says whether the hub can be reached.

    Where it cannot, only files that were fetched before are used, and nothing is tried again and again.
    """
    bars, offline = not are_progress_bars_disabled(), constants.HF_HUB_OFFLINE
    reachable = not needed or (not offline and _reachable(constants.ENDPOINT))
    disable_progress_bars()
    constants.HF_HUB_OFFLINE = not reachable
    try:
        with quiet("huggingface_hub"):
            yield reachable
    finally:
        constants.HF_HUB_OFFLINE = offline
        if bars:
            enable_progress_bars()


def _reachable(url: str) -> bool:
    """Whether a connection to the host of `url`, or to the proxy in between, can be opened."""
    parts = urlsplit(url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if proxy:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=PATIENCE).close()
    except (OSError, ValueError):
        return False
    return True


def how_to_provide(source: str) -> str:
    """What someone without a network can do."""
    if source.startswith(HUB):
        name, _, revision = source.removeprefix(HUB).partition("@")
        place = f"{constants.ENDPOINT}/{name}/tree/{revision or 'main'}"
        return f"fetch config.json and model.safetensors from {place}, give `source: {LOCAL}FOLDER`"
    tagged = _tagged(source)
    place = f"{constants.ENDPOINT}/timm/{tagged}/resolve/main/model.safetensors"
    return f"fetch {place} elsewhere, give `checkpoint: FILE.safetensors`"


def _tagged(name: str) -> str:
    """A timm name with the tag that the bare name stands for."""
    from timm.models import get_pretrained_cfg

    if "." in name:
        return name
    try:
        tag = getattr(get_pretrained_cfg(name), "tag", None)
    except RuntimeError:  # no weights are known for it
        tag = None
    return f"{name}.{tag}" if tag else name


def fetched_weights(model: nn.Module, cache: str | Path | None = None) -> dict[str, Any]:
    """Repository, revision (a commit) and sha256 of the file that timm loaded; its URL if from elsewhere."""
    facts = getattr(model, "pretrained_cfg", {})
    repository, _, revision = (facts.get("hf_hub_id") or "").partition("@")
    for name in (facts.get("hf_hub_filename"), *FILES):
        if not repository or not name:
            continue
        path = try_to_load_from_cache(repository, name, cache_dir=cache, revision=revision or None)
        if isinstance(path, str):
            snapshots = Path(path).parts
            commit = snapshots[snapshots.index("snapshots") + 1]
            return {"repository": repository, "revision": commit, "file": name, "sha256": sha256(Path(path))}
    return {"url": facts.get("url")}
