"""Releases one package: ``hatch run release archon-moe-v0.2.0``.

It checks bounds and change log, sets the version, builds wheel and sdist from a copy, holds both against every check,
and only then writes: version and change log into the tree, the two files into dist/. Nothing is committed, tagged or
uploaded; the commands for that are printed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

from archon_core.plugins.loader import PLUGIN_API_SINCE
from release_build import Built, build, built_problems
from release_git import git_problems, read_git
from release_plan import ReleasePlan, next_commands, plan_release
from release_problem import ReleaseError
from workspace import ROOT, WorkspaceError


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """Make a release, or with ``--check`` say what one would be; returns the exit code."""
    parser = argparse.ArgumentParser(prog="hatch run release", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("tag", help="<distribution>-v<version>, such as archon-moe-v0.2.0")
    parser.add_argument("--check", action="store_true", help="do all but write: neither the tree nor dist/ changes")
    today = datetime.now(UTC).date()
    parser.add_argument("--date", type=date.fromisoformat, default=today, help="of the release (YYYY-MM-DD; today)")
    given = parser.parse_args(arguments)
    try:
        release(root, given.tag, given.date, check=given.check)
    except ReleaseError as error:
        items = ["\n- " + problem.replace("\n", "\n  ") for problem in error.problems]
        print(f"error: the release cannot be made{''.join(items)}", file=sys.stderr)
        return 1
    except WorkspaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; git status says whether anything was written", file=sys.stderr)
        return 130
    return 0


def release(root: Path, tag: str, day: date, *, check: bool) -> None:
    """Check, build and write one release, and print what comes next.

    Raises:
        ReleaseError: something stands in its way; nothing was written then.
    """
    plan = plan_release(root, tag, day, PLUGIN_API_SINCE)
    git = read_git(root, tag, plan.package.folder)
    refusals = [f"{needed}; release that first" for needed in plan.first]
    if git is None:
        refusals.append("found no git repository; a release is a tag of one")
    else:
        refusals += git_problems(git, tag, edits=bool(plan.edits))
    if refusals and not check:
        raise ReleaseError(*refusals)
    with tempfile.TemporaryDirectory() as folder:
        built = build_copy(plan, Path(folder))
        print(f"{plan.package.name} {plan.package.version}\n\n{plan.notes}\n")
        if check:
            files = (built.wheel, built.sdist)
        else:
            for path, text in plan.edits.items():
                path.write_text(text, encoding="utf-8")
                print(f"wrote {path.relative_to(root)}")
            (root / "dist").mkdir(exist_ok=True)
            files = tuple(Path(shutil.copy2(file, root / "dist")) for file in (built.wheel, built.sdist))
        for file in files:
            print(f"built {file.name} ({file.stat().st_size / 1024:.0f} KiB), every check passed")
    for remark in (*plan.remarks, *(refusals if check else [])):
        print(f"note: {remark}")
    if check:
        changes = ", ".join(str(path.relative_to(root)) for path in plan.edits) or "nothing"
        print(f"checked only; a release writes {changes} and two files in dist/")
    else:
        print(f"\nnext:\n\n{next_commands(plan, tuple(file.relative_to(root).as_posix() for file in files))}")


def build_copy(plan: ReleasePlan, scratch: Path) -> Built:
    """Build the package as it will be, apart from the tree, and hold the files against every check.

    Raises:
        ReleaseError: with everything that is wrong with them.
    """
    before = plan.package.folder
    copy = scratch / before.name
    shutil.copytree(before, copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache"))
    for path, text in plan.edits.items():
        (copy / path.relative_to(before)).write_text(text, encoding="utf-8")
    # hatchling leaves out what .gitignore names, and puts that file into the sdist.
    for ignore in before.parent.parent.glob(".gitignore"):
        shutil.copy2(ignore, copy)
    package = replace(plan.package, folder=copy, version_file=copy / plan.package.version_file.relative_to(before))
    built = build(copy, scratch / "dist")
    problems = built_problems(built, package, plan.packages.values(), scratch / "sdist")
    if problems:
        raise ReleaseError(*problems)
    return built


if __name__ == "__main__":
    raise SystemExit(main())
