# Sourced by the scripts beside it: everything installed in a virtual environment.
#
# VENV (default .venv) says where, PYTHON (default python3, 3.10 or later) with which interpreter.
# The constraints are the exact versions that CI runs; a second call with the same ones is free.

VENV=${VENV:-.venv}

install_everything() { # install_everything EXTRA, as in pyproject.toml
    local wanted
    wanted="$1 $(cat pyproject.toml constraints.txt | cksum)"
    if [ "$(cat "$VENV/.installed" 2>/dev/null)" != "$wanted" ]; then
        echo "installing into $VENV ..."
        [ -x "$VENV/bin/python" ] || "${PYTHON:-python3}" -m venv "$VENV"
        # torch first: others ask for 'any torch', and pip should not go and look for one.
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
            --constraint constraints.txt torch
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
            --constraint constraints.txt --editable ".[$1]"
        # In a folder of their own, which tests/timm_beside.py adds: PyPI's torchvision is built for
        # CUDA. Beside a torch for the CPU, diffusers and transformers fail where they find it.
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
            --constraint constraints.txt --no-deps --upgrade --target "$VENV/timm" timm torchvision torch-fidelity
        echo "$wanted" >"$VENV/.installed"
    fi
    PATH=$PWD/$VENV/bin:$PATH
}
