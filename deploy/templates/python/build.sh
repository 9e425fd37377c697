#!/bin/sh
# Makes the repository and the virtual environment, or leaves them as they are.
set -eu

project=$WORKSPACED_PARAM_PROJECT
# A number may come as 5, 5.0 or 0.5e1.
tests=$(python3 -c "import sys; print(int(float(sys.argv[1])))" "$WORKSPACED_PARAM_TESTS")
branch=$WORKSPACED_PARAM_BRANCH

# The repository must not depend on how the machine's owner uses git.
GIT_CONFIG_GLOBAL=/dev/null
GIT_CONFIG_NOSYSTEM=1
export GIT_CONFIG_GLOBAL GIT_CONFIG_NOSYSTEM

if [ ! -x .venv/bin/python ]; then
    echo "making the virtual environment"
    python3 -m venv --without-pip .venv
fi

if [ ! -d "$project/.git" ]; then
    echo "making the repository $project with $tests tests"
    mkdir -p "$project/$project" "$project/tests"
    cd "$project"

    cat > "$project/__init__.py" <<'PYTHON'
"""Says what number comes next."""


def successor(number: int) -> int:
    """Return the number after `number`."""
    return number + 1
PYTHON
    : > tests/__init__.py
    {
        printf '%s\n' 'import unittest' '' "from $project import successor" '' ''
        printf '%s\n' 'class SuccessorTest(unittest.TestCase):'
        number=0
        while [ "$number" -lt "$tests" ]; do
            printf '%s\n' "    def test_after_$number(self) -> None:" \
                "        self.assertEqual(successor($number), $((number + 1)))" ''
            number=$((number + 1))
        done
    } > tests/test_successor.py
    printf '%s\n' "# $project" '' 'Run the tests: `python -m unittest`' > README.md
    printf '%s\n' '__pycache__/' > .gitignore

    git init --quiet
    git symbolic-ref HEAD refs/heads/main
    git config user.name "Workspace of $WORKSPACED_OWNER_NAME"
    git config user.email workspace@workspaced.invalid
    git add --all
    git commit --quiet --message "Begin $project"
else
    cd "$project"
fi

if [ "$(git symbolic-ref --short HEAD)" != "$branch" ]; then
    git checkout --quiet "$branch" 2>/dev/null || git checkout --quiet -b "$branch"
fi
git log -1 --format='%h %s, on branch '"$branch"
