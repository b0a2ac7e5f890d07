# Sourced by the scripts that build guests of other languages: where their tools are.

# The tools that `toolchains.sh` installs.
tools=${GUEST_TOOLS:-$(dirname "${BASH_SOURCE[0]}")/../../target/guest-tools}

# tool NAME: prints where it is; fails where it is not.
tool() {
    local at
    for at in "$tools/python/bin/$1" "$tools/node/node_modules/.bin/$1"; do
        if [[ -x $at ]]; then
            realpath --no-symlinks "$at"
            return
        fi
    done
    command -v "$1"
}

# missing WORDS: ends the script as one that could not do its work.
missing() {
    echo "$*" >&2
    exit 77
}
