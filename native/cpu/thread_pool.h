// Persistent threads that share one list of work items at a time. The caller is thread 0.
//
// Items are claimed dynamically, one by one, because the machines this runs on are noisy: a core
// that loses its time slice must not hold back a fixed share of the work. Waiting is spinning for
// some microseconds (operations follow each other within one), then yielding, so that a third
// thread on the same cores (HTTP) gets its turn, then sleeping: an idle engine costs no CPU.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace millrace {

inline void cpuRelax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#endif
}

class ThreadPool {
 public:
  // threads >= 1 counts the caller.
  explicit ThreadPool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  }

  ~ThreadPool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_.store(true);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(item, thread) once for each item in 0 .. items - 1, items in ascending order of
  // claiming, thread in 0 .. size() - 1; returns when all calls have returned. fn must not throw
  // and must not call parallel() itself. Only one thread may call this at a time.
  template <class Fn>
  void parallel(int items, Fn&& fn) {
    if (items <= 0) return;
    if (items == 1 || workers_.empty()) {
      for (int i = 0; i < items; ++i) fn(i, 0);
      return;
    }
    using F = std::remove_reference_t<Fn>;
    call_ = [](const void* f, int item, int thread) {
      (*static_cast<F*>(const_cast<void*>(f)))(item, thread);
    };
    fn_ = &fn;
    items_ = items;
    pending_.store(items, std::memory_order_relaxed);
    generation_ = (generation_ + 1) & 0x7fffffff;
    ticket_.store(static_cast<uint64_t>(generation_) << 32 | static_cast<uint32_t>(items));
    if (sleepers_.load() > 0) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      wake_.notify_all();
    }
    drain(0);
    Wait wait;
    while (pending_.load(std::memory_order_acquire) != 0) wait.pause();
  }

 private:
  // Pauses for ~20 us, then gives the core away between looks.
  struct Wait {
    int rounds = 0;
    void pause() {
      if (rounds < kSpins) {
        ++rounds;
        cpuRelax();
      } else {
        yield();
      }
    }
    static void yield() { std::this_thread::yield(); }
  };

  // Claims and runs items until none is left. The ticket holds the generation of the job and the
  // number of unclaimed items, so a claim succeeds only for the job it was read from, and a
  // claimed item keeps its job (fn_, items_) alive until pending_ is lowered.
  void drain(int thread) {
    int done = 0;
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (static_cast<uint32_t>(ticket) != 0) {
      if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
        continue;
      }
      call_(fn_, items_ - static_cast<int>(static_cast<uint32_t>(ticket)), thread);
      ++done;
      const uint64_t now = ticket_.load(std::memory_order_acquire);
      if (static_cast<uint32_t>(now) == 0) break;
      ticket = now;
    }
    if (done > 0) pending_.fetch_sub(done, std::memory_order_acq_rel);
  }

  bool hasWork() const { return static_cast<uint32_t>(ticket_.load()) != 0; }

  void work(int thread) {
    while (!stop_.load(std::memory_order_relaxed)) {
      if (hasWork()) {
        drain(thread);
        continue;
      }
      if (waitAwake()) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [this] { return hasWork() || stop_.load(); });
      sleepers_.fetch_sub(1);
    }
  }

  // True as soon as there is work; false after a time without any.
  bool waitAwake() const {
    for (int i = 0; i < kSpins; ++i) {
      if (hasWork()) return true;
      cpuRelax();
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(kAwakeUs);
    do {
      if (hasWork() || stop_.load(std::memory_order_relaxed)) return true;
      Wait::yield();
    } while (std::chrono::steady_clock::now() < end);
    return false;
  }

  static constexpr int kSpins = 1000;
  // Longer than the step loop's own work between two steps, so that workers of a busy engine
  // need no wake-up by the kernel.
  static constexpr int kAwakeUs = 300;

  std::vector<std::thread> workers_;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> pending_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  void (*call_)(const void* fn, int item, int thread) = nullptr;
  const void* fn_ = nullptr;
  int items_ = 0;
  uint32_t generation_ = 0;
};

}  // namespace millrace
