// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

namespace chunkllm::testing {

/// What a finished program left behind.
struct ProgramResult {
  int exit_status = -1;  ///< -signal where a signal ended it
  std::string out;
  std::string err;
};

/// A child process with its stdout and stderr in pipes and nothing on its stdin.
class Program {
 public:
  explicit Program(std::vector<std::string> arguments) {
    std::array<int, 2> out{};
    std::array<int, 2> err{};
    if (::pipe2(out.data(), O_CLOEXEC) != 0 || ::pipe2(err.data(), O_CLOEXEC) != 0) {
      ADD_FAILURE() << "cannot make pipes";
      return;
    }
    out_ = out[0];
    err_ = err[0];
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    ::posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, err[1], STDERR_FILENO);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    if (::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ) != 0) {
      ADD_FAILURE() << "cannot start " << arguments[0];
      pid_ = -1;
    }
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(out[1]);
    ::close(err[1]);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() { finish(); }

  /// Waits for some output; what comes is part of the final result, too.
  void wait_for_stdout() { read_some(out_, result_.out); }
  void wait_for_stderr() { read_some(err_, result_.err); }
  void interrupt() const { ::kill(pid_, SIGINT); }
  void close_stdout() {
    ::close(out_);
    out_ = -1;
  }

  /// Reads what is left and waits for the end.
  ProgramResult finish() {
    // The outputs in question are far smaller than a pipe's buffer: one after the other will do.
    while (out_ >= 0 && read_some(out_, result_.out)) {
    }
    while (err_ >= 0 && read_some(err_, result_.err)) {
    }
    for (int* descriptor : {&out_, &err_}) {
      if (*descriptor >= 0) ::close(std::exchange(*descriptor, -1));
    }
    int status = 0;
    if (pid_ > 0 && ::waitpid(std::exchange(pid_, -1), &status, 0) > 0) {
      result_.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    }
    return result_;
  }

 private:
  static bool read_some(int descriptor, std::string& text) {
    std::array<char, 4096> buffer{};
    const ssize_t count = ::read(descriptor, buffer.data(), buffer.size());
    if (count <= 0) return false;
    text.append(buffer.data(), static_cast<std::size_t>(count));
    return true;
  }

  pid_t pid_ = -1;
  int out_ = -1;
  int err_ = -1;
  ProgramResult result_;
};

inline ProgramResult run_program(std::vector<std::string> arguments) {
  return Program(std::move(arguments)).finish();
}

}  // namespace chunkllm::testing
