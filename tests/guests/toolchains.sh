#!/usr/bin/env bash
# Installs toolchains for the guests of other languages, in versions that were seen to work, where the tests look for
# them: target/guest-tools, or GUEST_TOOLS. Names which: `toolchains.sh c python js`. Go comes from elsewhere.
set -euo pipefail
cd "$(dirname "$0")"
source toolchain.sh
mkdir -p "$tools"

pip_install() {
    [[ -d $tools/python ]] || python3 -m venv "$tools/python"
    "$tools/python/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}

for language in "$@"; do
    case $language in
        c)
            # Zig compiles; libc and what links are of Rust's target.
            pip_install ziglang==0.17.1
            [[ -f $(rustc --print sysroot)/lib/rustlib/wasm32-wasip2/lib/self-contained/libc.a ]] || rustup target add wasm32-wasip2
            ;;
        python) pip_install componentize-py==0.25.1 ;;
        js) npm install --no-audit --no-fund --no-save --silent --prefix "$tools/node" @bytecodealliance/componentize-js@0.23.0 ;;
        *)
            echo "there is no toolchain for \`$language\` here: c, python, js" >&2
            exit 2
            ;;
    esac
done
