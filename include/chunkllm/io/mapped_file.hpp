// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"

namespace chunkllm {

namespace detail {

/// Closes a POSIX file descriptor at the end of its scope.
class FileDescriptor {
 public:
  explicit FileDescriptor(int descriptor) : descriptor_(descriptor) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() { close(); }

  [[nodiscard]] int get() const { return descriptor_; }
  /// Closes now; returns 0 or the errno value of the close.
  int close() {
    const int descriptor = std::exchange(descriptor_, -1);
    return descriptor >= 0 && ::close(descriptor) != 0 ? errno : 0;
  }

 private:
  int descriptor_;
};

}  // namespace detail

/// Read-only memory mapping of a whole file, unmapped on destruction.
///
/// Views into `bytes()` stay valid when the object is moved. The file must not be shortened while
/// it is mapped: the operating system answers a read past its new end with SIGBUS.
class MappedFile {
 public:
  /// Maps `path`.
  ///
  /// Errors: kNotFound where it cannot be opened; kInvalidFile for a folder, a pipe or device, and
  /// an empty file; kResourceExhausted where the mapping fails.
  static Result<MappedFile> open(const std::string& path) {
    // O_NONBLOCK: a named pipe must be refused, not waited for.
    const detail::FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (file.get() < 0) return not_found(path + ": cannot open: " + detail::errno_text(errno));
    struct stat info {};
    if (::fstat(file.get(), &info) != 0) {
      return invalid_file(path + ": cannot read its size: " + detail::errno_text(errno));
    }
    if (S_ISDIR(info.st_mode)) return invalid_file(path + ": is a folder, expected a file");
    if (!S_ISREG(info.st_mode)) return invalid_file(path + ": is not a regular file");
    if (info.st_size <= 0) return invalid_file(path + ": the file is empty");
    const auto size = static_cast<std::size_t>(info.st_size);
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (address == MAP_FAILED) {
      return resource_exhausted(path + ": cannot map " + std::to_string(size) +
                                " bytes: " + detail::errno_text(errno));
    }
    return MappedFile(path, {static_cast<const std::byte*>(address), size});
  }

  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
    if (!bytes_.empty()) ::munmap(address(), bytes_.size());
  }

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  [[nodiscard]] const std::string& path() const { return path_; }

  /// Gives the resident pages back, e.g. after the weights were repacked. The bytes stay readable:
  /// a later access loads its page from the file again.
  void drop_pages() const { ::madvise(address(), bytes_.size(), MADV_DONTNEED); }

 private:
  MappedFile(std::string path, std::span<const std::byte> bytes)
      : path_(std::move(path)), bytes_(bytes) {}

  // The system calls take a pointer to mutable memory even where they do not write.
  [[nodiscard]] void* address() const { return const_cast<std::byte*>(bytes_.data()); }

  std::string path_;
  std::span<const std::byte> bytes_;
};

/// Reads a whole file, pipe or device, at most `max_bytes` of it.
///
/// An empty file is an empty string. The bytes are returned as they are, UTF-8 or not.
///
/// Errors: kNotFound where it cannot be opened; kInvalidFile for a folder or a failed read;
/// kResourceExhausted where more than `max_bytes` come.
inline Result<std::string> read_text_file(const std::string& path, std::size_t max_bytes) {
  const detail::FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return not_found(path + ": cannot open: " + detail::errno_text(errno));
  struct stat info {};
  if (::fstat(file.get(), &info) == 0 && S_ISDIR(info.st_mode)) {
    return invalid_file(path + ": is a folder, expected a file");
  }
  constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
  std::string text;
  for (;;) {
    const std::size_t old_size = text.size();
    text.resize(old_size + kBlockBytes);
    const ssize_t count = ::read(file.get(), text.data() + old_size, kBlockBytes);
    if (count < 0 && errno != EINTR) {
      return invalid_file(path + ": cannot read: " + detail::errno_text(errno));
    }
    text.resize(old_size + static_cast<std::size_t>(count > 0 ? count : 0));
    if (text.size() > max_bytes) {
      return resource_exhausted(path + ": more than " + std::to_string(max_bytes) +
                                " bytes, the limit for such a file");
    }
    if (count == 0) return text;
  }
}

}  // namespace chunkllm
