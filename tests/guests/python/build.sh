#!/usr/bin/env bash
# Builds the guests in Python into the directory that is named: `command.wasm`, `handler.wasm`. Ends with 77 where there
# is no toolchain.
set -euo pipefail
out=$(realpath "$1")
cd "$(dirname "$0")"
source ../toolchain.sh
componentize=$(tool componentize-py) || missing "\`componentize-py\` is not installed"
export PYTHONDONTWRITEBYTECODE=1
"$componentize" -d ../../../wit -w dhow:container/command componentize command -o "$out/command.wasm"
# Its helpers for HTTP know a world that has one interface called `types`, which that of a container is not.
"$componentize" -d ../../../wit -w wasi:http/proxy@0.2.12 componentize handler -o "$out/handler.wasm"
