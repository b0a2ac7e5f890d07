#!/usr/bin/env bash
# Builds the guests in JavaScript into the directory that is named: `command.wasm`, `handler.wasm`. Ends with 77 where
# there is no toolchain.
set -euo pipefail
out=$(realpath "$1")
cd "$(dirname "$0")"
source ../toolchain.sh
componentize=$(tool componentize-js) || missing "\`componentize-js\` is not installed"

# The interfaces that Dhow knows, in the version that the engine of these guests wants.
wit=$out/wit
mkdir -p "$wit/deps"
cp world.wit "$wit"
for name in cli clocks filesystem http io random sockets; do
    sed 's/0\.2\.12/0.2.10/g' "../../../wit/deps/$name.wit" >"$wit/deps/$name.wit"
done
"$componentize" command.js --wit "$wit" --world-name command --out "$out/command.wasm"
"$componentize" handler.js --wit "$wit" --world-name handler --out "$out/handler.wasm"
