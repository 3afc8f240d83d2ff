// A GPU that runs PTX, on the host: translate.py makes a coroutine of a kernel, each GPU thread is
// one, and it waits where its block or its warp does. An error says what a GPU would do wrong:
// an access beside a tensor or its alignment, a race for memory, a read of what has not arrived
// yet, a barrier that not all threads reach.
#pragma once

#include <algorithm>
#include <coroutine>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "global.h"
#include "shared.h"
#include "values.h"

namespace ptx {

constexpr unsigned kWarp = 32;
constexpr unsigned kResident = 3;  // blocks whose warps take turns

enum class Waits { no, for_block, for_warp, done };
enum class Asks { bfly, down, matrices };

struct Thread {
  Global& global;
  Shared& shared;
  const unsigned char* parameters;
  unsigned tid, ctaid, ntid, nctaid;
  Actor actor;

  unsigned line = 0;  // of the PTX
  Waits waits = Waits::no;
  Asks asks = Asks::bfly;
  std::uint32_t given = 0, other = 0, clamp = 0;  // to the warp
  std::uint32_t taken[4] = {};                    // from it
  bool in_range = false;

  struct Copy {
    std::uint64_t to, from;
    unsigned bytes, valid;
  };
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> group;

  template <class T>
  T load(std::uint64_t address, unsigned bytes, unsigned offset) {
    global.check(address, bytes);
    global.read(address + offset, sizeof(T), actor);
    T value;
    std::memcpy(&value, reinterpret_cast<const char*>(address) + offset, sizeof(T));
    return value;
  }
  template <class T>
  void store(std::uint64_t address, T value, unsigned bytes, unsigned offset) {
    global.check(address, bytes);
    global.write(address + offset, sizeof(T), actor);
    std::memcpy(reinterpret_cast<char*>(address) + offset, &value, sizeof(T));
  }
  template <class T>
  T load_shared(std::uint64_t place, unsigned bytes, unsigned offset) {
    shared.check(place, bytes);
    T value;
    shared.read(place + offset, &value, sizeof(T), tid);
    return value;
  }
  template <class T>
  void store_shared(std::uint64_t place, T value, unsigned bytes, unsigned offset) {
    shared.check(place, bytes);
    shared.write(place + offset, &value, sizeof(T), tid);
  }
  template <class T>
  T load_parameter(std::uint64_t place, unsigned, unsigned offset) const {
    T value;
    std::memcpy(&value, parameters + place + offset, sizeof(T));
    return value;
  }

  std::uint32_t add(std::uint64_t address, std::uint32_t more, bool acquires, bool releases) {
    global.check(address, 4);
    global.add(address, actor, acquires, releases);
    auto* const number = reinterpret_cast<std::uint32_t*>(address);
    return std::exchange(*number, *number + more);
  }
  void fence() { actor.own.learn(actor.heard); }

  void send(std::uint64_t to, std::uint64_t from, unsigned bytes, unsigned valid) {
    if (valid != 0) {
      global.check(from, bytes);
      global.read(from, valid, actor);
    }
    shared.check(to, bytes);
    shared.send(to, bytes, tid);
    group.push_back({to, from, bytes, valid});
  }
  void commit() { groups.push_back(std::move(group)), group.clear(); }
  // As late as a GPU may, what was sent arrives: all but the last groups.
  void arrive(unsigned under_way) {
    while (groups.size() > under_way) {
      for (const Copy& copy : groups.front()) {
        unsigned char found[16] = {};
        std::memcpy(found, reinterpret_cast<const void*>(copy.from), copy.valid);
        shared.arrive(copy.to, found, copy.bytes, tid);
      }
      groups.erase(groups.begin());
    }
  }
};

struct Task {
  struct promise_type {
    Task get_return_object() { return {Handle::from_promise(*this)}; }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_always final_suspend() noexcept { return {}; }
    void return_void() {}
    void unhandled_exception() { throw; }
  };
  using Handle = std::coroutine_handle<promise_type>;
  Handle handle;
};
using Kernel = Task (*)(Thread&);

struct Block {
  Shared shared;
  Clock known;
  std::vector<Thread> threads;
  std::vector<Task> tasks;

  Block(Kernel kernel, Global& global, const unsigned char* parameters, std::size_t bytes,
        unsigned id, unsigned grid, unsigned count)
      : shared(bytes) {
    threads.reserve(count);
    for (unsigned t = 0; t < count; ++t)
      threads.push_back({global, shared, parameters, t, id, count, grid, {{id, t, 1}, &known}});
    for (Thread& thread : threads) tasks.push_back(kernel(thread));
  }
  Block(const Block&) = delete;
  ~Block() {
    for (Task& task : tasks) task.handle.destroy();
  }

  // Runs a warp until its threads wait for others. False once all of the block have ended.
  bool run(std::mt19937& random) {
    std::vector<unsigned> ready;
    for (unsigned first = 0; first < threads.size(); first += kWarp)
      if (std::any_of(&threads[first], &threads[first] + kWarp,
                      [](const Thread& thread) { return thread.waits == Waits::no; }))
        ready.push_back(first);
    run_warp(ready[random() % ready.size()], random() % 2 != 0);
    if (ready.size() > 1) return true;
    const auto all = [&](Waits what) {
      return std::all_of(threads.begin(), threads.end(),
                         [=](const Thread& thread) { return thread.waits == what; });
    };
    if (all(Waits::done)) return false;
    if (!all(Waits::for_block)) fail("some threads have ended, and others are at a barrier");
    shared.barrier();
    for (Thread& thread : threads) {
      thread.waits = Waits::no;
      known.learn(thread.actor.own);
      thread.actor.own = {};
      thread.actor.now.epoch = shared.epoch();
    }
    return true;
  }

  void run_warp(unsigned first, bool backwards) {
    Thread* const lanes = &threads[first];
    for (;;) {
      for (unsigned i = 0; i < kWarp; ++i) {
        const unsigned lane = backwards ? kWarp - 1 - i : i;
        if (lanes[lane].waits != Waits::no) continue;
        const auto handle = tasks[first + lane].handle;
        in_thread(lanes[lane], [&] { handle.resume(); });
        if (handle.done()) lanes[lane].waits = Waits::done;
      }
      const auto asking = std::count_if(lanes, lanes + kWarp, [](const Thread& thread) {
        return thread.waits == Waits::for_warp;
      });
      if (asking == 0) return;
      for (unsigned lane = 0; lane < kWarp; ++lane)
        in_thread(lanes[lane], [&] {
          if (asking != kWarp) fail("not all of a warp exchange values");
          answer(lanes, lane);
        });
      for (unsigned lane = 0; lane < kWarp; ++lane) lanes[lane].waits = Waits::no;
    }
  }

  // Adds to an error where it happens.
  template <class Work>
  static void in_thread(const Thread& thread, Work work) {
    try {
      work();
    } catch (const std::exception& error) {
      fail("line " + std::to_string(thread.line) + ", block " + std::to_string(thread.ctaid) +
           ", thread " + std::to_string(thread.tid) + ": " + error.what());
    }
  }

  void answer(Thread* lanes, unsigned lane) {
    Thread& thread = lanes[lane];
    if (thread.asks == Asks::matrices) {
      for (unsigned m = 0; m < 4; ++m) {  // lane 8 m + r has the address of row r of matrix m
        const Thread& row = lanes[8 * m + lane / 4];
        std::uint32_t& pair = thread.taken[m];
        shared.check(row.given, 16);
        shared.read(row.given + 4 * (lane % 4), &pair, 4, thread.tid);
      }
      return;
    }
    const unsigned group = lane & thread.clamp >> 8 & 31;
    const unsigned last = group | (thread.clamp & 31 & ~(thread.clamp >> 8));
    unsigned from = thread.asks == Asks::bfly ? lane ^ thread.other : lane + thread.other;
    thread.in_range = from <= last;
    if (!thread.in_range) from = lane;
    thread.taken[0] = lanes[from].given;
  }
};

// co_await of this stops a thread until the others are there.
struct Wait {
  Thread& thread;
  Waits what;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<>) const noexcept { thread.waits = what; }
  void await_resume() const noexcept {}
};
inline Wait barrier(Thread& thread) { return {thread, Waits::for_block}; }
inline Wait exchange(Thread& thread, Asks asks, std::uint32_t given, std::uint32_t other,
                     std::uint32_t clamp, std::uint32_t lanes) {
  if (lanes != ~0u) fail("a part of a warp exchanges values");
  thread.asks = asks, thread.given = given, thread.other = other, thread.clamp = clamp;
  return {thread, Waits::for_warp};
}
inline Wait matrices(Thread& thread, std::uint64_t row) {
  thread.asks = Asks::matrices, thread.given = std::uint32_t(row);
  return {thread, Waits::for_warp};
}

// Runs a kernel; nullptr, or what went wrong and where.
inline const char* launch(Kernel kernel, unsigned grid, unsigned threads, std::size_t shared,
                          const unsigned char* parameters, const Range* ranges, std::size_t count,
                          unsigned seed) {
  static thread_local std::string text;
  unsigned id = 0;
  try {
    Global global(ranges, count);
    std::mt19937 random(seed);
    std::vector<std::unique_ptr<Block>> running;
    while (id < grid || !running.empty()) {
      while (running.size() < kResident && id < grid) {
        running.push_back(
            std::make_unique<Block>(kernel, global, parameters, shared, id, grid, threads));
        ++id;
      }
      const std::size_t next = random() % running.size();
      if (!running[next]->run(random)) running.erase(running.begin() + std::ptrdiff_t(next));
    }
    return nullptr;
  } catch (const std::exception& error) {
    text = error.what();
    return text.c_str();
  }
}

}  // namespace ptx
