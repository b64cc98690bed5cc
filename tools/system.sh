# Sourced by the scripts beside it: system programs that some tests use.

# install_system: SLURM on one machine, shellcheck, a headless browser; where apt and root allow it.
install_system() {
    local program missing=()
    PATH=$PATH:/usr/sbin # where Debian puts the daemons
    # Program and Debian package.
    for program in slurmctld:slurm-wlm munged:munge shellcheck:shellcheck \
        chromium:chromium chromedriver:chromium-driver; do
        command -v "${program%%:*}" >/dev/null || missing+=("${program##*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${missing[*]} ..."
        export DEBIAN_FRONTEND=noninteractive
        if { apt-get -qq update &&
            apt-get -qq install --yes --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1; then
            return 0
        fi
    fi
    echo "without ${missing[*]}: tests marked slurm or browser are left out (in CI they fail)"
}
