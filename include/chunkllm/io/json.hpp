// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/mapped_file.hpp"

namespace chunkllm {

/// A parsed JSON document. Members that throw (`at`, `get`, `operator[]` on a wrong type) are not
/// for untrusted documents: use `find_json`, the typed getters below, and `get_ptr`.
using Json = nlohmann::json;

/// What a repeated key in an object means: JSON leaves it open, Python keeps the last.
enum class DuplicateKeys : std::uint8_t { kKeepLast, kRefuse };

/// Bounds of the memory and stack that a hostile document can take.
struct JsonLimits {
  std::size_t max_bytes = std::size_t{1} << 28;
  std::size_t max_depth = 64;  ///< nesting of arrays and objects
  /// Values and containers in all; one costs up to about 100 bytes of memory.
  std::size_t max_values = std::size_t{1} << 23;
  DuplicateKeys duplicate_keys = DuplicateKeys::kKeepLast;
};

namespace detail {

/// Builds a document from the parser's events under the limits. (The library's own builder has no
/// limits and hides duplicate keys.)
class JsonBuilder {
 public:
  explicit JsonBuilder(const JsonLimits& limits) : limits_(limits) {}

  [[nodiscard]] Json& document() { return document_; }
  [[nodiscard]] const std::string& error() const { return error_; }
  [[nodiscard]] StatusCode error_code() const { return error_code_; }
  /// Byte offset of a syntax error; nothing for a broken limit or a refused key.
  [[nodiscard]] std::optional<std::size_t> error_offset() const { return error_offset_; }

  // The names and signatures are those of nlohmann's SAX interface; false stops the parser.
  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(Json::number_integer_t value) { return add(value); }
  bool number_unsigned(Json::number_unsigned_t value) { return add(value); }
  bool number_float(Json::number_float_t value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(Json::binary_t&) {
    return fail(StatusCode::kInvalidFile, "binary values are not JSON");
  }
  bool start_object(std::size_t) { return open(Json::object()); }
  bool start_array(std::size_t) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    auto* object = containers_.back()->get_ptr<Json::object_t*>();
    const auto [position, is_new] = object->try_emplace(std::move(name));
    if (!is_new && limits_.duplicate_keys == DuplicateKeys::kRefuse) {
      return fail(StatusCode::kInvalidFile,
                  "key '" + printable(position->first) + "' stands twice in one object");
    }
    member_ = &position->second;
    return true;
  }
  template <typename Exception>
  bool parse_error(std::size_t offset, const std::string&, const Exception& exception) {
    error_offset_ = offset;
    // "[json.exception.parse_error.101] parse error at line 1, column 2: what": keep the end.
    std::string_view text = exception.what();
    for (const std::string_view end : {"] ", ": "}) {
      if (const std::size_t at = text.find(end); at != std::string_view::npos) {
        text.remove_prefix(at + end.size());
      }
    }
    return fail(StatusCode::kInvalidFile, printable(text, 160));
  }

 private:
  bool fail(StatusCode code, std::string message) {
    error_code_ = code;
    error_ = std::move(message);
    return false;
  }

  Json* insert(Json&& value) {
    if (++num_values_ > limits_.max_values) {
      fail(StatusCode::kResourceExhausted,
           "more than " + std::to_string(limits_.max_values) + " values");
      return nullptr;
    }
    if (containers_.empty()) return &(document_ = std::move(value));
    if (auto* array = containers_.back()->get_ptr<Json::array_t*>()) {
      return &array->emplace_back(std::move(value));
    }
    return &(*member_ = std::move(value));
  }

  bool add(Json&& value) { return insert(std::move(value)) != nullptr; }

  bool open(Json&& container) {
    if (containers_.size() >= limits_.max_depth) {
      return fail(StatusCode::kResourceExhausted,
                  "nested deeper than " + std::to_string(limits_.max_depth) + " levels");
    }
    Json* inserted = insert(std::move(container));
    // An open container is the last element of its parent, so growth of the parent cannot move it.
    if (inserted != nullptr) containers_.push_back(inserted);
    return inserted != nullptr;
  }

  bool close() {
    containers_.pop_back();
    return true;
  }

  JsonLimits limits_;
  Json document_;
  std::vector<Json*> containers_;  ///< the open ones, outermost first
  Json* member_ = nullptr;         ///< where the next value of the innermost object goes
  std::size_t num_values_ = 0;
  StatusCode error_code_ = StatusCode::kOk;
  std::string error_;
  std::optional<std::size_t> error_offset_;
};

}  // namespace detail

/// Parses one JSON document that takes up all of `text` but white space.
///
/// \param origin  the file's name, for messages
/// Errors: kInvalidFile for a syntax error or bytes that are not UTF-8 (with line and byte offset)
/// and for a refused duplicate key; kResourceExhausted for a broken limit.
/// Cost: linear in the text; memory within the limits; no recursion in the input's depth.
inline Result<Json> parse_json(std::string_view text, std::string_view origin,
                               const JsonLimits& limits = {}) {
  if (text.size() > limits.max_bytes) {
    return resource_exhausted(std::string(origin) + ": JSON of " + std::to_string(text.size()) +
                              " bytes, the limit is " + std::to_string(limits.max_bytes));
  }
  detail::JsonBuilder builder(limits);
  if (Json::sax_parse(text.begin(), text.end(), &builder)) return std::move(builder.document());
  std::string message = std::string(origin) + ": JSON";
  if (builder.error_offset()) {
    const std::size_t offset = std::min(*builder.error_offset(), text.size());
    const auto line =
        1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(offset), '\n');
    message += " line " + std::to_string(line) + ", byte " + std::to_string(offset);
  }
  return Status(builder.error_code(), message + ": " + builder.error());
}

/// Maps and parses a file; errors as of `MappedFile::open` and `parse_json`.
inline Result<Json> read_json_file(const std::string& path, const JsonLimits& limits = {}) {
  CHUNKLLM_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
  const std::span<const std::byte> bytes = file.bytes();
  return parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path, limits);
}

/// A value as it may stand in a message: short, one line, containers by their size.
inline std::string describe(const Json& value) {
  switch (value.type()) {
    case Json::value_t::object: return "an object";
    case Json::value_t::array: return "a list of " + std::to_string(value.size()) + " elements";
    case Json::value_t::string:
      return "\"" + detail::printable(*value.get_ptr<const Json::string_t*>()) + "\"";
    default: return value.dump(-1, ' ', true, Json::error_handler_t::replace);
  }
}

/// The member `key` of an object; null where `json` is no object, the key is absent, or its value
/// is null (configuration files spell "not set" in both ways).
inline const Json* find_json(const Json& json, std::string_view key) {
  const auto position = json.find(key);
  return position == json.end() || position->is_null() ? nullptr : &*position;
}

/// The integer `key`, or nothing where it is absent or null.
///
/// Errors: kInvalidFile where it is no integer (1.0 is none) or outside [min, max].
inline Result<std::optional<std::int64_t>> optional_int(const Json& json, std::string_view key,
                                                        std::int64_t min, std::int64_t max,
                                                        std::string_view origin) {
  const Json* value = find_json(json, key);
  if (value == nullptr) return std::optional<std::int64_t>();
  std::optional<std::int64_t> number;
  if (const auto* large = value->get_ptr<const Json::number_unsigned_t*>()) {
    if (*large <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      number = static_cast<std::int64_t>(*large);
    }
  } else if (const auto* integer = value->get_ptr<const Json::number_integer_t*>()) {
    number = *integer;
  }
  if (!number || *number < min || *number > max) {
    return invalid_file(detail::field_error(
        origin, key, describe(*value),
        "an integer in [" + std::to_string(min) + ", " + std::to_string(max) + "]"));
  }
  return number;
}

/// The number `key`, or nothing where it is absent or null.
///
/// Errors: kInvalidFile where it is no number, not finite, or outside [min, max].
inline Result<std::optional<double>> optional_double(const Json& json, std::string_view key,
                                                     double min, double max,
                                                     std::string_view origin) {
  const Json* value = find_json(json, key);
  if (value == nullptr) return std::optional<double>();
  double number = std::numeric_limits<double>::quiet_NaN();
  if (const auto* real = value->get_ptr<const Json::number_float_t*>()) {
    number = *real;
  } else if (const auto* large = value->get_ptr<const Json::number_unsigned_t*>()) {
    number = static_cast<double>(*large);
  } else if (const auto* integer = value->get_ptr<const Json::number_integer_t*>()) {
    number = static_cast<double>(*integer);
  }
  if (!std::isfinite(number) || number < min || number > max) {
    return invalid_file(detail::field_error(
        origin, key, describe(*value),
        "a number in [" + detail::number_text(min) + ", " + detail::number_text(max) + "]"));
  }
  return std::optional<double>(number);
}

/// The string `key`, or nothing where it is absent or null. Errors: kInvalidFile for another type.
inline Result<std::optional<std::string>> optional_string(const Json& json, std::string_view key,
                                                          std::string_view origin) {
  const Json* value = find_json(json, key);
  if (value == nullptr) return std::optional<std::string>();
  const auto* text = value->get_ptr<const Json::string_t*>();
  if (text == nullptr) {
    return invalid_file(detail::field_error(origin, key, describe(*value), "a string"));
  }
  return std::optional<std::string>(*text);
}

/// The boolean `key`, or nothing where it is absent or null. Errors: kInvalidFile for another type.
inline Result<std::optional<bool>> optional_bool(const Json& json, std::string_view key,
                                                 std::string_view origin) {
  const Json* value = find_json(json, key);
  if (value == nullptr) return std::optional<bool>();
  const auto* flag = value->get_ptr<const Json::boolean_t*>();
  if (flag == nullptr) {
    return invalid_file(detail::field_error(origin, key, describe(*value), "true or false"));
  }
  return std::optional<bool>(*flag);
}

namespace detail {

/// Turns an absent optional field into an error.
template <typename T>
Result<T> require(Result<std::optional<T>> field, std::string_view key, std::string_view expected,
                  std::string_view origin) {
  if (!field.ok()) return field.status();
  if (!field.value()) return invalid_file(field_error(origin, key, "missing", expected));
  return *std::move(field).value();
}

}  // namespace detail

/// As `optional_int`, and an absent field is kInvalidFile too.
inline Result<std::int64_t> require_int(const Json& json, std::string_view key, std::int64_t min,
                                        std::int64_t max, std::string_view origin) {
  return detail::require(optional_int(json, key, min, max, origin), key, "an integer", origin);
}

/// As `optional_double`, and an absent field is kInvalidFile too.
inline Result<double> require_double(const Json& json, std::string_view key, double min, double max,
                                     std::string_view origin) {
  return detail::require(optional_double(json, key, min, max, origin), key, "a number", origin);
}

/// As `optional_string`, and an absent field is kInvalidFile too.
inline Result<std::string> require_string(const Json& json, std::string_view key,
                                          std::string_view origin) {
  return detail::require(optional_string(json, key, origin), key, "a string", origin);
}

/// As `optional_bool`, and an absent field is kInvalidFile too.
inline Result<bool> require_bool(const Json& json, std::string_view key, std::string_view origin) {
  return detail::require(optional_bool(json, key, origin), key, "true or false", origin);
}

}  // namespace chunkllm
