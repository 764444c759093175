// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "chunkllm/infer/model_bundle.hpp"
#include "chunkllm/model/backbone_config.hpp"
#include "chunkllm/model/decoder_backbone.hpp"
#include "chunkllm/model/model_files.hpp"
#include "chunkllm/text/bpe_tokenizer.hpp"

namespace chunkllm::cli {

/// A `ModelBundle` whose weights come last, and with `--device cuda` often not at all: what is
/// wrong with a call should show before gigabytes are read.
struct LoadedModel {
  ModelFiles files;
  BpeTokenizer tokenizer;
  std::vector<std::int32_t> end_ids;                      ///< that end a generation, ascending
  std::unique_ptr<const DecoderBackbone> maybe_backbone;  ///< in the host's memory

  [[nodiscard]] const BackboneConfig& config() const { return files.config(); }
};

}  // namespace chunkllm::cli
