#!/usr/bin/env bash
# Rebuilds the .wasm files of the test guests and records which sources they were built from.
# Needs the target wasm32-wasip2 (`rustup target add wasm32-wasip2`).
set -euo pipefail
cd "$(dirname "$0")"
cargo build --release --locked --target wasm32-wasip2
out=${CARGO_TARGET_DIR:-target}/wasm32-wasip2/release
cp "$out/http_guest.wasm" http.wasm
cp "$out/tool.wasm" tool.wasm
cp "$out/http3.wasm" http3.wasm
cp "$out/stores.wasm" stores.wasm
cp "$out/tool3.wasm" tool3.wasm
# A test compares this record with the files, so that a changed source without its .wasm is noticed.
sha256sum Cargo.toml Cargo.lock */Cargo.toml */src/* *.wasm >built.txt
