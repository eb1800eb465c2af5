# What the rules of the study have in common.
from ptq2themoon.study.settings import BASE, CHANNELWISE

# Bits, images and seed of what the study looks at closely: as the pipeline's own, so that nothing is made twice.
STUDY_KEY = f"{STUDY.bits[0]}-n{PARAMS.calibration.images}-s{PARAMS.calibration.seeds[0]}"


def studied(name, part, caption=None, **labels):
    """A PNG or table of a model's study, for the report; `part` orders the chapters."""
    return report(
        f"results/{{model}}/study/{name}",
        caption=f"../report/study_{caption or Path(name).stem}.rst",
        category="Study of {model}",
        subcategory=part,
        labels=labels,
    )


def study_qparams(recipe):
    """Quantization parameters of a model by one of the study's recipes."""
    return multiext(f"results/models/{{model}}/{recipe}/{STUDY_KEY}/qparams", ".json", ".safetensors")
