"""YAML files that are broken, endless or not plain: one short line, at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.yaml_files import LARGEST, LONGEST, check_configfiles, configfiles, read_yaml

ALIASES = "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}], {b}: 1}}\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "".join(f"k{i}: &k{i} {'[' * 30}*k{i - 1}{']' * 30}\n" if i else "k0: &k0 [1]\n" for i in range(100))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nday: 2024-99-99\n", "line 2: '2024-99-99' is no timestamp; put quotes around it"),
        ("day: 2024-01-01 99:00:00\n", "line 1: '2024-01-01 99:00:00' is no timestamp"),
        ("a: 1\nb:\n  - 2023-02-29\n", "line 3: '2023-02-29' is no timestamp"),
        ("a: !!int many\n", "line 1: 'many' is no int"),
        ("a: !!float [1]\n", "expected a scalar node"),
        ("a: !!bool maybe\n", "line 1: 'maybe' is no bool"),
        ("a: !!timestamp noon\n", "line 1: 'noon' is no timestamp"),
        (f"a: {'9' * 5000}\n", "line 1: '9999"),
        (f"a: 0x{'f' * 5000}\n", "line 1: '0xfff"),
        (f"a: 0b{'1' * 70}\n", "is larger than 64 bits hold"),
        (f"a: -{'1' * 30}\n", "is larger than 64 bits hold"),
        (f"a: {'x' * (LONGEST + 1)}\n", f"{LONGEST + 1} characters are too many"),
        (f"a: {'[' * 1000}{']' * 1000}\n", "line 1: lists and mappings lie more than 60 deep"),
        (f"a: {'{b: ' * 1000}1{'}' * 1000}\n", "line 1: lists and mappings lie more than 60 deep"),
        ("".join(f"{' ' * i}a:\n" for i in range(300)), "line 60: lists and mappings lie more than 60 deep"),
        (f"a:\n{'- ' * 500}1\n", "line 2: lists and mappings lie more than 60 deep"),
        (CHAIN, "lists and mappings lie more than 60 deep"),
        (f"a: &a [{', '.join('0' * 10)}]\n{ALIASES}", "more than 10000 entries, with aliases written out"),
        (f"a: &a {{k: 1}}\n{MERGES}", "more than 10000 entries, with aliases written out"),
        ("a: &a [1, *a]\n", "line 1: *a stands within what it names"),
        ("a: &a\n  b: {c: *a}\n", "line 2: *a stands within what it names"),
        ("a: *b\n", "found undefined alias"),
        ('a: "x\\0y"\n', "line 1: 'x\\x00y' holds a character that is none of any text"),
        ('a: "\\uD800"\n', "line 1: '\\ud800' holds a character"),
        ("__use_yte__: true\na: ?1\n", "__use_yte__: templates run code, so none is read"),
        ("__use_yte__: false\n", "__use_yte__: templates run code"),
        ("base: &b {__use_yte__: true}\n<<: *b\n", "__use_yte__: templates run code"),
        ('? "__use_yte__"\n: true\n', "__use_yte__: templates run code"),
        ('{"__use_yte__": true}', "__use_yte__: templates run code"),
        ("!!python/str __use_yte__: true\n", "could not determine a constructor"),
        ("a:\n\tb: 1\n", "line 2: begins with a tab; YAML is indented with blanks"),
        ("a:\n  b: 1\n\tc: 2\n", "line 3: begins with a tab"),
        ("a: 1\ndevice:auto\n", "line 2: no blank after the colon; write 'device: auto'"),
        ("bits:[w8a8]  # of all\na: 1\n", "line 1: no blank after the colon; write 'bits: [w8a8]'"),
        ("m:\n  d:\n    source:onnx:a.onnx\n    data: x\n", "line 3: no blank after the colon; write 'so"),
        ("a: 1\nhttps://example.org\nb: 1\n", "not readable as YAML: "),
        ("a: 1\n---\na: 2\n", "expected a single document"),
        ("a: 0x_\n", "line 1: '0x_' is no int; put quotes around it"),
        (f"a: {'1:' * 600}1.5\n", "line 1: '1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1...' is no float"),
        ('a: "\\UFFFFFFFF"\n', "not readable as YAML: Python int too large"),
        ('a: "\\U00110000"\n', "not readable as YAML: chr() arg not in range"),
        (f"%YAML 1.{'1' * 5000}\n---\na: 1\n", "not readable as YAML: Exceeds the limit"),
        ("a: !<%FF> 1\n", "not readable as YAML: while scanning a tag"),
        (f"a: [{'1,' * 100_000}1]\n", "line 1: more than 10000 entries, with aliases written out"),
        ("rules:\n" + "- {select: {}, bits: 4}\n" * 2000, "more than 10000 entries"),
        ("---\n" * 20_000, "more than 10000 entries"),
        (f"# {'x' * LARGEST}\na: 1\n", f"more than {LARGEST} bytes; parameters and recipes are small"),
        ('"a\\n\\e[31m": 1\n"a\\n\\e[31m": 2\n', "key 'a\\n\\x1b[31m' is given twice, again in line 2"),
    ],
)  # fmt: skip
def test_what_is_refused_in_a_short_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        read_yaml(path)
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert said in line
    assert "\n" not in line
    assert len(line) < 500
    assert time.monotonic() - start < 5  # of which a machine at rest needs a tenth


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("pipe", "is no regular file"),
        ("/dev/zero", "is no regular file"),
        (".", "is a folder"),
        ("no", "No such"),
    ],
)
def test_no_file_that_has_an_end(tmp_path: Path, path: str, said: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=f": {said}"):
        read_yaml(tmp_path / path)


def test_as_many_entries_as_are_read_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(f"a: [{'1,' * 9000}1]\n")
    start = time.process_time()
    assert len(read_yaml(path)["a"]) == 9001
    assert time.process_time() - start < 5


def test_aliases_and_dates_in_moderation(tmp_path: Path) -> None:
    path = tmp_path / "case.yaml"
    path.write_text(f"a: &a {{x: [1, 2]}}\nb: *a\nc: {{<<: *a, y: 3}}\nd: {'[' * 50}{']' * 50}\n")
    found = read_yaml(path)
    assert found["b"] == {"x": [1, 2]}
    assert found["c"] == {"x": [1, 2], "y": 3}


@pytest.mark.parametrize(
    "words",
    [
        ["--configfile", "{}"],
        ["--configfile={}"],
        ["study", "--configfiles", "{}", "-n"],
        ["--config", "a=1", "--configfile", "{}"],
    ],
)
def test_files_that_snakemake_is_told_to_read(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "case.yaml"
    path.write_text("a: 2024-99-99\n")
    with pytest.raises(SystemExit) as ended:
        check_configfiles([word.format(path) for word in words])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: line 1: '2024-99-99' is no timestamp")
    path.write_text("a: 1\n")
    check_configfiles([word.format(path) for word in words])
    check_configfiles(["--config", "a=1", "-n"])


def test_the_files_that_snakemake_would_read_are_found() -> None:
    words = ["-n", "--configfile", "a", "b", "--cores", "1", "--configf=c", "target", "--config", "d=1", "e"]
    assert [str(path) for path in configfiles(words)] == ["a", "b", "c"]
