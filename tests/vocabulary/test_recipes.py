"""The recipe language: what the three recipes say, which rule wins, and how slips are refused."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq2themoon.methods import method_names
from ptq2themoon.vocabulary.errors import UserError, nearest
from ptq2themoon.vocabulary.recipes import OPERANDS, ROLES, Operator, Recipe, TensorSpec, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
DEFAULTS = {
    "granularity": "per-tensor",
    "observer": "percentile",
    "percentile": 99.99,
    "weight_axis": "input",
}
OUTSIDE = ("patch_embed", "pos_add", "norm", "head")
ABSENT = ("q", "k", "v", "other")


def transformer(blocks: int) -> list[Operator]:
    """Operators of a ViT with one qkv layer, as fusion.json lists them."""
    inside = [role for role in ROLES if role not in OUTSIDE + ABSENT]
    found = [Operator(role, "", role, None) for role in OUTSIDE]
    return found + [Operator(f"{role}{b}", "", role, b) for b in range(blocks) for role in inside]


DEIT = transformer(12)
VANILLA = TensorSpec(True, 8, "per-tensor", "percentile", 99.99, "input")
PER_CHANNEL = TensorSpec(True, 8, "per-channel", "minmax", 99.99, "input")


def write(folder: Path, name: str, content: dict[str, Any] | str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def base(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"defaults": DEFAULTS, "rules": list(rules), **more}


def specs(
    recipe: Recipe, operators: Sequence[Operator] = DEIT, bits: tuple[int, int] = (8, 8)
) -> dict[Any, Any]:
    return {(o.name, operand): recipe.spec(o, operand, *bits) for o in operators for operand in OPERANDS}


def refusal(path: Path) -> str:
    """What `load_recipe` says, without the folder."""
    with pytest.raises(UserError) as error:
        load_recipe(path)
    return str(error.value).replace(f"{path.parent}/", "")


def refused_on(path: Path, operators: Sequence[Operator]) -> str:
    recipe = load_recipe(path)
    with pytest.raises(UserError) as error:
        recipe.check(operators)
    return str(error.value).replace(f"{path.parent}/", "")


# The three recipes ------------------------------------------------------------------------------


def test_vanilla_quantizes_every_tensor_as_the_study_does() -> None:
    recipe = load_recipe(RECIPES / "vanilla.yaml")
    assert set(specs(recipe).values()) == {VANILLA}
    assert (VANILLA.quant_min, VANILLA.quant_max, VANILLA.percentile) == (-128, 127, 99.99)


@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize("activation_bits", [4, 8])
def test_bits_come_from_params_and_biases_keep_8(weight_bits: int, activation_bits: int) -> None:
    recipe = load_recipe(RECIPES / "customized.yaml")
    expected = {"input": activation_bits, "weight": weight_bits, "bias": 8, "output": activation_bits}
    found = specs(recipe, bits=(weight_bits, activation_bits))
    assert all(spec.bits == expected[operand] for (_, operand), spec in found.items())


@pytest.mark.parametrize("bits", range(2, 9))
def test_range_is_symmetric_in_twos_complement(bits: int) -> None:
    spec = TensorSpec(True, bits, "per-tensor", "minmax", 99.99, "input")
    assert (spec.quant_min, spec.quant_max) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def test_layernorm_and_customized_differ_from_vanilla_only_where_they_say() -> None:
    norms = {"norm1", "norm2", "norm", "residual1", "residual2"}
    for name, extra in {"layernorm": set(), "customized": {("fc2", 5), ("fc2", 6)}}.items():
        recipe = load_recipe(RECIPES / f"{name}.yaml")
        recipe.check(DEIT)
        for operator in DEIT:
            changed = operator.role in norms or (operator.role, operator.block) in extra
            expected = PER_CHANNEL if changed else VANILLA
            assert {recipe.spec(operator, operand, 8, 8) for operand in OPERANDS} == {expected}


def test_a_recipe_knows_its_chain_of_files() -> None:
    recipe = load_recipe(RECIPES / "customized.yaml")
    assert recipe.name == "customized"
    assert [path.name for path in recipe.sources] == ["vanilla.yaml", "layernorm.yaml", "customized.yaml"]
    assert [(r.source.name, r.index) for r in recipe.rules] == [(p.name, 0) for p in recipe.sources]
    assert recipe.description.startswith("The study's own quantizer")
    assert recipe.methods == []


# Which rule wins --------------------------------------------------------------------------------

some_of = lambda values: st.lists(st.sampled_from(values), min_size=1, max_size=4, unique=True)  # noqa: E731
selections = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(ROLES) | some_of(ROLES),
        "block": st.integers(0, 3) | some_of(range(4)),
        "operand": st.sampled_from(OPERANDS) | some_of(OPERANDS),
    },
)
scales = st.sampled_from([("per-tensor", "percentile"), ("per-tensor", "mse"), ("per-channel", "minmax")])
changes = st.one_of(
    scales.map(lambda pair: {"granularity": pair[0], "observer": pair[1]}),
    st.fixed_dictionaries({"bits": st.integers(2, 16)}, optional={"quantize": st.booleans()}),
    st.fixed_dictionaries(
        {"percentile": st.floats(90, 100), "weight_axis": st.sampled_from(["input", "output"])}
    ),
)
rules = st.builds(lambda select, change: {"select": select, **change}, selections, changes)
TINY = [*transformer(3), Operator("loose", "", "other", None), Operator("q0", "", "q", 0)]


def loaded(**recipes: dict[str, Any]) -> Recipe:
    """The last of some recipes that lie in one folder."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [write(Path(folder), name, content) for name, content in recipes.items()]
        return load_recipe(paths[-1])


def meets(select: dict[str, Any], operator: Operator, operand: str) -> bool:
    found = {"role": operator.role, "block": operator.block, "operand": operand}
    return all(found[key] in (want if isinstance(want, list) else [want]) for key, want in select.items())


@settings(max_examples=60)
@given(st.lists(rules, max_size=5), rules)
def test_the_last_rule_wins_where_it_selects_and_only_there(earlier: list[Any], last: dict[str, Any]) -> None:
    before, after = loaded(a=base(*earlier)), loaded(a=base(*earlier, last))
    change = {key: value for key, value in last.items() if key != "select"}
    for operator in TINY:
        for operand in OPERANDS:
            old, new = (vars(r.spec(operator, operand, 4, 6)) for r in (before, after))
            assert new == (old | change if meets(last["select"], operator, operand) else old)


@settings(max_examples=60)
@given(st.lists(st.lists(rules, max_size=3), min_size=1, max_size=4))
def test_a_chain_of_recipes_is_its_rules_one_after_the_other(parts: list[list[Any]]) -> None:
    files = {"r0": base(*parts[0])}
    files |= {f"r{i}": {"extends": f"r{i - 1}", "rules": parts[i]} for i in range(1, len(parts))}
    chained, flat = loaded(**files), loaded(flat=base(*chain(*parts)))
    assert chained.resolved() == flat.resolved()
    assert specs(chained, TINY) == specs(flat, TINY)


@settings(max_examples=30)
@given(st.lists(rules, max_size=5))
def test_what_resolved_gives_is_the_same_recipe(parts: list[Any]) -> None:
    recipe = loaded(a=base(*parts))
    again = loaded(b=recipe.resolved())
    assert again.resolved() == recipe.resolved()
    assert specs(again, TINY) == specs(recipe, TINY)


# Slips found when a recipe is read --------------------------------------------------------------

ONE = {"select": {"role": "fc2"}, "bits": 4}
SLIPS: list[tuple[dict[str, Any], str]] = [
    ({"extend": "vanilla"}, "extend: unknown key; did you mean 'extends'?"),
    (base({**ONE, "observr": "kl"}), "rules[0].observr: unknown key; did you mean 'observer'?"),
    (base({**ONE, "select": {"roles": "fc2"}}), "rules[0].select.roles: unknown key; did you mean 'role'?"),
    (base(ONE, {**ONE, "select": {"role": "fc3"}}), "select.role: unknown value 'fc3'; did you mean 'fc2'?"),
    (
        base({**ONE, "select": {"role": ["fc1", "nrom1"]}}),
        "rules[0].select.role[1]: unknown value 'nrom1'; did you mean 'norm1'?",
    ),
    (
        base({**ONE, "select": {"operand": "bais"}}),
        "rules[0].select.operand: unknown value 'bais'; did you mean 'bias'?",
    ),
    (base({**ONE, "select": {"operand": "x"}}), "unknown value 'x'; valid: input, weight, bias, output"),
    (base({**ONE, "select": {"block": -1}}), "rules[0].select.block: -1 is too small; nearest valid: 0"),
    (base({**ONE, "select": {"block": [5, -6]}}), "select.block[1]: -6 is too small; nearest valid: 0"),
    (base({**ONE, "select": {"block": "5"}}), "rules[0].select.block: must be an integer, not '5'"),
    (base({**ONE, "select": {"block": True}}), "rules[0].select.block: must be an integer, not true"),
    (base({**ONE, "select": {"role": []}}), "rules[0].select.role: is empty; give at least one"),
    (base({**ONE, "select": {"role": None}}), "rules[0].select.role: is empty; give a value or drop the key"),
    (base({"bits": 4}), "rules[0].select: missing"),
    (base({"select": {}}), "rules[0]: sets nothing; valid: quantize, bits, kind, symmetry, codes,"),
    (base({**ONE, "bits": 1}), "rules[0].bits: 1 is too small; nearest valid: 2"),
    (base({**ONE, "bits": 32}), "rules[0].bits: 32 is too large; nearest valid: 16"),
    (base({**ONE, "bits": "4"}), "rules[0].bits: must be an integer, not '4'"),
    (base({**ONE, "observer": "MinMax"}), "observer: unknown value 'MinMax'; did you mean 'minmax'?"),
    (base({**ONE, "quantize": "no"}), "rules[0].quantize: must be true or false, not 'no'"),
    (base({**ONE, "percentile": 0.9999}), "percentile: 0.9999 is not in percent; did you mean 99.99?"),
    (base({**ONE, "percentile": 101}), "rules[0].percentile: 101 is too large; nearest valid: 100.0"),
    (base(defaults={**DEFAULTS, "observer": "mze"}), "observer: unknown value 'mze'; did you mean 'mse'?"),
    ({"defaults": {k: DEFAULTS[k] for k in DEFAULTS if k != "percentile"}}, "defaults.percentile: missing"),
    ({"description": "no base"}, "defaults: missing; a recipe that extends none must state granularity,"),
    (base(extends="vanilla"), "defaults: not together with 'extends'; give a rule with 'select: {}' instead"),
    (base(methods=[{"name": "smooth"}]), f"unknown method 'smooth'; {nearest('smooth', method_names())}"),
    (base(methods=["repq_vit"]), "methods[0]: must be a mapping, not 'repq_vit'"),
    (base(rules={"select": {}}), "rules: must be a list, not {"),
    ({"extends": "vanila"}, "extends: unknown recipe 'vanila' in "),
    ({"extends": "vanila"}, "did you mean 'vanilla'?"),
    ({"extends": "../vanilla"}, "extends: unknown recipe '../vanilla' in "),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), SLIPS, ids=[message for _, message in SLIPS])
def test_slip_is_refused_with_file_key_value_and_nearest(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    write(tmp_path, "vanilla", base())
    text = refusal(write(tmp_path, "mine", content))
    assert text.startswith("mine.yaml: ")
    assert message in text
    assert "\n" not in text


def test_every_slip_has_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", base({**ONE, "bit": 4}, {**ONE, "select": {"role": "fc3", "block": -1}}))
    assert refusal(path).splitlines() == [
        "mine.yaml: rules[0].bit: unknown key; did you mean 'bits'?",
        "mine.yaml: rules[1].select.role: unknown value 'fc3'; did you mean 'fc2'?",
        "mine.yaml: rules[1].select.block: -1 is too small; nearest valid: 0",
    ]


def test_a_slip_in_an_extended_recipe_names_that_file(tmp_path: Path) -> None:
    write(tmp_path, "vanilla", base({**ONE, "bits": 99}))
    path = write(tmp_path, "mine", {"extends": "vanilla"})
    assert refusal(path) == "vanilla.yaml: rules[0].bits: 99 is too large; nearest valid: 16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [\n", "mine.yaml: not readable as YAML: while parsing"),
        ("- 1\n", "mine.yaml: must hold a mapping (key: value), not [1]"),
        ("", "mine.yaml: must hold a mapping (key: value), not empty"),
        ("extends: a\nextends: b\n", "mine.yaml: key 'extends' is given twice, again in line 2"),
        ("rules:\n- select: {role: q, role: k}\n", "mine.yaml: key 'role' is given twice, again in line 2"),
        ("rules: !!python/object/apply:os.system [echo]\n", "mine.yaml: not readable as YAML: could not"),
        ("rules: &a [*a]\n", "mine.yaml: line 1: *a stands within what it names"),
        ("? [a]\n: 1\n", "mine.yaml: not readable as YAML: while constructing a mapping"),
        ("1: x\n", "mine.yaml: 1: unknown key; a key must be text"),
    ],
)
def test_what_is_not_a_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(write(tmp_path, "mine", text)).startswith(message)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "mine.yaml") == "mine.yaml: No such file or directory"


def test_a_circle_is_refused(tmp_path: Path) -> None:
    for name, extends in {"a": "b", "b": "c", "c": "a"}.items():
        write(tmp_path, name, {"extends": extends})
    assert refusal(tmp_path / "a.yaml") == "c.yaml: extends: 'a' closes a circle: 'a' <- 'c' <- 'b' <- 'a'"
    assert "'d' <- 'd'" in refusal(write(tmp_path, "d", {"extends": "d"}))


# Settings that contradict each other ------------------------------------------------------------


@pytest.mark.parametrize("observer", ["percentile", "kl", "mse"])
def test_per_channel_needs_an_observer_of_channels(tmp_path: Path, observer: str) -> None:
    rule = {"select": {"role": "fc2", "block": 5}, "granularity": "per-channel", "observer": observer}
    assert refusal(write(tmp_path, "mine", base(ONE, rule))) == (
        "mine.yaml: rules[1].granularity: per-channel works only with observer minmax or percentiles, but "
        f"fc2 in block 5 (input) has {observer!r} from mine.yaml: rules[1].observer"
    )


def test_the_observer_in_force_counts_wherever_it_was_set(tmp_path: Path) -> None:
    write(tmp_path, "base", base({"select": {"operand": "output"}, "observer": "kl"}))
    rule = {"select": {"role": "norm"}, "granularity": "per-channel"}
    path = write(tmp_path, "mine", {"extends": "base", "rules": [rule]})
    assert "norm (input) has 'percentile' from base.yaml: defaults.observer" in refusal(path)
    rule["select"]["operand"] = "output"  # type: ignore[index]
    path = write(tmp_path, "mine", {"extends": "base", "rules": [rule]})
    assert "norm (output) has 'kl' from base.yaml: rules[0].observer" in refusal(path)


def test_kl_is_refused_where_it_does_not_work(tmp_path: Path) -> None:
    """From five bits on it is of use; the bits of params.yaml decide."""
    recipe = load_recipe(write(tmp_path, "base", base({"select": {"role": "fc1"}, "observer": "kl"})))
    fc1 = Operator("", "", "fc1", 3)
    assert recipe.spec(fc1, "output", 4, 5).observer == "kl"
    with pytest.raises(
        UserError, match=r"base.yaml: rules\[0\].observer: .* fc1 in block 3 \(weight\) has 4; "
    ):
        recipe.spec(fc1, "weight", 4, 5)


def test_a_later_rule_may_settle_a_contradiction(tmp_path: Path) -> None:
    channel = {"select": {"role": "norm1"}, "granularity": "per-channel"}
    load_recipe(write(tmp_path, "later", base(channel, {"select": {"role": "norm1"}, "observer": "minmax"})))
    load_recipe(write(tmp_path, "float", base(channel, {"select": {"role": "norm1"}, "quantize": False})))


def test_a_contradiction_in_one_block_is_refused_at_the_tensor(tmp_path: Path) -> None:
    channel = {"select": {"role": "norm1"}, "granularity": "per-channel", "observer": "minmax"}
    path = write(tmp_path, "mine", base(channel, {"select": {"role": ["norm1", "fc1"]}, "bits": 6}))
    recipe = load_recipe(path)
    assert recipe.spec(Operator("n", "", "norm1", 3), "input", 8, 8).bits == 6
    path = write(tmp_path, "mine", base(channel, {"select": {"block": 3}, "observer": "mse"}))
    assert "norm1 in block 3 (input) has 'mse' from mine.yaml: rules[1].observer" in refusal(path)


# Rules that select nothing in a model -----------------------------------------------------------


@pytest.mark.parametrize(
    ("select", "key", "message"),
    [
        ({"role": "q"}, "role", "'q'; did you mean 'qk'?"),
        ({"role": ["other", "v"]}, "role", "'other', 'v'; valid: patch_embed, pos_add, norm1, qkv,"),
        ({"role": "fc2", "block": 12}, "block", "12; nearest valid: 11 ('fc2' has blocks 0 to 11)"),
        ({"role": "fc2", "block": [5, 40]}, "block", "40; nearest valid: 11 ('fc2' has blocks 0 to 11)"),
        ({"block": 99}, "block", "99; nearest valid: 11 (this model has blocks 0 to 11)"),
        ({"role": "norm", "block": 3}, "block", "3; 'norm' has no block, drop the key"),
    ],
)
def test_a_rule_that_selects_nothing_is_refused(
    tmp_path: Path, select: dict[str, Any], key: str, message: str
) -> None:
    path = write(tmp_path, "mine", base(ONE, {"select": select, "bits": 4}))
    text = refused_on(path, DEIT)
    assert text.startswith(f"mine.yaml: rules[1].select.{key}: selects no operator with {message}")
    assert "\n" not in text


def test_an_inherited_rule_that_selects_nothing_is_refused() -> None:
    assert refused_on(RECIPES / "customized.yaml", transformer(6)) == (
        "customized.yaml: rules[0].select.block: selects no operator with 6; "
        "nearest valid: 5 ('fc2' has blocks 0 to 5)"
    )
    without_norms = [o for o in DEIT if not o.role.startswith(("norm", "residual"))]
    assert refused_on(RECIPES / "customized.yaml", without_norms).startswith(
        "layernorm.yaml: rules[0].select.role: selects no operator with 'norm1', 'norm2',"
    )


def test_blocks_with_gaps_are_listed_and_the_closest_is_named(tmp_path: Path) -> None:
    operators = [Operator(str(b), "", "q", b) for b in (0, 2, 7)]
    path = write(tmp_path, "mine", base({"select": {"role": "q", "block": 3}, "bits": 4}))
    assert refused_on(path, operators).endswith("nearest valid: 2 ('q' has blocks 0, 2, 7)")


def test_one_role_of_several_is_enough(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", base({"select": {"role": ["qkv", "q", "k", "v"]}, "bits": 4}))
    load_recipe(path).check(DEIT)


@pytest.mark.parametrize("role", ["qkv", "qk", "kv", "q"])
@pytest.mark.parametrize("recipe", ["papers", "ship"])
def test_a_layer_that_makes_several_of_query_key_and_value_is_quantized_as_each(
    recipe: str, role: str
) -> None:
    layer = Operator("layer", "Gemm", role, 0)
    read = load_recipe(RECIPES / f"{recipe}.yaml")
    assert all(read.spec(layer, operand, 4, 4).quantize for operand in ("input", "weight"))


def test_a_rule_for_one_part_does_not_select_the_layer_that_makes_two(tmp_path: Path) -> None:
    parts = [Operator(role, "Gemm", role, 0) for role in ("qk", "kv", "q")]
    for roles, selected in ((["q"], {"q"}), (["k", "v"], {"kv"}), (["q", "k"], {"qk", "q"})):
        path = write(tmp_path, "mine", base({"select": {"role": roles}, "bits": 4}))
        found = {o.name for o in parts if load_recipe(path).spec(o, "weight", 8, 8).bits == 4}
        assert found == selected


# Too much of it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (
            base(*[{"select": {"block": i}, "bits": 4} for i in range(600)]),
            "rules: 600 entries; at most 500",
        ),
        (base(methods=[{"name": "adaround"}] * 60), "methods: 60 entries; at most 50"),
        (
            base({"select": {"block": list(range(900)), "position": list(range(90))}, "bits": 4}),
            "rules: rules select more than 100000 tensors one by one; leave out keys that need not be",
        ),
        (
            base({"select": {"block": 10**9}, "bits": 4}),
            "block: 1000000000 is too large; nearest valid: 9",
        ),
        (
            base(methods=[{"name": "adaround", "iterations": 10**17}]),
            "methods[0].iterations: 100000000000000000 is too large; at most 1000000",
        ),
    ],
)
def test_what_would_take_minutes_is_refused(tmp_path: Path, recipe: dict[str, Any], said: str) -> None:
    start = time.process_time()
    assert said in refusal(write(tmp_path, "mine", recipe))
    assert time.process_time() - start < 5


def test_rules_of_a_chain_count_together(tmp_path: Path) -> None:
    rules = [{"select": {"role": "fc2"}, "bits": 4}] * 300
    write(tmp_path, "first", base(*rules))
    line = refusal(write(tmp_path, "mine", {"extends": "first", "rules": rules}))
    assert line == "first.yaml: rules: with all that it extends more than 500 rules"


def test_a_chain_without_end(tmp_path: Path) -> None:
    for i in range(30):
        write(tmp_path, f"r{i}", {"extends": f"r{i + 1}"})
    assert "extends: more than 20 recipes extend each other" in refusal(tmp_path / "r0.yaml")


def test_as_many_rules_as_may_be_are_checked_in_short_time(tmp_path: Path) -> None:
    """Some for all blocks and some for one: each of a block meets all the others."""
    rules = [{"select": {"block": i} if i % 2 else {}, "bits": 4} for i in range(200)]
    rules += [{"select": {"role": "fc2", "block": 7}, "granularity": "per-channel"}]
    path, start = write(tmp_path, "mine", base(*rules)), time.process_time()
    assert refusal(path).startswith("mine.yaml: rules[200].granularity: per-channel works only with observer")
    assert time.process_time() - start < 5
