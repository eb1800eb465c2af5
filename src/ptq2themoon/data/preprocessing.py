"""From an image of any size to a model's input, pixel for pixel as timm's evaluation transform."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ptq2themoon.data.images import MAX_PIXELS, UnreadableImage
from ptq2themoon.vocabulary.model_info import ModelInfo, PreprocessingInfo
from ptq2themoon.vocabulary.records import read


class Preprocessing(PreprocessingInfo):
    """The `preprocessing` of a model.json, ready to be applied."""

    @classmethod
    def of(cls, info: ModelInfo) -> Preprocessing:
        """The preprocessing that a model's information states."""
        return cls(**info.preprocessing.model_dump())

    @classmethod
    def read(cls, path: Path) -> Preprocessing:
        """From a model.json.

        Raises:
            UserError: a file of another form.
        """
        return cls.of(read(path, ModelInfo))

    @cached_property
    def _resize_and_crop(self) -> Callable[[Image.Image], Tensor]:
        # timm takes seconds to import, and arrays of the model's own size never come here.
        from timm.data.transforms_factory import create_transform

        # The mean is the colour of the padding when crop_mode is "border".
        settings = {key: getattr(self, key) for key in PreprocessingInfo.model_fields}
        transform: Callable[[Image.Image], Tensor] = create_transform(
            **settings, is_training=False, normalize=False
        )
        return transform

    def crop(self, image: Image.Image, name: str = "image") -> Tensor:
        """Resize and crop to uint8 [C, H, W]; the image's mode already matches the channels."""
        self.check_size(image.size, name)
        return self._resize_and_crop(image)

    def check_size(self, size: tuple[int, int], name: str) -> None:
        """Raise `UnreadableImage` where resizing would blow up an image, as it does a thin one.

        Args:
            size: its width and height.
        """
        side = max(self.input_size[1:]) / self.crop_pct
        resized = round(side * side * max(size) / min(size))
        if self.crop_mode == "center" and resized > MAX_PIXELS:
            raise UnreadableImage(
                f"{name}: {size[0]}x{size[1]} pixels become {resized} when the shorter side has the model's "
                f"{round(side)}; more than {MAX_PIXELS}"
            )

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to float32 of mean 0 and deviation 1 over the training data."""
        shape = (1, len(self.mean), 1, 1)
        mean = torch.tensor(self.mean, dtype=torch.float32).view(shape)
        std = torch.tensor(self.std, dtype=torch.float32).view(shape)
        return images.to(torch.float32).div_(255).sub_(mean).div_(std)
