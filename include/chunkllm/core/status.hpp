// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace chunkllm {

/// Why an operation failed. `Status::message()` says where and what was expected.
enum class StatusCode {
  kOk = 0,
  kInvalidArgument,  ///< a caller's value is outside its documented range
  kInvalidFile,  ///< a file's bytes break its format, or two of its fields contradict each other
  kNotFound,     ///< a file, tensor, key or token that was asked for does not exist
  kUnsupported,  ///< well formed, but not implemented; the message lists what is
  kOutOfRange,   ///< an index, position or rollback beyond what is held
  kResourceExhausted,  ///< a size limit or the memory of the machine
  kInterrupted,        ///< the caller's cancellation callback asked to stop
  kDeviceError,        ///< the accelerator's runtime reported an error
  kInternal            ///< a broken invariant of this library
};

/// Name of a code as it stands in messages and logs.
constexpr std::string_view to_string(StatusCode code) {
  switch (code) {
    case StatusCode::kOk: return "ok";
    case StatusCode::kInvalidArgument: return "invalid argument";
    case StatusCode::kInvalidFile: return "invalid file";
    case StatusCode::kNotFound: return "not found";
    case StatusCode::kUnsupported: return "unsupported";
    case StatusCode::kOutOfRange: return "out of range";
    case StatusCode::kResourceExhausted: return "resource exhausted";
    case StatusCode::kInterrupted: return "interrupted";
    case StatusCode::kDeviceError: return "device error";
    case StatusCode::kInternal: return "internal error";
  }
  return "unknown";
}

/// The library's only error channel: nothing throws, prints or aborts across the API.
///
/// The one exception left to the standard library is `std::bad_alloc`.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  [[nodiscard]] bool ok() const { return code_ == StatusCode::kOk; }
  [[nodiscard]] StatusCode code() const { return code_; }
  [[nodiscard]] const std::string& message() const { return message_; }

  /// The same status with "<context>: " in front of its message; an ok status stays ok.
  [[nodiscard]] Status with_context(std::string_view context) const {
    if (ok()) return *this;
    return {code_, std::string(context) + ": " + message_};
  }

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status invalid_argument(std::string message) {
  return {StatusCode::kInvalidArgument, std::move(message)};
}
inline Status invalid_file(std::string message) {
  return {StatusCode::kInvalidFile, std::move(message)};
}
inline Status not_found(std::string message) {
  return {StatusCode::kNotFound, std::move(message)};
}
inline Status unsupported(std::string message) {
  return {StatusCode::kUnsupported, std::move(message)};
}
inline Status out_of_range(std::string message) {
  return {StatusCode::kOutOfRange, std::move(message)};
}
inline Status resource_exhausted(std::string message) {
  return {StatusCode::kResourceExhausted, std::move(message)};
}

/// A value or the status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  // Implicit on purpose: `return value;` and `return invalid_file(...)` both read naturally.
  Result(T value) : value_(std::move(value)) {}
  /// An ok status says nothing of a value, so it becomes kInternal: it must not pass for success.
  Result(Status status)
      : status_(status.ok() ? Status(StatusCode::kInternal, "a result without a value")
                            : std::move(status)) {}

  [[nodiscard]] bool ok() const { return value_.has_value(); }
  [[nodiscard]] const Status& status() const { return status_; }
  [[nodiscard]] T& value() & { return *value_; }
  [[nodiscard]] const T& value() const& { return *value_; }
  [[nodiscard]] T&& value() && { return *std::move(value_); }
  [[nodiscard]] T* operator->() { return &*value_; }
  [[nodiscard]] const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace chunkllm

#define CHUNKLLM_DETAIL_CONCAT_(a, b) a##b
#define CHUNKLLM_DETAIL_CONCAT(a, b) CHUNKLLM_DETAIL_CONCAT_(a, b)

/// Returns the status of `expr` from the enclosing function unless it is ok.
#define CHUNKLLM_RETURN_IF_ERROR(expr) \
  CHUNKLLM_DETAIL_RETURN_IF_ERROR(CHUNKLLM_DETAIL_CONCAT(chunkllm_status_, __LINE__), expr)
#define CHUNKLLM_DETAIL_RETURN_IF_ERROR(status, expr)                    \
  do {                                                                   \
    if (::chunkllm::Status status = (expr); !status.ok()) return status; \
  } while (false)

/// `CHUNKLLM_ASSIGN_OR_RETURN(auto file, MappedFile::open(path));`
#define CHUNKLLM_ASSIGN_OR_RETURN(declaration, expr)                                   \
  CHUNKLLM_DETAIL_ASSIGN_OR_RETURN(CHUNKLLM_DETAIL_CONCAT(chunkllm_result_, __LINE__), \
                                   declaration, expr)
#define CHUNKLLM_DETAIL_ASSIGN_OR_RETURN(result, declaration, expr) \
  auto result = (expr);                                             \
  if (!result.ok()) return result.status();                         \
  declaration = std::move(result).value()
