// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "chunkllm/core/dtype.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/io/byte_reader.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/json.hpp"
#include "chunkllm/io/mapped_file.hpp"

namespace chunkllm {

/// One tensor of a safetensors file, of any element type.
struct SafetensorsEntry {
  std::string dtype;  ///< as the file spells it, e.g. "BF16"
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

namespace detail {

/// Readers of the format refuse longer headers.
inline constexpr std::uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsDType {
  std::string_view name;
  std::uint64_t bits;
};

inline constexpr std::array<SafetensorsDType, 22> kSafetensorsDTypes = {{
    {"BOOL", 8},        {"U8", 8},          {"I8", 8},      {"F8_E4M3", 8}, {"F8_E5M2", 8},
    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F8_E8M0", 8}, {"F4", 4},      {"F6_E2M3", 6},
    {"F6_E3M2", 6},     {"I16", 16},        {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},        {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
}};

inline std::optional<DType> dtype_of_safetensors(std::string_view name) {
  if (name == "F32") return DType::kF32;
  if (name == "F16") return DType::kF16;
  if (name == "BF16") return DType::kBF16;
  return std::nullopt;
}

/// A list of non-negative integers, at most `max_count` of them.
inline std::optional<std::vector<std::int64_t>> json_sizes(const Json* json,
                                                           std::size_t max_count) {
  const auto* list = json == nullptr ? nullptr : json->get_ptr<const Json::array_t*>();
  if (list == nullptr || list->size() > max_count) return std::nullopt;
  std::vector<std::int64_t> sizes;
  for (const Json& element : *list) {
    const auto* size = element.get_ptr<const Json::number_unsigned_t*>();
    if (size == nullptr || *size > static_cast<std::uint64_t>(INT64_MAX)) return std::nullopt;
    sizes.push_back(static_cast<std::int64_t>(*size));
  }
  return sizes;
}

/// Checks one header entry against itself and the data section.
inline Result<SafetensorsEntry> parse_safetensors_entry(const Json& json,
                                                        std::span<const std::byte> data,
                                                        const std::string& where) {
  constexpr std::size_t kMaxRank = 64;
  SafetensorsEntry entry;
  CHUNKLLM_ASSIGN_OR_RETURN(entry.dtype, require_string(json, "dtype", where));
  const auto* const dtype =
      std::find_if(kSafetensorsDTypes.begin(), kSafetensorsDTypes.end(),
                   [&](const SafetensorsDType& known) { return known.name == entry.dtype; });
  if (dtype == kSafetensorsDTypes.end()) {
    return invalid_file(field_error(where, "dtype", "\"" + printable(entry.dtype) + "\"",
                                    "a safetensors element type such as F32, F16 or BF16"));
  }
  auto shape = json_sizes(find_json(json, "shape"), kMaxRank);
  if (!shape) return invalid_file(where + ": field 'shape' is not a list of sizes");
  entry.shape = *std::move(shape);
  const auto offsets = json_sizes(find_json(json, "data_offsets"), 2);
  if (!offsets || offsets->size() != 2) {
    return invalid_file(where + ": field 'data_offsets' is not a pair of byte offsets");
  }
  std::optional<std::uint64_t> bits = dtype->bits;
  for (const std::int64_t size : entry.shape) {
    if (bits) bits = checked_multiply(*bits, static_cast<std::uint64_t>(size));
  }
  if (!bits || *bits % 8 != 0) {
    return invalid_file(where + ": field 'shape': its size in bytes is no 64-bit integer");
  }
  const auto begin = static_cast<std::uint64_t>((*offsets)[0]);
  const auto end = static_cast<std::uint64_t>((*offsets)[1]);
  if (begin > end || end > data.size() || end - begin != *bits / 8) {
    return invalid_file(where + ": field 'data_offsets' is [" + std::to_string(begin) + ", " +
                        std::to_string(end) + "], expected " + std::to_string(*bits / 8) +
                        " bytes within the " + std::to_string(data.size()) + " of the file's data");
  }
  entry.bytes = data.subspan(begin, end - begin);
  return entry;
}

}  // namespace detail

/// A safetensors file, checked as a whole when it is opened: every tensor lies in the file, and
/// the tensors fill its data section without hole or overlap.
class SafetensorsFile {
 public:
  /// Maps and checks `path`. Errors: as of `MappedFile::open` and `parse`.
  static Result<SafetensorsFile> open(const std::string& path) {
    CHUNKLLM_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
    CHUNKLLM_ASSIGN_OR_RETURN(SafetensorsFile result, parse(file.bytes(), path));
    result.file_ = std::move(file);
    return Result<SafetensorsFile>(std::move(result));
  }

  /// Checks a file's bytes, which must outlive the result.
  ///
  /// \param origin  the file's name, for messages
  /// Errors: kInvalidFile for anything that breaks the format, duplicate names included;
  /// kResourceExhausted for a header past the format's 100,000,000 bytes.
  static Result<SafetensorsFile> parse(std::span<const std::byte> bytes, std::string origin) {
    SafetensorsFile result(std::move(origin));
    ByteReader reader(bytes);
    std::uint64_t header_bytes = 0;
    std::span<const std::byte> header;
    if (!reader.read(header_bytes)) {
      return invalid_file(result.origin_ + ": " + std::to_string(bytes.size()) +
                          " bytes, too short for a safetensors file");
    }
    if (header_bytes > detail::kMaxSafetensorsHeaderBytes) {
      return resource_exhausted(result.origin_ + ": safetensors header length is " +
                                std::to_string(header_bytes) + ", expected at most " +
                                std::to_string(detail::kMaxSafetensorsHeaderBytes));
    }
    if (!reader.take(header_bytes, header)) {
      return invalid_file(result.origin_ + ": safetensors header length is " +
                          std::to_string(header_bytes) + ", but only " +
                          std::to_string(reader.remaining()) + " bytes follow");
    }
    const std::string_view text = detail::as_text(header);
    if (!text.starts_with('{')) {
      return invalid_file(result.origin_ + ": the safetensors header does not begin with '{'");
    }
    const JsonLimits limits{.max_bytes = detail::kMaxSafetensorsHeaderBytes,
                            .max_depth = 4,
                            .max_values = std::size_t{1} << 22,
                            .duplicate_keys = DuplicateKeys::kRefuse};
    CHUNKLLM_ASSIGN_OR_RETURN(const Json json, parse_json(text, result.origin_, limits));
    CHUNKLLM_RETURN_IF_ERROR(result.read_entries(json, bytes.subspan(reader.position())));
    return Result<SafetensorsFile>(std::move(result));
  }

  [[nodiscard]] bool contains(std::string_view name) const { return find(name) != nullptr; }

  /// All names, sorted.
  [[nodiscard]] std::vector<std::string> tensor_names() const {
    std::vector<std::string> names;
    for (const auto& [name, entry] : entries_) names.push_back(name);
    return names;
  }

  /// The tensor as the file has it; null where there is none of this name.
  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const {
    const auto position = entries_.find(name);
    return position == entries_.end() ? nullptr : &position->second;
  }

  /// A view of a vector or matrix.
  ///
  /// Errors: kNotFound; kUnsupported for an element type other than F32, F16, BF16 or a rank other
  /// than 1 and 2.
  [[nodiscard]] Result<TensorBytes> tensor(std::string_view name) const {
    const SafetensorsEntry* entry = find(name);
    if (entry == nullptr) {
      return not_found(origin_ + ": there is no tensor '" + detail::printable(name) + "'");
    }
    const std::optional<DType> dtype = detail::dtype_of_safetensors(entry->dtype);
    const std::size_t rank = entry->shape.size();
    if (!dtype || rank < 1 || rank > 2) {
      return unsupported(origin_ + ": tensor '" + detail::printable(name) + "' is " + entry->dtype +
                         " of rank " + std::to_string(rank) +
                         ", supported are F32, F16 and BF16 of rank 1 and 2");
    }
    return TensorBytes{*dtype, entry->bytes, rank == 2 ? entry->shape[0] : 1,
                       entry->shape[rank - 1]};
  }

  /// The `__metadata__` strings.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return metadata_; }
  [[nodiscard]] const std::string& path() const { return origin_; }

  /// Gives resident pages back, see `MappedFile::drop_pages`; nothing for parsed bytes.
  void drop_pages() const {
    if (file_) file_->drop_pages();
  }

 private:
  explicit SafetensorsFile(std::string origin) : origin_(std::move(origin)) {}

  Status read_entries(const Json& json, std::span<const std::byte> data) {
    const auto* header = json.get_ptr<const Json::object_t*>();
    if (header == nullptr) return invalid_file(origin_ + ": the header is not a JSON object");
    for (const auto& [name, value] : *header) {
      if (name == "__metadata__") {
        CHUNKLLM_RETURN_IF_ERROR(read_metadata(value));
        continue;
      }
      const std::string where = origin_ + ": tensor '" + detail::printable(name) + "'";
      CHUNKLLM_ASSIGN_OR_RETURN(SafetensorsEntry entry,
                                detail::parse_safetensors_entry(value, data, where));
      entries_.emplace(name, std::move(entry));
    }
    return check_coverage(data);
  }

  Status read_metadata(const Json& json) {
    const auto* object = json.get_ptr<const Json::object_t*>();
    if (object == nullptr) {
      return invalid_file(
          detail::field_error(origin_, "__metadata__", describe(json), "an object of strings"));
    }
    for (const auto& [key, value] : *object) {
      CHUNKLLM_ASSIGN_OR_RETURN(std::string text, require_string(json, key, origin_));
      metadata_.emplace(key, std::move(text));
    }
    return {};
  }

  /// The tensors, in the order of the file, must cover the data section exactly once.
  [[nodiscard]] Status check_coverage(std::span<const std::byte> data) const {
    std::vector<std::tuple<std::size_t, std::size_t, std::string_view>> ranges;
    for (const auto& [name, entry] : entries_) {
      const auto begin = static_cast<std::size_t>(entry.bytes.data() - data.data());
      ranges.emplace_back(begin, begin + entry.bytes.size(), name);
    }
    std::sort(ranges.begin(), ranges.end());
    std::size_t covered = 0;
    for (const auto& [begin, end, name] : ranges) {
      if (begin != covered) {
        return invalid_file(origin_ + ": tensor '" + detail::printable(name) +
                            "' begins at data byte " + std::to_string(begin) + ", expected " +
                            std::to_string(covered) +
                            " (tensors must neither overlap nor leave holes)");
      }
      covered = end;
    }
    if (covered != data.size()) {
      return invalid_file(origin_ + ": the tensors end at data byte " + std::to_string(covered) +
                          ", the file at " + std::to_string(data.size()));
    }
    return {};
  }

  std::string origin_;
  std::optional<MappedFile> file_;
  std::map<std::string, SafetensorsEntry, std::less<>> entries_;
  std::map<std::string, std::string> metadata_;
};

/// The weights of a model folder: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` names.
class SafetensorsModel {
 public:
  /// Opens all files of `folder`. The single file wins where both exist.
  ///
  /// Errors: kNotFound where there is neither; kInvalidFile where the index names a file outside
  /// the folder or a tensor that its shard does not hold; and those of `SafetensorsFile::open`.
  static Result<SafetensorsModel> open(const std::string& folder) {
    const std::string single = folder + "/model.safetensors";
    const std::string index = folder + "/model.safetensors.index.json";
    SafetensorsModel model;
    if (::access(single.c_str(), F_OK) == 0) {
      CHUNKLLM_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::open(single));
      for (const std::string& name : file.tensor_names()) model.file_of_tensor_.emplace(name, 0);
      model.files_.push_back(std::move(file));
      return Result<SafetensorsModel>(std::move(model));
    }
    if (::access(index.c_str(), F_OK) != 0) {
      return not_found(folder + ": holds neither model.safetensors nor " +
                       "model.safetensors.index.json");
    }
    CHUNKLLM_RETURN_IF_ERROR(model.open_shards(folder, index));
    return Result<SafetensorsModel>(std::move(model));
  }

  [[nodiscard]] bool contains(std::string_view name) const { return find_file(name) != nullptr; }

  /// All names, sorted.
  [[nodiscard]] std::vector<std::string> tensor_names() const {
    std::vector<std::string> names;
    for (const auto& [name, file] : file_of_tensor_) names.push_back(name);
    return names;
  }

  /// As `SafetensorsFile::find`, over all shards.
  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const {
    const SafetensorsFile* file = find_file(name);
    return file == nullptr ? nullptr : file->find(name);
  }

  /// As `SafetensorsFile::tensor`, over all shards.
  [[nodiscard]] Result<TensorBytes> tensor(std::string_view name) const {
    const SafetensorsFile* file = find_file(name);
    if (file == nullptr) {
      return not_found(files_.front().path() + ": there is no tensor '" + detail::printable(name) +
                       "'" + (files_.size() > 1 ? " in any shard" : ""));
    }
    return file->tensor(name);
  }

  void drop_pages() const {
    for (const SafetensorsFile& file : files_) file.drop_pages();
  }

 private:
  SafetensorsModel() = default;

  Status open_shards(const std::string& folder, const std::string& index) {
    constexpr std::size_t kMaxShards = 4096;
    CHUNKLLM_ASSIGN_OR_RETURN(const Json json,
                              read_json_file(index, {.max_bytes = std::size_t{1} << 26,
                                                     .max_values = std::size_t{1} << 20,
                                                     .duplicate_keys = DuplicateKeys::kRefuse}));
    const Json* weight_map = find_json(json, "weight_map");
    const auto* entries =
        weight_map == nullptr ? nullptr : weight_map->get_ptr<const Json::object_t*>();
    if (entries == nullptr || entries->empty()) {
      return invalid_file(detail::field_error(index, "weight_map",
                                              weight_map ? describe(*weight_map) : "missing",
                                              "an object of tensor names and file names"));
    }
    std::map<std::string, std::size_t> file_indices;
    for (const auto& [tensor, value] : *entries) {
      CHUNKLLM_ASSIGN_OR_RETURN(const std::string name, require_string(*weight_map, tensor, index));
      // A plain name: an index must not make us read files elsewhere, and messages show the name.
      const bool has_control = std::any_of(name.begin(), name.end(), [](char c) {
        return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
      });
      if (name.empty() || name.starts_with('.') || name.find('/') != std::string::npos ||
          has_control) {
        return invalid_file(detail::field_error(index, tensor, describe(value),
                                                "the plain name of a file in the same folder"));
      }
      const auto [position, is_new] = file_indices.emplace(name, files_.size());
      if (is_new) {
        if (files_.size() == kMaxShards) {
          return resource_exhausted(index + ": names more than " + std::to_string(kMaxShards) +
                                    " files");
        }
        std::string path = folder;
        path += '/';
        path += name;
        CHUNKLLM_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::open(path));
        files_.push_back(std::move(file));
      }
      if (!files_[position->second].contains(tensor)) {
        return invalid_file(files_[position->second].path() + ": there is no tensor '" +
                            detail::printable(tensor) + "', which the index says it holds");
      }
      file_of_tensor_.emplace(tensor, position->second);
    }
    return {};
  }

  [[nodiscard]] const SafetensorsFile* find_file(std::string_view name) const {
    const auto position = file_of_tensor_.find(name);
    return position == file_of_tensor_.end() ? nullptr : &files_[position->second];
  }

  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::size_t, std::less<>> file_of_tensor_;
};

}  // namespace chunkllm
