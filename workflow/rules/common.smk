# The checked parameters, and what a rule takes from the declaration of its stage.
import math
import re
from functools import cache, partial
from pathlib import Path
from shlex import quote

from ptq2themoon.safety.code_behind import modules_behind, script_of
from ptq2themoon.safety.sidecars import sidecar_path
from ptq2themoon.vocabulary import layout, study_layout
from ptq2themoon.vocabulary.cost_model import cost_of
from ptq2themoon.vocabulary.elsewhere import bring
from ptq2themoon.vocabulary.job import Input, Job, Machine, Output, Parts, Setting, files_behind, words
from ptq2themoon.vocabulary.modes import MODES
from ptq2themoon.vocabulary.parameters import Params, Plots
from ptq2themoon.vocabulary.study_parameters import AUTO, BASE, CHANNELWISE
from ptq2themoon.vocabulary.times import times_of

# Where this file lies, not where Snakemake was called: another workflow may use this one as a module.
ROOT = Path(str(workflow.current_basedir)).parents[1]
AWAY = Path.cwd() != ROOT  # with --directory, or as a module
if AWAY:
    bring(ROOT, Path.cwd())
ENVIRONMENT = "../../environment.yml"


REPORTING = any(word.partition("=")[0] in ("--report", "--report-html-path") for word in sys.argv)

# Read again: Snakemake's own reader takes the last of two equal keys.
for path in workflow.configfiles:
    known(lambda: read_yaml(Path(path)))

FROM = ", ".join(map(str, workflow.configfiles)) or "--config"
PARAMS = known(lambda: Params.from_mapping(config, FROM))
known(lambda: PARAMS.check_files(FROM))
if PARAMS.plots.colormap != Plots().colormap:
    from ptq2themoon.plots.heatmap import check_colormap  # only matplotlib knows the names

    known(lambda: check_colormap(PARAMS.plots.colormap))

# All recipes that any target needs.
RECIPES = list(
    dict.fromkeys(
        [
            *PARAMS.recipes,
            *PARAMS.benchmark.recipes,
            *PARAMS.benchmark.learned,
            *PARAMS.study.recipes,
            *PARAMS.leaderboard.recipes,
            *PARAMS.data_free.sources.values(),
            *PARAMS.learning_curve.recipes,
            BASE,
            CHANNELWISE,
        ]
    )
)
RUNS = layout.runs_of(PARAMS, "")
SCATTERED = PARAMS.evaluation.shards > 1

METHODS = {}  # of a stage's recipes, as `methods_of` found them

ON_CLUSTER = 4  # cores of a job that runs a model; `--set-threads` says otherwise
SPARE = 1.3  # memory asked for over that expected
SLOWER = 3  # time asked for over that expected: no machine is the one that was measured


def on_cluster():
    """Whether jobs are a cluster's, or this is one of them: the cores of this machine say nothing then.

    Snakemake would give no job more threads than this machine has cores, and tell jobs that number.
    """
    if workflow.non_local_exec and not workflow.remote_exec:
        workflow.global_resources["_cores"] = workflow.resource_settings.cores = sys.maxsize
    return workflow.remote_exec or workflow.non_local_exec


def shared(jobs):
    """Cores of each of so many jobs that may run side by side."""
    return ON_CLUSTER if on_cluster() else max(1, workflow.cores // jobs)


def share(wildcards):
    """Cores of a job that runs a model: those of this machine shared by the runs."""
    return shared(len(RUNS))


def gatherer(wildcards):
    """The same for a stage that only gathers what shards found, where there are any."""
    return 1 if SCATTERED else share(wildcards)


def all_cores(wildcards):
    """Of what is timed: one after the other on a machine of their own, each job takes all cores."""
    return PARAMS.benchmark.threads if on_cluster() else workflow.cores


def asks(stage):
    """Memory, time and GPUs that a job asks a cluster for: what such jobs took, and more after each failure."""
    gpus = 1 if PARAMS.device == "cuda" and "device" in stage.model_fields else 0

    def megabytes(wildcards, attempt):
        return math.ceil(cost_of(stage, PARAMS, wildcards).mb * SPARE / 100) * 100 * attempt

    def minutes(wildcards, attempt):
        return math.ceil(5 + cost_of(stage, PARAMS, wildcards).seconds / 60 * SLOWER) * attempt

    return {"mem_mb": megabytes, "runtime": minutes, **({"gpu": gpus} if gpus else {})}


def inputs(stage, **more):
    """The files that a stage reads, by option; its code is one of them."""
    found = {name: files_of(stage, name) for name in stage.marked(Input)}
    if stage.unmarked_inputs is not Job.unmarked_inputs:
        found["others"] = partial(unmarked_files, stage)
    if SCATTERED:
        found |= {
            name: gather.shards(mark.path, allow_missing=True) for name, mark in stage.marked(Parts).items()
        }
    return {**found, "code": partial(code, stage), **more}


def files_of(stage, name):
    """The files of one option: a pattern where they are the same for all wildcards."""
    mark = stage.marked(Input)[name]
    if isinstance(mark.path, str) and mark.files is None:
        return mark.path

    def files(wildcards):
        given = checked(lambda: stage.given(name, PARAMS, wildcards))
        return checked(lambda: counted(mark, tuple(given) if isinstance(given, list) else given))

    return files


@cache  # no file of a recipe or a model changes while jobs are planned
def counted(mark, given):
    return [str(path) for path in files_behind(mark, given)]


def unmarked_files(stage, wildcards):
    return checked(lambda: [str(path) for path in stage.of(PARAMS, wildcards).unmarked_inputs()])


def outputs(stage, **wrapped):
    """The files that a stage writes, by option; `wrapped` says what marks one of them, such as `temp`."""
    found = {name: mark.path for name, mark in stage.marked(Output).items() if not callable(mark.path)}
    found = {name: list(path) if isinstance(path, tuple) else path for name, path in found.items()}
    return found | {name: wrap(found[name]) for name, wrap in wrapped.items()}


def part(stage):
    """The output of a shard, and its sidecar: both go when they are gathered."""
    (mark,) = stage.marked(Output).values()
    return {**outputs(stage, out=temp), "sidecar": temp(str(sidecar_path(Path(mark.path))))}


def here(path):
    """A file of the repository, as jobs name it."""
    return str(path if AWAY else path.relative_to(ROOT))


def run_by(python):
    """What a rule runs, with the `params` of `call`; an environment of conda's needs no installed package so."""
    source = quote(here(ROOT / "src")).replace("{", "{{").replace("}", "}}")
    path = f"PYTHONPATH={source}${{{{PYTHONPATH:+:$PYTHONPATH}}}}"
    return f"{path} {python} {{params.script:q}} {{params.files:q}} {{params.settings:q}} > {{log}} 2>&1"


RUN = run_by("python")


def call(stage):
    """The parameters of a rule, from which `RUN` makes the command of its stage.

    None where a report is made: it would show words of a command line as parameters of the job.
    """
    if REPORTING:
        return {}
    return {"script": script(stage), "files": files(stage), "settings": settings(stage)}


def settings(stage):
    """The words of a stage's command that parameters decide: a job runs again when they change."""

    def words_of(wildcards):
        given = {name: checked(lambda: stage.given(name, PARAMS, wildcards)) for name in decided(stage)}
        return [word for name, value in given.items() for word in option(name, value)]

    return words_of


def decided(stage):
    """Options that parameters decide; of files only those that a pattern does not name."""
    marks = stage.marked((Input, Setting))
    return [name for name, mark in marks.items() if isinstance(mark, Setting) or not is_plain(stage, name)]


def is_plain(stage, name):
    mark = stage.marks()[name]
    return mark.files is None and not callable(mark.path) and not stage.is_optional(name)


def files(stage):
    """The words of a stage's command that name its files, and what the machine decides."""
    marks = stage.marks()
    given = [name for name in stage.marked(Input) if is_plain(stage, name)]
    made = [name for name, mark in stage.marked(Output).items() if not callable(mark.path)]
    if SCATTERED:
        given += stage.marked(Parts)

    def words_of(wildcards, input, output, threads):
        named = {
            **{name: getattr(input, name) for name in given},
            **{name: getattr(output, name) for name in made},
        }
        machine = {name: mark.value.format(threads=threads) for name, mark in stage.marked(Machine).items()}
        return [word for each in (named, machine) for name in each for word in option(name, each[name])]

    return words_of


def option(name, given):
    """The words of an option; none where there is nothing to say."""
    flag = f"--{name.replace('_', '-')}"
    if given is True:
        return [flag]
    return [] if given is False or not words(given) else [flag, *words(given)]


def script(stage):
    """The script of that name, in whichever theme's folder."""
    return here(script_of(stage.stage, ROOT))


def said(stage):
    """What a job says: of which model or run, and what its stage does."""
    what = stage.__doc__.splitlines()[0].rstrip(".")
    return f"{stage.where.replace('{', '{wildcards.')}: {what}" if stage.where else what


def log_of(stage):
    return str(Path("logs", stage.where, f"{stage.stage}.log"))


def shown(caption, category, **labels):
    """Marks a file, or the PNG among several, for the report."""
    mark = partial(report, caption=f"../report/{caption}.rst", category=category, **labels)

    def wrap(files):
        if isinstance(files, str):
            return mark(files)
        return [mark(file) if file.endswith(".png") else file for file in files]

    return wrap


def figure(caption, label):
    """Marks a figure of the pipeline for the report."""
    return shown(caption, "2 {model}", subcategory="1 Figures", labels={"figure": label})


def table(caption, label):
    """Marks a table of one run for the report."""
    labels = {"table": label, "recipe": "{recipe}", "key": "{key}"}
    return shown(caption, "2 {model}", subcategory="2 Tables", labels=labels)


def on_board(caption, shows, category="5 Leaderboard: {model}"):
    """Marks a PNG or table of the leaderboard for the report."""
    return shown(f"leaderboard_{caption}", category, labels={"shows": shows})


def code(stage, wildcards):
    """A stage's script and the modules behind it: its inputs too."""
    called = stage.methods_called is not Job.methods_called
    methods = methods_of(stage, wildcards) if called else ()
    return [here(path) for path in modules_behind(stage.stage, methods, ROOT)]


def methods_of(stage, wildcards):
    """Names of the methods that a job's recipes call, which are imported by these names; each found once."""
    key = (stage, wildcards.get("recipe"), wildcards.get("part"))
    if key not in METHODS:
        METHODS[key] = checked(lambda: stage.of(PARAMS, wildcards).methods_called())
    return METHODS[key]


def decoders(wildcards):
    """Threads that decode images; arrays need none."""
    on_cluster()
    model = PARAMS.every_model[wildcards.model]
    return 1 if PARAMS.every_dataset[model.dataset].kind == "arrays" else 4


def ending():
    """What to look at after a run; nothing where a target of its own was made."""
    summary = Path(layout.SUMMARY[1])
    if not summary.is_file():
        return
    yield f"One row per model and recipe: {summary}"
    for model in PARAMS.models:
        yield f"Figures of {model}: {Path(layout.figure('top1', 'png').format(model=model)).parent}"
        ships = [
            layout.fill(layout.INT8, run.as_mode(layout.SHIPPED)) for run in layout.runs_of(PARAMS, model)
        ]
        yield from (f"INT8 to ship: {file}" for file in ships if Path(file).is_file())
    yield "Next: `snakemake --report report.html` makes one page of all; docs/your_model.md takes a model of yours"
