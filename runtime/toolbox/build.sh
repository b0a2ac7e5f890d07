#!/usr/bin/env bash
# Rebuilds toolbox.wasm and records which sources it was built from.
# Needs the target wasm32-wasip2 (`rustup target add wasm32-wasip2`).
set -euo pipefail
cd "$(dirname "$0")/guest"
cargo build --release --locked --target wasm32-wasip2
cp "${CARGO_TARGET_DIR:-target}/wasm32-wasip2/release/toolbox.wasm" ../toolbox.wasm
cd ..
# A test compares this record with the files, so that a changed source without its .wasm is noticed.
find guest/src guest/Cargo.toml guest/Cargo.lock toolbox.wasm -type f | LC_ALL=C sort | xargs sha256sum >built.txt
