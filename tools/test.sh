#!/usr/bin/env bash
# Sets up a fresh machine and passes the tests, on two workers: they wait for processes and timers
# more than they compute. Arguments go to pytest (-k, -m, a path, --numprocesses 0 ...).
#
# As root on Debian it installs SLURM, munge, shellcheck and a headless browser, which some tests
# use; elsewhere it says what it leaves out.
#
# REFERENCE_DIR names the folder of the published implementations' vectors
# (default ../shared/reference).
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/install.sh
source tools/system.sh
install_system
install_everything dev
export OMP_NUM_THREADS=1 # ranks share the cores
# In the files' order: those that take longest have few tests, and would come last.
exec python -m pytest --numprocesses 2 --no-loadscope-reorder "$@"
