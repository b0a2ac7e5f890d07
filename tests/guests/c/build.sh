#!/usr/bin/env bash
# Builds the guests in C into the directory that is named: `program.wasm`, `handler.wasm`. Ends with 77 where there is no
# toolchain; ../README.md says which there are.
set -euo pipefail
out=$(realpath "$1")
cd "$(dirname "$0")"
source ../toolchain.sh

if [[ -n ${WASI_SDK_PATH:-} ]]; then
    cc=("$WASI_SDK_PATH/bin/clang" --target=wasm32-wasip2 -Os -Wall -Wextra)
    "${cc[@]}" program.c -o "$out/program.wasm"
    "${cc[@]}" -mexec-model=reactor handler.c -Wl,--component-type,handler.wit -o "$out/handler.wasm"
    exit
fi

# Zig's compiler and headers; libc, the linker and what makes components of modules come with Rust's target wasm32-wasip2.
zig=$(tool zig) || zig=$(tool python-zig) || missing "neither WASI_SDK_PATH is set nor \`zig\` is installed"
rustlib=$(rustc --print sysroot)/lib/rustlib
libs=$rustlib/wasm32-wasip2/lib
bin=$rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
[[ -f $libs/self-contained/libc.a ]] || missing "Rust's target wasm32-wasip2 is not installed, whose libc is used"

# compile SOURCE START ENTRY FLAGS...
compile() {
    local source=$1 start=$2 entry=$3
    shift 3
    "$zig" cc -target wasm32-wasi -D__wasilibc_use_wasip2 -Os -Wall -Wextra -c "$source.c" -o "$out/$source.o"
    "$bin/wasm-component-ld" --wasm-ld-path "$bin/gcc-ld/wasm-ld" --entry "$entry" --strip-all "$@" \
        "$libs/self-contained/$start.o" "$out/$source.o" "$libs/self-contained/libc.a" "$libs"/libcompiler_builtins-*.rlib \
        -o "$out/$source.wasm"
}
compile program crt1-command _start
compile handler crt1-reactor _initialize --component-type handler.wit
