// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/safetensors.hpp"
#include "chunkllm/io/safetensors_writer.hpp"
#include "chunkllm/train/qk_trainer.hpp"

namespace chunkllm {

/// Where a run stands, beside the trainer itself.
struct TrainingProgress {
  std::int64_t num_steps = 0;
  std::int64_t num_tokens = 0;  ///< read so far
  double seconds = 0.0;         ///< trained so far, over all starts
};

namespace detail {

inline std::string in_quotes(std::string_view text) {
  return "\"" + printable(text) + "\"";
}

inline constexpr std::string_view kCheckpointFormat = "chunkllm.training";

/// The three states of a part of a layer: weights and both moments.
template <typename Visit>
void visit_checkpoint(QkTrainer& trainer, const Visit& visit) {
  for (std::size_t l = 0; l < trainer.layers().size(); ++l) {
    TrainedLayer& layer = trainer.layers()[l];
    for (std::size_t p = 0; p < kNumQkAdapterParts; ++p) {
      const std::string name =
          "layers." + std::to_string(l) + "." + std::string(kQkAdapterParts[p].first);
      visit(name, layer.weights.*kQkAdapterParts[p].second);
      visit(name + ".moment1", layer.moments[p].first);
      visit(name + ".moment2", layer.moments[p].second);
    }
  }
}

inline Result<std::int64_t> checkpoint_number(const SafetensorsFile& file, const std::string& key) {
  const auto entry = file.metadata().find(key);
  const std::string value = entry == file.metadata().end() ? "" : entry->second;
  std::int64_t number = -1;
  const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || stop != value.data() + value.size() || number < 0) {
    return invalid_file(
        field_error(file.path(), key, in_quotes(value), "a whole number of at least 0"));
  }
  return number;
}

}  // namespace detail

/// Writes all that a run needs to go on, atomically: killed at any moment, the file is the old one
/// or the new one.
///
/// \param settings  what the run was started with; only a run with the same may go on from it
/// Errors: those of `write_safetensors`
inline Status write_checkpoint(const std::string& path, QkTrainer& trainer,
                               const TrainingProgress& progress, const std::string& settings) {
  std::vector<SafetensorsTensor> tensors;
  detail::visit_checkpoint(trainer, [&](std::string name, std::vector<float>& values) {
    tensors.push_back({std::move(name),
                       DType::kF32,
                       {static_cast<std::int64_t>(values.size())},
                       std::as_bytes(std::span<const float>(values))});
  });
  return write_safetensors(
      path, tensors,
      {{"format", std::string(detail::kCheckpointFormat)},
       {"settings", settings},
       {"num_steps", std::to_string(progress.num_steps)},
       {"num_tokens", std::to_string(progress.num_tokens)},
       {"milliseconds", std::to_string(static_cast<std::int64_t>(progress.seconds * 1e3))}});
}

/// Takes a run up where `write_checkpoint` left it.
///
/// Errors: those of `SafetensorsFile::open`; kInvalidFile for a file that is no checkpoint or whose
///         tensors have other sizes than the trainer's; kInvalidArgument where `settings` differ
///         from those it was written with. The trainer is unchanged then.
inline Result<TrainingProgress> read_checkpoint(const std::string& path, QkTrainer& trainer,
                                                const std::string& settings) {
  CHUNKLLM_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::open(path));
  const auto field = [&](const char* key) {
    const auto entry = file.metadata().find(key);
    return entry == file.metadata().end() ? std::string() : entry->second;
  };
  if (field("format") != detail::kCheckpointFormat) {
    return invalid_file(detail::field_error(path, "format", detail::in_quotes(field("format")),
                                            detail::in_quotes(detail::kCheckpointFormat)));
  }
  if (field("settings") != settings) {
    return invalid_argument(path + ": settings are " + detail::in_quotes(field("settings")) +
                            ", expected this run's " + detail::in_quotes(settings) +
                            "; give the same options to go on, or remove the file to begin anew");
  }
  TrainingProgress progress;
  CHUNKLLM_ASSIGN_OR_RETURN(progress.num_steps, detail::checkpoint_number(file, "num_steps"));
  CHUNKLLM_ASSIGN_OR_RETURN(progress.num_tokens, detail::checkpoint_number(file, "num_tokens"));
  CHUNKLLM_ASSIGN_OR_RETURN(const std::int64_t milliseconds,
                            detail::checkpoint_number(file, "milliseconds"));
  progress.seconds = static_cast<double>(milliseconds) * 1e-3;

  // All are checked before the first is taken.
  Status status;
  const auto visit = [&](bool takes) {
    detail::visit_checkpoint(trainer, [&](const std::string& name, std::vector<float>& values) {
      if (!status.ok()) return;
      const Result<TensorBytes> tensor = file.tensor(name);
      if (!tensor.ok()) {
        status = tensor.status();
      } else if (tensor->dtype != DType::kF32 ||
                 tensor->bytes.size() != values.size() * sizeof(float)) {
        status = invalid_file(
            detail::field_error(path, name, std::to_string(tensor->bytes.size()) + " bytes",
                                std::to_string(values.size()) + " values of F32"));
      } else if (takes) {
        std::memcpy(values.data(), tensor->bytes.data(), tensor->bytes.size());
      }
    });
  };
  visit(/*takes=*/false);
  CHUNKLLM_RETURN_IF_ERROR(status);
  visit(/*takes=*/true);
  trainer.set_num_steps(progress.num_steps);
  return progress;
}

}  // namespace chunkllm
