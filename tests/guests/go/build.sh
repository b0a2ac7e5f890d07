#!/usr/bin/env bash
# Builds the guest in Go into the directory that is named: `program.wasm`. Ends with 77 where there is no toolchain.
set -euo pipefail
out=$(realpath "$1")
cd "$(dirname "$0")"
source ../toolchain.sh
go=$(tool go) || missing "\`go\` is not installed"
GOOS=wasip1 GOARCH=wasm GO111MODULE=off "$go" build -o "$out/program.wasm" main.go
