"""template.toml and README.md (contract §8)."""

from __future__ import annotations

import json

import pytest

from statemachine.parameters import Kind
from statemachine.templates import README_LIMIT, TemplateError, read, shown_readme, template_id
from tests.unit.facts import uid

CONTRACT = """
name = "python"                       # unique in its organization
display_name = "Python"
description = "A repository with a virtual environment"
pool = "local"
require_active_version = false
agents_allowed = true

[[parameter]]
name = "branch"
type = "string"
default = "main"
required = false
mutable = true
sensitive = false
description = "Branch to check out"
options = [{ name = "Main", value = "main" }, { name = "Next", value = "next" }]
validation_regex = "^[a-z-]+$"

[[preset]]
name = "default"
default = true
parameters = { branch = "main" }

[build]
start = "./build.sh"
stop = "true"
delete = "true"

[[agent]]
name = "main"
display_order = 0
directory = "."
startup_script = "./startup.sh"
startup_timeout_seconds = 600
shutdown_script = ""
env = {}
"""


def test_the_example_of_the_contract_is_valid() -> None:
    manifest = read(CONTRACT)

    assert (manifest.name, manifest.pool, manifest.agents_allowed) == ("python", "local", True)
    (branch,), (preset,) = manifest.parameter, manifest.preset
    assert (branch.type, branch.default, branch.mutable) == (Kind.STRING, "main", True)
    assert preset.parameters == {"branch": "main"}
    assert set(manifest.spec) == {"build", "agent"}
    assert manifest.spec["build"]["start"] == "./build.sh"


def test_omitted_keys_have_the_defaults_of_the_contract() -> None:
    manifest = read('name = "x"\n[[parameter]]\nname = "p"\n[build]\nstart = "true"')

    (p,) = manifest.parameter
    assert (manifest.pool, manifest.agents_allowed, manifest.require_active_version) == (
        "local",
        True,
        False,
    )
    assert (p.type, p.required, p.mutable, p.sensitive) == (Kind.STRING, False, True, False)


def test_tables_for_other_provisioners_are_not_checked() -> None:
    manifest = read('name = "x"\npool = "big"\n[build]\nwhen = 2024-01-02\nn = [1, 2.5]')

    assert json.loads(json.dumps(manifest.spec)) == {
        "build": {"when": "2024-01-02", "n": [1, 2.5]},
        "agent": [],
    }


BUILD = '\n[build]\nstart = "true"\n'
WRONG = {
    "t.toml: not TOML": "name = ",
    "t.toml:1: name": 'name = 5\n[build]\nstart = "true"',
    "t.toml: name: the key is missing": BUILD,
    "t.toml:2: pol: there is no such key": f'name = "x"\npol = "local"{BUILD}',
    "t.toml:2: pool": f'name = "x"\npool = "no spaces"{BUILD}',
    "t.toml:4: parameter[0].typ: there is no such key": (
        f'name = "x"\n[[parameter]]\nname = "a"\ntyp = "string"{BUILD}'
    ),
    "t.toml:6: parameter[1].type": (
        f'name = "x"\n[[parameter]]\nname = "a"\n[[parameter]]\nname = "b"\ntype = "int"{BUILD}'
    ),
    "t.toml:2: parameter[0].name: the key is missing": f'name = "x"\n[[parameter]]{BUILD}',
    "t.toml:2: parameter[0]: default": (
        f'name = "x"\n[[parameter]]\nname = "a"\ntype = "bool"\ndefault = "x"{BUILD}'
    ),
    "is used twice": (f'name = "x"\n[[parameter]]\nname = "a"\n[[parameter]]\nname = "a"{BUILD}'),
    "only one may be the default": (
        f'name = "x"\n[[preset]]\nname = "a"\ndefault = true\n'
        f'[[preset]]\nname = "b"\ndefault = true{BUILD}'
    ),
    "there is no parameter 'p'": f'name = "x"\n[[preset]]\nname = "a"\nparameters = {{p = 1}}{BUILD}',
    "preset 'a': parameter 'p': ": (
        'name = "x"\n[[parameter]]\nname = "p"\ntype = "number"\n'
        f'[[preset]]\nname = "a"\nparameters = {{p = "x"}}{BUILD}'
    ),
    "t.toml: build.start: the key is missing": 'name = "x"',
    "t.toml:3: build.sart: there is no such key": 'name = "x"\n[build]\nsart = "a"\nstart = "b"',
    "t.toml:6: agent[0].env": f'name = "x"{BUILD}[[agent]]\nname = "a"\nenv = 5',
    "startup_timeout_seconds": (
        f'name = "x"{BUILD}[[agent]]\nname = "a"\nstartup_timeout_seconds = 0'
    ),
    "t.toml: build.n: the number is not finite": 'name = "x"\npool = "p"\n[build]\nn = inf',
    "t.toml: agent[0].n: the number is not finite": 'name = "x"\npool = "p"\n[[agent]]\nn = nan',
    "t.toml: build.n: the number is too large": f'name = "x"\npool = "p"\n[build]\nn = {"9" * 400}',
    "t.toml: description: a text contains NUL": f'name = "x"\ndescription = "a\\u0000"{BUILD}',
}


@pytest.mark.parametrize("words", WRONG)
def test_an_error_names_file_line_and_key(words: str) -> None:
    with pytest.raises(TemplateError) as bad:
        read(WRONG[words], file="t.toml")

    assert words in str(bad.value)


@pytest.mark.parametrize("name", ["", "new", "a b", "x" * 33, "-a"])
def test_a_templates_name_follows_the_rule_of_names(name: str) -> None:
    with pytest.raises(TemplateError, match=r"^template\.toml(:1)?: name: "):
        read(f'name = "{name}"{BUILD}')


def test_every_wrong_key_is_named_at_once() -> None:
    text = f'name = "x"\npol = 1\n[[parameter]]\nname = "a"\ntyp = "b"\nmutable = 3{BUILD}'

    with pytest.raises(TemplateError) as bad:
        read(text)

    assert len(str(bad.value).splitlines()) == 3


def test_a_template_keeps_its_id_and_its_presets_keep_theirs() -> None:
    org = uid("org")

    assert template_id(org, "Python") == template_id(org, "python")
    assert template_id(org, "python") != template_id(uid("other"), "python")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# Hi", "# Hi"),
        ("---\ntitle: x\n---\n# Hi", "# Hi"),
        ("\ufeff---\r\ntitle: x\r\n---\r\n# Hi\r\n", "# Hi"),
        ("---\ntitle: x\n---", ""),
        ("a\n---\nb\n---\nc", "a\n---\nb\n---\nc"),
        ("a ![x](y.png) b", "a  b"),
        ("a ![x](y.png 'title') b ![][ref]", "a  b"),
        ("a <img src='x'\n alt='y'> b", "a  b"),
        ("a <IMG SRC=x/> b", "a  b"),
        ("[link](x)", "[link](x)"),
        ("x" * 9000, "x" * README_LIMIT),
        ("---\n" + "a: b\n" * 3000 + "---\n" + "y" * 8000, "y" * 8000),
    ],
)
def test_a_readme_is_shown_without_front_matter_and_images(text: str, shown: str) -> None:
    assert shown_readme(text) == shown


@pytest.mark.parametrize(
    ("agents", "words"),
    [
        ('[[agent]]\nname = "a"\nparent = "b"\n', r"template.toml:7: agent\[0\].parent: no agent"),
        ('[[agent]]\nname = "a"\n[[agent]]\nname = "a"\n', r"agent\[1\].name: another agent"),
    ],
)
def test_agents_must_have_unique_names_and_known_parents(agents: str, words: str) -> None:
    text = f'name = "x"\n\n[build]\nstart = "true"\n{agents}'

    with pytest.raises(TemplateError, match=words):
        read(text)
