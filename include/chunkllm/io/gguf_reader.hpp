// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/byte_reader.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/gguf_types.hpp"

namespace chunkllm::detail {

/// Far above real files (tens of values, some thousand tensors): a bound for hostile ones.
inline constexpr std::uint64_t kMaxGgufEntries = 65536;
/// ggml's bound for strings and arrays.
inline constexpr std::uint64_t kMaxGgufLength = std::uint64_t{1} << 30;
inline constexpr std::uint64_t kMaxGgufKeyBytes = 65535;
inline constexpr std::uint64_t kMaxGgufTensorNameBytes = 64;
/// Nesting of arrays in arrays; writers use one level.
inline constexpr int kMaxGgufArrayDepth = 8;

/// What the walk over a file's header finds; views into the file's bytes.
struct GgufContents {
  std::map<std::string_view, GgufValue> values;
  std::vector<GgufTensorInfo> tensors;  ///< in file order
  std::map<std::string_view, std::size_t> tensor_indices;
};

/// Walks a GGUF header once and checks all of it.
class GgufHeaderReader {
 public:
  GgufHeaderReader(std::span<const std::byte> bytes, std::string_view origin)
      : bytes_(bytes), reader_(bytes), origin_(origin) {}

  Result<GgufContents> read() {
    std::uint64_t num_tensors = 0;
    std::uint64_t num_values = 0;
    CHUNKLLM_RETURN_IF_ERROR(read_prologue(num_tensors, num_values));
    for (std::uint64_t i = 0; i < num_values; ++i) CHUNKLLM_RETURN_IF_ERROR(read_key_value());
    CHUNKLLM_RETURN_IF_ERROR(check_split());
    CHUNKLLM_ASSIGN_OR_RETURN(const std::uint64_t alignment, read_alignment());
    std::vector<std::uint64_t> offsets;
    for (std::uint64_t i = 0; i < num_tensors; ++i) {
      CHUNKLLM_RETURN_IF_ERROR(read_tensor_info(offsets));
    }
    CHUNKLLM_RETURN_IF_ERROR(place_tensors(offsets, alignment));
    return std::move(contents_);
  }

 private:
  [[nodiscard]] Status bad(const std::string& what) const {
    return invalid_file(std::string(origin_) + ": " + what);
  }
  [[nodiscard]] Status truncated(const std::string& what) const {
    return bad("the file ends at byte " + std::to_string(bytes_.size()) + " within " + what);
  }

  Status read_prologue(std::uint64_t& num_tensors, std::uint64_t& num_values) {
    std::span<const std::byte> magic;
    std::uint32_t version = 0;
    if (!reader_.take(4, magic)) return truncated("the GGUF magic");
    if (as_text(magic) != "GGUF") {
      return bad("begins with '" + printable(as_text(magic)) + "', expected a GGUF file");
    }
    if (!reader_.read(version)) return truncated("the GGUF version");
    if (version != 0 && (version & 0xffffU) == 0) {
      return unsupported(std::string(origin_) + ": a big-endian GGUF file, expected little-endian");
    }
    if (version != 3) {
      return unsupported(std::string(origin_) + ": GGUF version " + std::to_string(version) +
                         ", supported is 3");
    }
    if (!reader_.read(num_tensors) || !reader_.read(num_values)) return truncated("the counts");
    constexpr std::uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;
    constexpr std::uint64_t kMinValueBytes = 8 + 1 + 4 + 1;
    CHUNKLLM_RETURN_IF_ERROR(check_count("tensor_count", num_tensors, kMinTensorBytes));
    return check_count("kv_count", num_values, kMinValueBytes);
  }

  [[nodiscard]] Status check_count(const std::string& what, std::uint64_t count,
                                   std::uint64_t min_bytes) const {
    if (count > kMaxGgufEntries || count > reader_.remaining() / min_bytes) {
      return bad("field '" + what + "' is " + std::to_string(count) + ", expected at most " +
                 std::to_string(kMaxGgufEntries) + " and what the " +
                 std::to_string(reader_.remaining()) + " bytes left can hold");
    }
    return {};
  }

  Status read_string(const std::string& what, std::uint64_t max_bytes,
                     std::span<const std::byte>& characters) {
    std::uint64_t count = 0;
    if (!reader_.read(count)) return truncated(what);
    if (count > max_bytes) {
      return bad(what + " has " + std::to_string(count) + " bytes, expected at most " +
                 std::to_string(max_bytes));
    }
    if (!reader_.take(count, characters)) return truncated(what);
    return {};
  }

  /// A key or tensor name: not empty, without NUL.
  Status read_name(const std::string& what, std::uint64_t max_bytes, std::string_view& name) {
    std::span<const std::byte> characters;
    CHUNKLLM_RETURN_IF_ERROR(read_string(what, max_bytes, characters));
    name = as_text(characters);
    if (name.empty() || name.find('\0') != std::string_view::npos) {
      return bad(what + " is empty or holds a NUL byte");
    }
    return {};
  }

  Status read_type(const std::string& what, GgufType& type) {
    std::uint32_t id = 0;
    if (!reader_.read(id)) return truncated(what);
    if (id > static_cast<std::uint32_t>(GgufType::kF64)) {
      return bad(what + " has type " + std::to_string(id) + ", expected 0 to 12");
    }
    type = static_cast<GgufType>(id);
    return {};
  }

  Status read_key_value() {
    const std::string ordinal = "metadata key " + std::to_string(contents_.values.size() + 1);
    std::string_view key;
    CHUNKLLM_RETURN_IF_ERROR(read_name(ordinal, kMaxGgufKeyBytes, key));
    const std::string what = "metadata '" + printable(key) + "'";
    GgufValue value;
    CHUNKLLM_RETURN_IF_ERROR(read_type(what, value.type));
    value.element_type = value.type;
    if (value.type == GgufType::kString) {
      CHUNKLLM_RETURN_IF_ERROR(read_string(what, kMaxGgufLength, value.bytes));
    } else if (value.type == GgufType::kArray) {
      CHUNKLLM_RETURN_IF_ERROR(read_array(what, /*depth=*/1, value));
    } else {
      if (!reader_.take(gguf_type_bytes(value.type), value.bytes)) return truncated(what);
      CHUNKLLM_RETURN_IF_ERROR(check_booleans(what, value));
    }
    if (!contents_.values.emplace(key, value).second) return bad(what + " stands twice");
    return {};
  }

  Status read_array(const std::string& what, int depth, GgufValue& value) {
    if (depth > kMaxGgufArrayDepth) {
      return bad(what + " nests arrays deeper than " + std::to_string(kMaxGgufArrayDepth) +
                 " levels");
    }
    CHUNKLLM_RETURN_IF_ERROR(read_type(what, value.element_type));
    if (!reader_.read(value.num_elements)) return truncated(what);
    const std::size_t element_bytes = gguf_type_bytes(value.element_type);
    const std::size_t min_bytes = value.element_type == GgufType::kArray    ? 12
                                  : value.element_type == GgufType::kString ? 8
                                                                            : element_bytes;
    if (value.num_elements > kMaxGgufLength ||
        value.num_elements > reader_.remaining() / min_bytes) {
      return bad(what + " has " + std::to_string(value.num_elements) +
                 " elements, expected at most 2^30 and what the " +
                 std::to_string(reader_.remaining()) + " bytes left can hold");
    }
    const std::size_t begin = reader_.position();
    if (element_bytes != 0) {
      // Fits: checked against the bytes left.
      if (!reader_.take(value.num_elements * element_bytes, value.bytes)) return truncated(what);
      return check_booleans(what, value);
    }
    for (std::uint64_t i = 0; i < value.num_elements; ++i) {
      if (value.element_type == GgufType::kString) {
        // Not read_string: building its messages' text would cost more than the walk.
        std::uint64_t count = 0;
        std::span<const std::byte> characters;
        if (!reader_.read(count) || count > kMaxGgufLength || !reader_.take(count, characters)) {
          return bad(what + ": element " + std::to_string(i) + " is a string of " +
                     std::to_string(count) + " bytes, more than 2^30 or than the file holds");
        }
      } else {
        GgufValue inner;
        CHUNKLLM_RETURN_IF_ERROR(read_array(what, depth + 1, inner));
      }
    }
    value.bytes = bytes_.subspan(begin, reader_.position() - begin);
    return {};
  }

  [[nodiscard]] Status check_booleans(const std::string& what, const GgufValue& value) const {
    if (value.element_type != GgufType::kBool) return {};
    for (const std::byte flag : value.bytes) {
      if (std::to_integer<int>(flag) > 1) return bad(what + " has a boolean other than 0 and 1");
    }
    return {};
  }

  /// Parts of a model split over several files hold only some of the tensors.
  [[nodiscard]] Status check_split() const {
    const auto position = contents_.values.find("split.count");
    if (position == contents_.values.end()) return {};
    std::uint64_t count = 0;
    const GgufValue& value = position->second;
    if (value.type != GgufType::kU16 && value.type != GgufType::kU32 &&
        value.type != GgufType::kI32) {
      return bad("metadata 'split.count' is no integer");
    }
    std::memcpy(&count, value.bytes.data(), value.bytes.size());
    if (count > 1) {
      return unsupported(std::string(origin_) + ": one of " + std::to_string(count) +
                         " split GGUF files, merge them first (llama-gguf-split --merge)");
    }
    return {};
  }

  [[nodiscard]] Result<std::uint64_t> read_alignment() const {
    constexpr std::uint32_t kDefaultAlignment = 32;
    const auto position = contents_.values.find("general.alignment");
    if (position == contents_.values.end()) return std::uint64_t{kDefaultAlignment};
    if (position->second.type != GgufType::kU32)
      return bad("'general.alignment' is not of type u32");
    std::uint32_t alignment = 0;
    std::memcpy(&alignment, position->second.bytes.data(), sizeof(alignment));
    if (!std::has_single_bit(alignment)) {
      return bad("'general.alignment' is " + std::to_string(alignment) +
                 ", expected a power of two");
    }
    return std::uint64_t{alignment};
  }

  Status read_tensor_info(std::vector<std::uint64_t>& offsets) {
    GgufTensorInfo info;
    const std::string ordinal = "tensor name " + std::to_string(offsets.size() + 1);
    CHUNKLLM_RETURN_IF_ERROR(read_name(ordinal, kMaxGgufTensorNameBytes, info.name));
    const std::string what = "tensor '" + printable(info.name) + "'";
    if (!reader_.read(info.num_dims)) return truncated(what);
    if (info.num_dims > info.dims.size()) {
      return bad(what + " has " + std::to_string(info.num_dims) + " dimensions, expected 0 to 4");
    }
    std::optional<std::uint64_t> num_values = 1;
    for (std::uint32_t i = 0; i < info.num_dims; ++i) {
      if (!reader_.read(info.dims[i])) return truncated(what);
      if (info.dims[i] < 0) return bad(what + " has a dimension past 2^63");
      if (num_values) {
        num_values = checked_multiply(*num_values, static_cast<std::uint64_t>(info.dims[i]));
      }
    }
    std::uint32_t type_id = 0;
    std::uint64_t offset = 0;
    if (!reader_.read(type_id) || !reader_.read(offset)) return truncated(what);
    info.type = find_gguf_tensor_type(type_id);
    if (info.type == nullptr) {
      return unsupported(std::string(origin_) + ": " + what + " has type " +
                         std::to_string(type_id) + ", which is not a known ggml type");
    }
    if (static_cast<std::uint64_t>(info.dims[0]) % info.type->block_size != 0) {
      return bad(what + " has rows of " + std::to_string(info.dims[0]) + " values, expected a " +
                 "multiple of " + std::to_string(info.type->block_size) + " for type " +
                 std::string(info.type->name));
    }
    // More values than bytes x 256 cannot fit; the check keeps the sizes below small.
    if (!num_values || *num_values / 256 > bytes_.size()) {
      return bad(what + " has more values than the file can hold");
    }
    const std::uint64_t num_bytes = *num_values / info.type->block_size * info.type->block_bytes;
    if (num_bytes > bytes_.size()) return bad(what + " is larger than the file");
    info.bytes = bytes_.first(num_bytes);  // its length; place_tensors() finds its place
    if (!contents_.tensor_indices.emplace(info.name, contents_.tensors.size()).second) {
      return bad(what + " stands twice");
    }
    contents_.tensors.push_back(info);
    offsets.push_back(offset);
    return {};
  }

  /// As ggml's reader: each tensor follows the one before with alignment padding only.
  Status place_tensors(std::span<const std::uint64_t> offsets, std::uint64_t alignment) {
    // Neither sum overflows: both terms are far below 2^63.
    const auto padded = [alignment](std::uint64_t size) {
      return (size + alignment - 1) / alignment * alignment;
    };
    const std::uint64_t data_start = padded(reader_.position());
    std::uint64_t expected = 0;
    for (std::size_t i = 0; i < offsets.size(); ++i) {
      GgufTensorInfo& info = contents_.tensors[i];
      const std::string what = "tensor '" + printable(info.name) + "'";
      if (offsets[i] != expected) {
        return bad(what + " has offset " + std::to_string(offsets[i]) + ", expected " +
                   std::to_string(expected) + " (tensors follow each other, aligned to " +
                   std::to_string(alignment) + ")");
      }
      const std::uint64_t begin = data_start + expected;
      if (begin > bytes_.size() || info.bytes.size() > bytes_.size() - begin) {
        return bad(what + " ends at byte " + std::to_string(begin + info.bytes.size()) +
                   ", the file at " + std::to_string(bytes_.size()));
      }
      expected += padded(info.bytes.size());
      info.bytes = bytes_.subspan(begin, info.bytes.size());
    }
    return {};
  }

  std::span<const std::byte> bytes_;
  ByteReader reader_;
  std::string_view origin_;
  GgufContents contents_;
};

}  // namespace chunkllm::detail
