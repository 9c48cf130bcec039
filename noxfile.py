"""The checks of this repository, by one command each: `nox -l` lists them, `nox -s fast` runs one.

They run in the environment that nox is started from: `python -m pip install -e ".[dev]"` makes one (CONTRIBUTING.md).
"""

from __future__ import annotations

import tempfile

import nox

# torch and its companions take minutes to install; an environment for each session would take them again and again.
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "imports", "fast"]
nox.options.stop_on_first_error = True


@nox.session
def fast(session: nox.Session) -> None:
    """Run the tests listed in tests/fast.txt: under a minute on two cores."""
    session.run("pytest", "-n", "2", "--dist", "loadfile", "-q", *(session.posargs or ["@tests/fast.txt"]))


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests, or those named after `--`."""
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting; `nox -s lint -- --fix` repairs what can be repaired."""
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types (mypy, strict)."""
    session.run("mypy")


@nox.session
def imports(session: nox.Session) -> None:
    """Check which package may import which."""
    session.run("lint-imports")


@nox.session
def api(session: nox.Session) -> None:
    """Bring the lists of public names up to date, and name what the changelog lacks."""
    session.run("python", "tools/public_api.py", "--write", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the manual into build/docs; a broken link fails. `nox -s docs -- serve` shows it while you write."""
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))


@nox.session
def quickstart(session: nox.Session) -> None:
    """Run the quickstart in a temporary directory."""
    with tempfile.TemporaryDirectory() as directory, session.chdir(directory):
        session.run("align", "quickstart", *session.posargs)


@nox.session
def ci(session: nox.Session) -> None:
    """Run everything that CI runs, in a fresh environment: more than an hour on two cores."""
    session.run(".ci/run", external=True)
