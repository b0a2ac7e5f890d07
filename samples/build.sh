#!/usr/bin/env bash
# Rebuilds the samples' .wasm files and records which sources they were built from.
# Needs the target wasm32-wasip2 (`rustup target add wasm32-wasip2`).
set -euo pipefail
cd "$(dirname "$0")"
cargo build --release --locked --target wasm32-wasip2
out=${CARGO_TARGET_DIR:-target}/wasm32-wasip2/release
cp "$out/hello_http.wasm" hello-http/hello-http.wasm
cp "$out/hello_p3.wasm" hello-p3/hello-p3.wasm
cp "$out/counter.wasm" counter/counter.wasm
cp "$out/echo-tcp.wasm" echo-tcp/echo-tcp.wasm
cp "$out/guestbook_frontend.wasm" guestbook/guestbook-frontend.wasm
cp "$out/guestbook-store.wasm" guestbook/guestbook-store.wasm
cp "$out/visits.wasm" visits/visits.wasm
cd .. && cargo xtask samples --record
