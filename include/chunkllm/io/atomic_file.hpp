// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

#include "chunkllm/core/status.hpp"
#include "chunkllm/io/error_text.hpp"
#include "chunkllm/io/mapped_file.hpp"

namespace chunkllm {

namespace detail {

/// Writes all bytes; returns 0 or an errno value.
inline int write_all(int descriptor, std::span<const std::byte> bytes) {
  // Linux moves at most 2 GiB a call; a smaller block also keeps EINTR cheap.
  constexpr std::size_t kMaxBlockBytes = std::size_t{1} << 26;
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor, bytes.data(), std::min(bytes.size(), kMaxBlockBytes));
    if (count < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
  return 0;
}

/// Makes a rename durable. Some file systems cannot sync a folder: the data are safe all the same.
inline void sync_parent_folder(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const FileDescriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() >= 0) ::fsync(descriptor.get());
}

}  // namespace detail

/// Writes the concatenation of `parts` to `path` so that other processes see the old file or the
/// whole new one, never a part: written beside it, synced, renamed.
///
/// The new file's mode is 0666 less the umask. On failure the temporary file is removed and an
/// existing `path` is left as it was.
///
/// Errors: kInvalidArgument where `path` exists and is no regular file (renaming over a device or
/// a folder is never meant) or its folder cannot be written to; kResourceExhausted where writing
/// fails (disk full, quota, size limit).
inline Status write_file_atomically(const std::string& path,
                                    std::span<const std::span<const std::byte>> parts) {
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return invalid_argument(path + ": exists and is not a regular file");
  }
  constexpr int kMaxTries = 100;  // left-overs of killed processes with our process id
  std::string temporary;
  int descriptor = -1;
  for (int i = 0; i < kMaxTries && descriptor < 0; ++i) {
    temporary = path + ".partial-" + std::to_string(::getpid()) + "-" + std::to_string(i);
    descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0 && errno != EEXIST) break;
  }
  if (descriptor < 0) {
    return invalid_argument(path + ": cannot create a file there: " + detail::errno_text(errno));
  }
  detail::FileDescriptor file(descriptor);
  int error = 0;
  for (const std::span<const std::byte> part : parts) {
    if (error == 0) error = detail::write_all(file.get(), part);
  }
  if (error == 0 && ::fsync(file.get()) != 0) error = errno;
  if (const int close_error = file.close(); error == 0) error = close_error;
  if (error == 0 && std::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) {
    ::unlink(temporary.c_str());
    return resource_exhausted(path + ": cannot write: " + detail::errno_text(error));
  }
  detail::sync_parent_folder(path);
  return {};
}

/// As above, for one run of bytes.
inline Status write_file_atomically(const std::string& path, std::span<const std::byte> bytes) {
  return write_file_atomically(path, std::span<const std::span<const std::byte>>(&bytes, 1));
}

/// As above, for text.
inline Status write_file_atomically(const std::string& path, std::string_view text) {
  return write_file_atomically(path, std::as_bytes(std::span<const char>(text)));
}

}  // namespace chunkllm
