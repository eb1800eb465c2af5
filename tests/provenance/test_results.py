"""What the data stages record is what the verifier expects, for every kind of data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_images import arguments, picture, run_script, write_info

from ptq2themoon.provenance.expected import expected_results
from ptq2themoon.vocabulary.parameters import Params

ROOT = Path(__file__).resolve().parents[2]
RUN = {
    "models": {"m": {"source": f"local-dir:{ROOT}/resources/demo/model", "dataset": "d"}},
    "recipes": ["vanilla"],
    "bits": ["w8a8"],
    "calibration": {"images": 4, "batch_size": 2, "seeds": [7]},
    "evaluation": {"images": None, "batch_size": 2},
}


def write_all_kinds() -> None:
    """Class folders 0 and 1, a list of their images, and torchvision's GTSRB."""
    for label in range(2):
        for number in range(2):
            for folder in (Path(f"images/{label}"), Path(f"data/gtsrb/GTSRB/Training/{label:05}")):
                folder.mkdir(parents=True, exist_ok=True)
                picture(2 * label + number).save(folder / f"{number}.ppm")
    lines = [f"{i // 2}/{i % 2}.ppm,{i // 2}" for i in range(4)]
    Path("images/list.csv").write_text("\n".join(["path,label", *lines]) + "\n")


KINDS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "folder": ("images", {}, 2),
    "folder of imagenet": ("images", {"classes": "imagenet"}, 1000),
    "csv": ("images/list.csv", {}, 2),
    "torchvision": ("GTSRB:train:data", {}, None),
}


@pytest.mark.parametrize("name", KINDS)
def test_recorded_as_expected(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    write_all_kinds()
    (kind, *_), (place, more, head) = name.split(), KINDS[name]
    dataset = {"kind": kind, "calibration": place, "evaluation": place, **more}
    params = Params.from_mapping({**RUN, "datasets": {"d": dataset}})
    expected = {
        result.stage: result
        for result in expected_results(params)
        if result.stage == "list_evaluation" or (result.stage == "draw_calibration" and result.seed == 7)
    }
    drawn, listed = (expected[stage].outputs[0] for stage in ("draw_calibration", "list_evaluation"))
    drawn.parent.mkdir(parents=True)
    info = write_info(drawn.parent / "model.json", num_classes=head)
    options = {"kind": kind, "source": place, "info": info, **more}
    drawing = arguments(**options, images=4, seed=7, out=drawn)
    assert not run_script("draw_calibration.py", drawing, monkeypatch)
    assert not run_script("list_evaluation.py", arguments(**options, images="all", out=listed), monkeypatch)
    for output, result in ((drawn, expected["draw_calibration"]), (listed, expected["list_evaluation"])):
        sidecar = json.loads(output.with_name(f"{output.stem}.sidecar.json").read_text())
        assert sidecar["parameters"] == result.parameters
        assert list(sidecar["inputs"]) == [path.as_posix() for path in result.inputs]
        assert sidecar["seed"] == result.seed
    assert np.loadtxt(listed, delimiter=",", skiprows=1, usecols=1).tolist() == [0, 0, 1, 1]
