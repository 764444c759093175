// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/io/byte_reader.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/gguf_reader.hpp"
#include "chunkllm/io/gguf_types.hpp"
#include "chunkllm/io/mapped_file.hpp"

namespace chunkllm {

namespace detail {

/// An integer of any width; nothing for other types and for u64 past 2^63.
inline std::optional<std::int64_t> gguf_integer(GgufType type, const std::byte* bytes) {
  switch (type) {
    case GgufType::kU8: return read_as<std::uint8_t>(bytes);
    case GgufType::kI8: return read_as<std::int8_t>(bytes);
    case GgufType::kU16: return read_as<std::uint16_t>(bytes);
    case GgufType::kI16: return read_as<std::int16_t>(bytes);
    case GgufType::kU32: return read_as<std::uint32_t>(bytes);
    case GgufType::kI32: return read_as<std::int32_t>(bytes);
    case GgufType::kI64: return read_as<std::int64_t>(bytes);
    case GgufType::kU64: {
      const auto value = read_as<std::uint64_t>(bytes);
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return {};
      return static_cast<std::int64_t>(value);
    }
    default: return {};
  }
}

/// A number of any type but bool; nothing for other types.
inline std::optional<double> gguf_number(GgufType type, const std::byte* bytes) {
  if (type == GgufType::kF32) return static_cast<double>(read_as<float>(bytes));
  if (type == GgufType::kF64) return read_as<double>(bytes);
  const std::optional<std::int64_t> integer = gguf_integer(type, bytes);
  if (!integer) return {};
  return static_cast<double>(*integer);
}

/// A value as it may stand in a message.
inline std::string describe(const GgufValue& value) {
  if (value.type == GgufType::kArray) {
    return "an array of " + std::to_string(value.num_elements) + " " +
           std::string(to_string(value.element_type));
  }
  if (value.type == GgufType::kString) return "\"" + printable(as_text(value.bytes)) + "\"";
  if (value.type == GgufType::kBool)
    return read_as<std::uint8_t>(value.bytes.data()) ? "true" : "false";
  if (const auto integer = gguf_integer(value.type, value.bytes.data())) {
    return std::to_string(*integer);
  }
  if (const auto number = gguf_number(value.type, value.bytes.data())) return number_text(*number);
  return "an integer past 2^63";
}

}  // namespace detail

/// A little-endian GGUF version 3 file, checked as a whole when it is opened; metadata and tensors
/// stay in the mapping.
class GgufFile {
 public:
  /// Maps and checks `path`. Errors: as of `MappedFile::open` and `parse`.
  static Result<GgufFile> open(const std::string& path) {
    CHUNKLLM_ASSIGN_OR_RETURN(MappedFile file, MappedFile::open(path));
    CHUNKLLM_ASSIGN_OR_RETURN(GgufFile result, parse(file.bytes(), path));
    result.file_ = std::move(file);
    return Result<GgufFile>(std::move(result));
  }

  /// Checks a file's bytes, which must outlive the result.
  ///
  /// \param origin  the file's name, for messages
  /// Errors: kInvalidFile for anything that breaks the format; kUnsupported for big-endian files,
  /// other versions, parts of split files, and unknown tensor types.
  /// Cost: one walk over the header; about 100 bytes of memory for each value and tensor.
  static Result<GgufFile> parse(std::span<const std::byte> bytes, std::string origin) {
    CHUNKLLM_ASSIGN_OR_RETURN(detail::GgufContents contents,
                              detail::GgufHeaderReader(bytes, origin).read());
    return GgufFile(std::move(origin), std::move(contents));
  }

  [[nodiscard]] const std::string& path() const { return origin_; }

  /// The metadata value `key`; null where it is absent.
  [[nodiscard]] const GgufValue* find(std::string_view key) const {
    const auto position = contents_.values.find(key);
    return position == contents_.values.end() ? nullptr : &position->second;
  }

  /// All metadata keys, sorted.
  [[nodiscard]] std::vector<std::string_view> keys() const {
    std::vector<std::string_view> result;
    for (const auto& [key, value] : contents_.values) result.push_back(key);
    return result;
  }

  /// The integer `key` of whatever width, or nothing where it is absent.
  /// Errors: kInvalidFile where it is of another type or outside [min, max].
  [[nodiscard]] Result<std::optional<std::int64_t>> optional_int(std::string_view key,
                                                                 std::int64_t min,
                                                                 std::int64_t max) const {
    const GgufValue* value = find(key);
    if (value == nullptr) return std::optional<std::int64_t>();
    std::optional<std::int64_t> number;
    if (value->type != GgufType::kArray && value->type != GgufType::kString) {
      number = detail::gguf_integer(value->type, value->bytes.data());
    }
    if (!number || *number < min || *number > max) {
      return wrong(key, *value,
                   "an integer in [" + std::to_string(min) + ", " + std::to_string(max) + "]");
    }
    return number;
  }

  /// The number `key`, or nothing where it is absent.
  /// Errors: kInvalidFile where it is of another type, not finite, or outside [min, max].
  [[nodiscard]] Result<std::optional<double>> optional_double(std::string_view key, double min,
                                                              double max) const {
    const GgufValue* value = find(key);
    if (value == nullptr) return std::optional<double>();
    std::optional<double> number;
    if (value->type != GgufType::kArray && value->type != GgufType::kString) {
      number = detail::gguf_number(value->type, value->bytes.data());
    }
    if (!number || !std::isfinite(*number) || *number < min || *number > max) {
      return wrong(
          key, *value,
          "a number in [" + detail::number_text(min) + ", " + detail::number_text(max) + "]");
    }
    return number;
  }

  /// The boolean `key`, or nothing where it is absent. Errors: kInvalidFile for another type.
  [[nodiscard]] Result<std::optional<bool>> optional_bool(std::string_view key) const {
    const GgufValue* value = find(key);
    if (value == nullptr) return std::optional<bool>();
    if (value->type != GgufType::kBool) return wrong(key, *value, "a boolean");
    return std::optional<bool>(value->bytes[0] != std::byte{0});
  }

  /// The string `key`, or nothing where it is absent; a view into the file, of any bytes.
  /// Errors: kInvalidFile for another type.
  [[nodiscard]] Result<std::optional<std::string_view>> optional_string(
      std::string_view key) const {
    const GgufValue* value = find(key);
    if (value == nullptr) return std::optional<std::string_view>();
    if (value->type != GgufType::kString) return wrong(key, *value, "a string");
    return std::optional<std::string_view>(detail::as_text(value->bytes));
  }

  /// As the optional getters, and an absent key is kInvalidFile too.
  [[nodiscard]] Result<std::int64_t> require_int(std::string_view key, std::int64_t min,
                                                 std::int64_t max) const {
    return require(optional_int(key, min, max), key, "an integer");
  }
  [[nodiscard]] Result<double> require_double(std::string_view key, double min, double max) const {
    return require(optional_double(key, min, max), key, "a number");
  }
  [[nodiscard]] Result<std::string_view> require_string(std::string_view key) const {
    return require(optional_string(key), key, "a string");
  }

  /// The elements of the string array `key`: views into the file, of any bytes.
  /// Errors: kInvalidFile where it is absent, of another type, or of more than 2^24 elements.
  [[nodiscard]] Result<std::vector<std::string_view>> string_array(std::string_view key) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const GgufValue* value, require_array(key));
    if (value->element_type != GgufType::kString) return wrong(key, *value, "an array of strings");
    std::vector<std::string_view> result;
    result.reserve(value->num_elements);
    const std::byte* position = value->bytes.data();
    for (std::uint64_t i = 0; i < value->num_elements; ++i) {  // lengths were checked by parse()
      const auto count = detail::read_as<std::uint64_t>(position);
      result.push_back(detail::as_text({position + sizeof(count), count}));
      position += sizeof(count) + count;
    }
    return result;
  }

  /// The elements of an integer array of whatever width.
  /// Errors: kInvalidFile where it is absent, of another type, of more than 2^24 elements, or an
  /// element is outside [min, max].
  [[nodiscard]] Result<std::vector<std::int64_t>> int_array(std::string_view key, std::int64_t min,
                                                            std::int64_t max) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const GgufValue* value, require_array(key));
    const std::size_t element_bytes = gguf_type_bytes(value->element_type);
    std::vector<std::int64_t> result;
    for (std::uint64_t i = 0; i < value->num_elements; ++i) {
      const auto number =
          detail::gguf_integer(value->element_type, value->bytes.data() + i * element_bytes);
      if (!number || *number < min || *number > max) {
        return wrong(
            key, *value,
            "an array of integers in [" + std::to_string(min) + ", " + std::to_string(max) + "]");
      }
      result.push_back(*number);
    }
    return result;
  }

  /// The elements of an array of numbers; NaN and infinity are kept.
  /// Errors: kInvalidFile where it is absent, of another type, or of more than 2^24 elements.
  [[nodiscard]] Result<std::vector<double>> double_array(std::string_view key) const {
    CHUNKLLM_ASSIGN_OR_RETURN(const GgufValue* value, require_array(key));
    const std::size_t element_bytes = gguf_type_bytes(value->element_type);
    std::vector<double> result;
    for (std::uint64_t i = 0; i < value->num_elements; ++i) {
      const auto number =
          detail::gguf_number(value->element_type, value->bytes.data() + i * element_bytes);
      if (!number) return wrong(key, *value, "an array of numbers");
      result.push_back(*number);
    }
    return result;
  }

  /// The elements of any array, nested ones included, as values of their own.
  /// Errors: kInvalidArgument where `array` is no array or has more than 2^20 elements.
  [[nodiscard]] static Result<std::vector<GgufValue>> elements(const GgufValue& array) {
    constexpr std::uint64_t kMaxElements = std::uint64_t{1} << 20;
    if (array.type != GgufType::kArray || array.num_elements > kMaxElements) {
      return invalid_argument("GGUF value: expected an array of at most 2^20 elements");
    }
    std::vector<GgufValue> result;
    ByteReader reader(array.bytes);
    for (std::uint64_t i = 0; i < array.num_elements; ++i) {
      GgufValue element;
      if (!take_element(reader, array.element_type, element)) {
        return invalid_argument("GGUF value: not one that a GgufFile returned");
      }
      result.push_back(element);
    }
    return result;
  }

  /// All tensors, in file order.
  [[nodiscard]] const std::vector<GgufTensorInfo>& tensor_infos() const {
    return contents_.tensors;
  }

  /// The tensor `name` as the file has it; null where it is absent.
  [[nodiscard]] const GgufTensorInfo* find_tensor(std::string_view name) const {
    const auto position = contents_.tensor_indices.find(name);
    return position == contents_.tensor_indices.end() ? nullptr
                                                      : &contents_.tensors[position->second];
  }

  [[nodiscard]] bool contains(std::string_view name) const { return find_tensor(name) != nullptr; }

  /// A view of a vector (one row) or matrix: rows = dims[1], cols = dims[0].
  ///
  /// Errors: kNotFound; kUnsupported for other ranks and for types this library cannot read.
  [[nodiscard]] Result<TensorBytes> tensor(std::string_view name) const {
    const GgufTensorInfo* info = find_tensor(name);
    if (info == nullptr) {
      return not_found(origin_ + ": there is no tensor '" + detail::printable(name) + "'");
    }
    const std::optional<DType> dtype = dtype_of_gguf(info->type->id);
    if (!dtype || info->num_dims < 1 || info->num_dims > 2) {
      return unsupported(origin_ + ": tensor '" + detail::printable(name) + "' is " +
                         std::string(info->type->name) + " of rank " +
                         std::to_string(info->num_dims) +
                         ", supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K of "
                         "rank 1 and 2");
    }
    return TensorBytes{*dtype, info->bytes, info->dims[1], info->dims[0]};
  }

  /// Gives resident pages back, see `MappedFile::drop_pages`; nothing for parsed bytes.
  void drop_pages() const {
    if (file_) file_->drop_pages();
  }

 private:
  GgufFile(std::string origin, detail::GgufContents contents)
      : origin_(std::move(origin)), contents_(std::move(contents)) {}

  [[nodiscard]] Status wrong(std::string_view key, const GgufValue& value,
                             const std::string& expected) const {
    return invalid_file(detail::field_error(origin_, key, detail::describe(value), expected));
  }

  template <typename T>
  [[nodiscard]] Result<T> require(Result<std::optional<T>> value, std::string_view key,
                                  std::string_view expected) const {
    if (!value.ok()) return value.status();
    if (!value.value()) {
      return invalid_file(detail::field_error(origin_, key, "missing", expected));
    }
    return *std::move(value).value();
  }

  [[nodiscard]] Result<const GgufValue*> require_array(std::string_view key) const {
    constexpr std::uint64_t kMaxElements = std::uint64_t{1} << 24;
    const GgufValue* value = find(key);
    if (value == nullptr) {
      return invalid_file(detail::field_error(origin_, key, "missing", "an array"));
    }
    if (value->type != GgufType::kArray || value->num_elements > kMaxElements) {
      return wrong(key, *value, "an array of at most 2^24 elements");
    }
    return value;
  }

  /// Moves `reader` past one array element of `type` and describes it. Recursion ends at the depth
  /// that parse() allows.
  static bool take_element(ByteReader& reader, GgufType type, GgufValue& element) {
    element.type = element.element_type = type;
    if (type == GgufType::kString) {
      std::uint64_t count = 0;
      return reader.read(count) && reader.take(count, element.bytes);
    }
    if (type != GgufType::kArray) return reader.take(gguf_type_bytes(type), element.bytes);
    std::uint32_t inner_type = 0;
    if (!reader.read(inner_type) || !reader.read(element.num_elements)) return false;
    element.element_type = static_cast<GgufType>(inner_type);
    ByteReader walker = reader;
    for (std::uint64_t i = 0; i < element.num_elements; ++i) {
      GgufValue inner;
      if (!take_element(walker, element.element_type, inner)) return false;
    }
    return reader.take(walker.position() - reader.position(), element.bytes);
  }

  std::string origin_;
  std::optional<MappedFile> file_;
  detail::GgufContents contents_;
};

}  // namespace chunkllm
