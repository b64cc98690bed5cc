#!/usr/bin/env bash
# Resolves pyproject.toml into uv.lock, and writes what of it CI installs into constraints.txt.
#
#     bash tools/lock.sh               after a change of dependencies; other versions stay
#     bash tools/lock.sh --upgrade     newest versions of all; other options go to `uv lock`, too
#     bash tools/lock.sh --check       fails where one of the two is out of date
set -euo pipefail
cd "$(dirname "$0")/.."

exported() {
    echo "# The versions that CI runs, as in uv.lock: \`bash tools/lock.sh\` writes both."
    uv export --quiet --frozen --all-extras --all-groups --no-emit-project \
        --no-hashes --no-annotate --no-header
}

uv lock --quiet "$@"
case " $* " in
    *" --check "*)
        exported | diff constraints.txt - ||
            { echo "error: constraints.txt is not what uv.lock says: run bash tools/lock.sh" >&2; exit 1; } ;;
    *) exported >constraints.txt ;;
esac
