"""`template push` warns of and refuses problems in template.toml; provisioners refuse the same."""

from __future__ import annotations

import pytest

from statemachine.local_template import AgentTable, agent_faults, variable_of
from statemachine.templates import TemplateError, read, warnings

BUILD = '[build]\nstart = "true"\n'


def refused(text: str) -> str:
    with pytest.raises(TemplateError) as bad:
        read(text, file="t.toml")
    return str(bad.value)


def agents(*tables: str) -> str:
    return f'name = "x"\n{BUILD}' + "".join(f"[[agent]]\n{table}\n" for table in tables)


def parameter(lines: str, more: str = "") -> str:
    return f'name = "x"\n[[parameter]]\nname = "p"\n{lines}\n{more}{BUILD}'


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (('name = "a"\nenv = { D = ["x"] }',), "agent[0].env.D: expected a text, a whole number"),
        (('name = "a"\nenv = { D = 3.10 }',), "agent[0].env.D: expected a text, a whole number"),
        (('name = "a"\nenv = { D = 2024-01-02 }',), "agent[0].env.D: expected a text"),
        (('name = "a"\nenv = { D = { x = "y" } }',), "agent[0].env.D: expected a text"),
        (('name = "a"\nenv = { "A=B" = "1" }',), "variable 'A=B' can't be passed to a program"),
        (('name = "a"\nenv = { "" = "1" }',), "variable '' can't be passed to a program"),
        (('name = "a"\nenv = { "A\\u0000" = "1" }',), "NUL"),
        (('name = "a"\nenv = { A = "1\\u0000" }',), "NUL"),
        (('name = "a"', 'name = "a"'), "t.toml:7: agent[1].name: another agent has the name 'a'"),
        (
            ('name = "a"\nparent = "b"',),
            "agent[0].parent: no agent has the name 'b'; there are 'a'",
        ),
        (('name = "a"\nparent = ""',), "agent[0].parent: no agent has the name ''"),
        (('name = "a"\nparent = "a"',), "the agent 'a' has itself among its parents"),
        (
            ('name = "a"\nparent = "b"', 'name = "b"\nparent = "c"', 'name = "c"\nparent = "b"'),
            "agent[2].parent: the agent 'c' has itself among its parents",
        ),
        (tuple(f'name = "a{n}"' for n in range(65)), "65 are given, and 64 is the most"),
        (('name = ""',), "agent[0].name"),
        ((f'name = "{"a" * 256}"',), "agent[0].name"),
        (('name = "a"\nstartup_timeout_seconds = inf',), "startup_timeout_seconds"),
        (('name = "a"\ndirectory = "../b"',), "'../b' is not below the workspace"),
        (('name = "a"\ndirectory = "/b"',), "'/b' is not below the workspace"),
        (('name = "a"\ndirectory = ""',), "write '.' for the workspace"),
    ],
)
def test_agents_that_the_provisioner_would_refuse_are_refused(
    tables: tuple[str, ...], words: str
) -> None:
    assert words in refused(agents(*tables))


def test_the_maximum_number_of_agents_is_accepted() -> None:
    assert (
        len(read(agents(*(f'name = "a{n}"\nenv = {{ A = 1, B = true }}' for n in range(64)))).agent)
        == 64
    )


def test_a_push_and_a_job_report_the_same_problems_of_agents() -> None:
    tables = [AgentTable(name="a", parent="b", env={"A=B": "1"})]

    for _, _, words in agent_faults(tables):
        assert words in refused(agents('name = "a"\nparent = "b"\nenv = { "A=B" = "1" }'))


@pytest.mark.parametrize(
    "written", ["3.10", "1", "0x1F", "true", "2024-01-02", "10:00:00", '["a"]', "1e3"]
)
@pytest.mark.parametrize(
    ("place", "where"),
    [
        ("default = {}", "t.toml:4: parameter[0].default: "),
        ('options = [{{ name = "a", value = {} }}]', "parameter[0].options[0].value: "),
        ('[[preset]]\nname = "s"\nparameters = {{ p = {} }}', "preset[0].parameters.p: "),
    ],
    ids=["default", "option", "preset"],
)
def test_values_of_string_parameters_must_be_text(written: str, place: str, where: str) -> None:
    text = parameter(place.format(written))

    assert f"{where}expected a text, since the parameter is a string" in refused(text)


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("string", '"3.10"'),
        ("number", "3.10"),
        ("number", '"3.10"'),
        ("bool", "true"),
        ("bool", '"true"'),
        ("list(string)", '["a", "b"]'),
        ("list(string)", "'[\"a\"]'"),
    ],
)
def test_values_of_the_declared_type_are_accepted(kind: str, written: str) -> None:
    (found,) = read(parameter(f'type = "{kind}"\ndefault = {written}')).parameter

    assert isinstance(found.default, str)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            'type = "number"\nvalidation_min = 5\nvalidation_max = 4',
            ":5: parameter[0].validation_min: is above validation_max, 4",
        ),
        ('type = "number"\nvalidation_max = 4\ndefault = 5', "default: 5 is above 4"),
        (
            'type = "number"\nvalidation_min = 4\noptions = [{ name = "o", value = 3 }]',
            "'o': 3 is below 4",
        ),
        (
            'validation_regex = "^a$"\noptions = [{ name = "o", value = "b" }]',
            "'o': 'b' does not match ^a$",
        ),
        ('validation_regex = "^a$"\ndefault = "b"', "default: 'b' does not match ^a$"),
        (
            'type = "list(string)"\nvalidation_regex = "^a$"\noptions = [{ name = "o", value = "b" }]',
            "'o': 'b' does not match",
        ),
        (
            'type = "list(string)"\nvalidation_regex = "^a$"\noptions = [{ name = "o", value = ["a", "b"] }]',
            "'o': 'b' does not match",
        ),
        (
            'validation_regex = "^a$"\n[[preset]]\nname = "s"\nparameters = { p = "b" }',
            "preset 's': parameter 'p': 'b' does not match",
        ),
        (
            'options = [{ name = "o", value = "a" }]\ndefault = "b"',
            "default: 'b' is none of the options",
        ),
        ("description = 2024-01-02", "parameter[0].description"),
    ],
)
def test_defaults_and_options_that_fail_their_own_validation_are_refused(
    lines: str, words: str
) -> None:
    assert words in refused(parameter(lines))


@pytest.mark.parametrize(
    "names", [("git-branch", "git_branch", "GIT_BRANCH"), ("a", "A"), ("a-b", "a_b")]
)
@pytest.mark.parametrize("pool", ["local", "other"])
def test_two_parameters_with_the_same_environment_variable_are_refused(
    names: tuple[str, ...], pool: str
) -> None:
    tables = "".join(f'[[parameter]]\nname = "{name}"\n' for name in names)

    said = refused(f'name = "x"\npool = "{pool}"\n{tables}{BUILD}')

    assert f"would all be the environment variable {variable_of(names[0])}" in said
    for name in names:
        assert repr(name) in said


def test_all_problems_are_reported_at_once() -> None:
    text = (
        'name = "x"\n[[parameter]]\nname = "p"\ndefault = 1\n[[parameter]]\nname = "q"\ntypo = 1\n'
        '[build]\nsart = "true"\n[[agent]]\nname = 5\n'
    )

    lines = refused(text).splitlines()

    assert len(lines) == 5
    for word in ("default", "typo", "sart", "start", "agent[0].name"):
        assert any(word in line for line in lines)


def test_a_byte_order_mark_is_skipped() -> None:
    assert read(f'\ufeffname = "x"\n{BUILD}').name == "x"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('default = "abc"', "its default is shorter than 4 characters"),
        (
            'options = [{ name = "o", value = "ab" }, { name = "long", value = "abcd" }]',
            "its option 'o' is shorter",
        ),
        ('type = "bool"', "true and false are never hidden"),
        ('type = "number"\ndefault = 7', "its default is shorter"),
        ('type = "list(string)"\ndefault = ["long enough", "ab"]', "its default is shorter"),
        ('[[preset]]\nname = "s"\nparameters = { p = "ab" }', "its value in preset 's' is shorter"),
    ],
)
def test_a_sensitive_value_that_is_too_short_to_mask_causes_a_warning(
    lines: str, words: str
) -> None:
    (warning,) = warnings(read(parameter(f"sensitive = true\n{lines}")))

    assert warning.startswith("parameter 'p' is sensitive, but ")
    assert words in warning
    assert warnings(read(parameter(lines))) == []


@pytest.mark.parametrize(
    "lines",
    [
        "",
        'default = "abcd"',
        'default = ""',
        'type = "number"\ndefault = 4711',
        'type = "list(string)"\ndefault = []',
        'type = "list(string)"\ndefault = " [ ] "',
    ],
)
def test_other_parameters_cause_no_warning(lines: str) -> None:
    assert warnings(read(parameter(f"sensitive = true\n{lines}"))) == []
