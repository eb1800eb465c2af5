"""Which of torchvision's data sets can be named, as NAME:SPLIT:ROOT; needs no torchvision.

Those of images with one class each, that need no further package and unpickle nothing: the CIFARs are
pickles, but torchvision opens only files whose checksums it knows.
"""

from __future__ import annotations

from typing import NamedTuple

from ptq2themoon.vocabulary.errors import UserError, nearest

SPLITS: dict[str, tuple[str, ...]] = {
    "CIFAR10": ("train", "test"),
    "CIFAR100": ("train", "test"),
    "Country211": ("train", "valid", "test"),
    "DTD": ("train", "val", "test"),
    "FGVCAircraft": ("train", "val", "trainval", "test"),
    "FashionMNIST": ("train", "test"),
    "Food101": ("train", "test"),
    "GTSRB": ("train", "test"),
    "Imagenette": ("train", "val"),
    "KMNIST": ("train", "test"),
    "MNIST": ("train", "test"),
    "OxfordIIITPet": ("trainval", "test"),
    "STL10": ("train", "test"),
    "USPS": ("train", "test"),
}
# Their constructors take `train`, not `split`.
TRAIN_FLAG = frozenset({"CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS"})
FOLDERS = ("ImageFolder", "DatasetFolder", "ImageNet")


class TorchvisionName(NamedTuple):
    """`CIFAR10:train:data`: the data set, its part, and the folder that torchvision calls root."""

    name: str
    split: str
    root: str


def parse_torchvision(text: str) -> TorchvisionName:
    """Read and check NAME:SPLIT:ROOT."""
    name, _, rest = text.partition(":")
    split, _, root = rest.partition(":")
    if name in FOLDERS:
        raise UserError(f"{text!r}: {name} is read with `kind: folder`")
    if name not in SPLITS:
        raise UserError(f"{text!r}: unknown torchvision data set {name!r}; {nearest(name, SPLITS)}")
    if split not in SPLITS[name]:
        raise UserError(f"{text!r}: {name} has no split {split!r}; {nearest(split, SPLITS[name])}")
    if not root:
        raise UserError(f"{text!r}: NAME:SPLIT:ROOT expected, such as '{name}:{split}:data'")
    return TorchvisionName(name, split, root)
