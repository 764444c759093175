// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "chunkllm/core/utf8.hpp"
#include "chunkllm/io/config_json.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/model/validate_config.hpp"

using namespace chunkllm;

/// The input is a config.json and, after a NUL byte, a generation_config.json.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::size_t cut = text.find('\0');
  const Result<Json> json = parse_json(text.substr(0, cut), "fuzz");
  if (!json.ok()) return 0;
  // What the limits let through is valid UTF-8 throughout, so that it can be written again.
  if (!is_valid_utf8(text.substr(0, cut))) __builtin_trap();
  const std::string_view rest = cut == std::string_view::npos ? "" : text.substr(cut + 1);
  const Result<Json> generation = parse_json(rest, "fuzz");
  const Result<BackboneConfig> config = backbone_config_from_json(
      json.value(), generation.ok() ? &generation.value() : nullptr, "fuzz");
  if (config.ok() && !validate(config.value(), "fuzz").ok()) __builtin_trap();
  return 0;
}
