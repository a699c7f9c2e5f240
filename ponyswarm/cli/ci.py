"""``ponyswarm ci-step``: what to paste into a hosted CI so that it announces and waits."""

from __future__ import annotations

import click

_GITHUB = """\
# .github/workflows/ponyswarm.yml
# Needs the variable PONYSWARM_PROJECT (the project's id), the variable PONYSWARM_PEERS (the
# multiaddr of a node that is always on and trusts the project, so that it takes the
# source), and the secret PONYSWARM_KEY: the text of a key file made for this purpose
# ('ponyswarm key new') and allowed to announce ('ponyswarm project add-maintainer').
# Secrets are not given to pull requests of forks.
name: ponyswarm
on:
  push:
    branches: [main]
permissions:
  contents: read
jobs:
  announce:
    runs-on: ubuntu-latest
    timeout-minutes: 90
    steps:
      - uses: actions/checkout@v4
      - uses: astral-sh/setup-uv@v5
      - name: Announce the commit and wait for the verdicts
        env:
          PONYSWARM_HOME: ${{ runner.temp }}/ponyswarm
          PONYSWARM_KEY: ${{ secrets.PONYSWARM_KEY }}
          PONYSWARM_PROJECT: ${{ vars.PONYSWARM_PROJECT }}
          PONYSWARM_PEERS: ${{ vars.PONYSWARM_PEERS }}
        run: |
@SCRIPT@
"""

_GITLAB = """\
# .gitlab-ci.yml
# Needs the CI/CD variables PONYSWARM_PROJECT (the project's id), PONYSWARM_PEERS (the
# multiaddr of a node that is always on and trusts the project, so that it takes the
# source) and, masked and protected, PONYSWARM_KEY: the text of a key file made for this
# purpose ('ponyswarm key new') and allowed to announce ('ponyswarm project add-maintainer').
ponyswarm:
  image: ghcr.io/astral-sh/uv:python3.12-bookworm
  timeout: 90 minutes
  rules:
    - if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH
  variables:
    PONYSWARM_HOME: "$CI_PROJECT_DIR/.ponyswarm-home"
  script:
    - |
@SCRIPT@
  artifacts:
    when: always
    paths: [ponyswarm.xml]
    reports:
      junit: ponyswarm.xml
"""

# The same commands for both; a test runs them against a swarm on loopback.
SCRIPT = """\
echo 'fastecdsa>=3.0.1' > "${TMPDIR:-/tmp}/overrides.txt"
uv tool install --quiet --overrides "${TMPDIR:-/tmp}/overrides.txt" ponyswarm
export PATH="$(uv tool dir --bin):$PATH"
"""

ANNOUNCE = """\
mkdir -p -m 700 "$PONYSWARM_HOME"
(umask 077; printf '%s\\n' "$PONYSWARM_KEY" > "$PONYSWARM_HOME/key")
printf '%s\\n' "$PONYSWARM_PEERS" > "$PONYSWARM_HOME/bootstrap_peers.txt"
code=0
ponyswarm announce . --project "$PONYSWARM_PROJECT" --wait --timeout '1 h' || code=$?
ponyswarm export --junit "$PONYSWARM_PROJECT" -o ponyswarm.xml || true
summary=${GITHUB_STEP_SUMMARY:-/dev/stdout}
ponyswarm export --markdown "$PONYSWARM_PROJECT" -o - >> "$summary" || true
# 0: confirmed pass, 1: confirmed failure, 3: still open, disputed, or taken by nobody yet,
# which you may allow here.
exit $code
"""


def step(service: str) -> str:
    """The whole file for a hosted CI."""
    template, indent = (_GITHUB, 10) if service == "github" else (_GITLAB, 6)
    script = "".join(" " * indent + line + "\n" for line in (SCRIPT + ANNOUNCE).splitlines())
    return template.replace("@SCRIPT@\n", script)


@click.command("ci-step")
@click.argument("service", type=click.Choice(["github", "gitlab"]))
def ci_step(service: str) -> None:
    """Print a ready file for GitHub Actions or GitLab CI.

    It announces each commit of the main branch, waits for the verdicts, keeps JUnit XML
    and a Markdown summary, and ends as 'watch' does.
    """
    click.echo(step(service), nl=False)
