#!/usr/bin/env bash
# Rebuilds the .wasm files of the test guests. Needs the target wasm32-wasip2 (`rustup target add wasm32-wasip2`).
set -euo pipefail
cd "$(dirname "$0")"
cargo build --release --locked --target wasm32-wasip2
out=${CARGO_TARGET_DIR:-target}/wasm32-wasip2/release
cp "$out/http_guest.wasm" http.wasm
cp "$out/tool.wasm" tool.wasm
