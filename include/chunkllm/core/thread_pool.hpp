// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace chunkllm {

/// Fork-join pool: `parallel_for` hands out task indices, the caller works too.
///
/// Which thread runs which index is not fixed, so a task must own its outputs entirely: then
/// results are bit-equal at any thread count. One caller at a time; tasks must not throw and
/// must not call `parallel_for` of the same pool.
///
/// A call waits for its tasks, not for the workers: one that the machine has put aside costs
/// nothing, the others take its share. Waiting workers spin for some tens of microseconds, since
/// decoding forks hundreds of times a token, and then sleep until the next call.
class ThreadPool {
 public:
  /// \param num_threads threads that work on a call, the caller's own included; at least 1. Where
  ///                    the system refuses that many, as many as it gives: see `num_threads()`.
  explicit ThreadPool(int num_threads) {
    try {
      for (int i = 1; i < num_threads; ++i) {
        workers_.emplace_back([this, i] { work(i); });
      }
    } catch (const std::system_error&) {
      // Results do not depend on the number of threads, so fewer will do.
    }
  }
  ~ThreadPool() {
    stop_.store(true, std::memory_order_relaxed);
    call_.fetch_add(1, std::memory_order_release);
    call_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls `task(index, thread)` for every index in [0, count), thread in [0, num_threads()).
  ///
  /// \param count  below 2^32
  template <typename Task>
  void parallel_for(std::int64_t count, Task&& task) {
    if (count <= 0) return;
    if (workers_.empty() || count == 1) {
      for (std::int64_t i = 0; i < count; ++i) task(i, 0);
      return;
    }
    using Plain = std::remove_reference_t<Task>;
    const std::uint32_t call = call_.load(std::memory_order_relaxed) + 1;
    const std::uint64_t numbered = static_cast<std::uint64_t>(call) << 32;
    // Closed first: a late worker of the last call must not see that call's next index beside
    // the new count. The releases below order what it reads behind the closing.
    next_.store(numbered | kClosed, std::memory_order_relaxed);
    run_.store([](void* context, std::int64_t index,
                  int thread) { (*static_cast<Plain*>(context))(index, thread); },
               std::memory_order_release);
    // The const is cast away for the erased pointer only; `run_` restores the true type.
    context_.store(const_cast<void*>(static_cast<const void*>(&task)), std::memory_order_release);
    count_.store(count, std::memory_order_release);
    unfinished_.store(count, std::memory_order_relaxed);
    next_.store(numbered, std::memory_order_release);
    call_.store(call, std::memory_order_release);
    call_.notify_all();
    drain(call, /*thread=*/0);
    for (int spin = 0; unfinished_.load(std::memory_order_acquire) != 0; ++spin) {
      pause_or_yield(spin);
    }
  }

 private:
  static constexpr int kSpinsBeforeSleep = 4000;
  static constexpr std::uint64_t kClosed = 0xffffffffU;  // an index past every count

  static void pause_or_yield(int spin) {
    if (spin % 1024 == 1023) {
      std::this_thread::yield();  // an oversubscribed machine must not wait out a time slice
      return;
    }
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#endif
  }

  /// Takes tasks of `call` until there are none. A late worker finds a later call's number in
  /// `next_` and leaves; while an index of `call` can still be taken, its caller has not returned,
  /// so the task behind `context_` is alive.
  void drain(std::uint32_t call, int thread) {
    std::uint64_t next = next_.load(std::memory_order_acquire);
    while (next >> 32 == call) {
      const auto index = static_cast<std::int64_t>(next & 0xffffffffU);
      if (index >= count_.load(std::memory_order_acquire)) return;
      const RunTask run = run_.load(std::memory_order_acquire);
      void* const context = context_.load(std::memory_order_acquire);
      if (next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel,
                                      std::memory_order_acquire)) {
        run(context, index, thread);
        unfinished_.fetch_sub(1, std::memory_order_release);
        next = next_.load(std::memory_order_acquire);
      }
    }
  }

  void work(int thread) {
    std::uint32_t seen = 0;
    for (;;) {
      std::uint32_t now = call_.load(std::memory_order_acquire);
      for (int spin = 0; now == seen && spin < kSpinsBeforeSleep; ++spin) {
        pause_or_yield(spin);
        now = call_.load(std::memory_order_acquire);
      }
      while (now == seen) {
        call_.wait(seen, std::memory_order_acquire);
        now = call_.load(std::memory_order_acquire);
      }
      seen = now;
      if (stop_.load(std::memory_order_relaxed)) return;
      drain(seen, thread);
    }
  }

  using RunTask = void (*)(void*, std::int64_t, int);
  std::atomic<RunTask> run_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<std::int64_t> count_{0};
  alignas(64) std::atomic<std::uint64_t> next_{0};  // number of the call, then the next index
  alignas(64) std::atomic<std::int64_t> unfinished_{0};
  alignas(64) std::atomic<std::uint32_t> call_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace chunkllm
